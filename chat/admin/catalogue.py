"""Admin of providers, language models and assistants."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db.models import BooleanField, Case, Count, Q, QuerySet, Value, When
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing import credits
from billing.credits import CreditsFormField
from billing.metering import pricing
from chat.access import decide
from chat.admin import discovery, provider_pages
from chat.admin.quirks import QuirksFormField
from chat.conversations import lifecycle
from chat.documents.models import DocumentIndex
from chat.llm.address import malformed
from chat.models import EFFORTS, Assistant, ChatPreference, LanguageModel, Prompt, Provider
from chat.models.catalogue import ModelKind, texts_in, validate_headers, validate_proxy
from chat.runs.provider_health import Health, last_hour
from chat.tools import offers as tool_offers
from chatproject.lib import encryption
from chatproject.lib.admin import NOTHING, BaseAdmin, MergedForm, MergingAdmin

ROW_ID = re.compile(r"[0-9]{1,18}")
MOST_SUGGESTIONS = 20
LONGEST_SUGGESTION = 300  # characters


class SuggestionsFormField(forms.CharField):
    """First questions of a new chat, one a line."""

    widget = forms.Textarea(attrs={"rows": 4, "class": "vLargeTextField"})

    def __init__(self, **options: Any) -> None:
        help_text = "First questions that a new chat offers, one a line; it shows three of them."
        super().__init__(**options | {"help_text": help_text})

    def prepare_value(self, value: Any) -> Any:
        """Return the stored texts as lines; what was typed is shown again as it is."""
        return value if isinstance(value, str) else "\n".join(texts_in(value))

    def to_python(self, value: Any) -> Any:
        """Return the list to store. Raises ValidationError for too many or too long lines."""
        texts = texts_in(str(value or "").splitlines())
        if len(texts) > MOST_SUGGESTIONS:
            raise ValidationError(
                _("These are %(texts)s lines. Keep %(most_suggestions)s or less.")
                % {"texts": len(texts), "most_suggestions": MOST_SUGGESTIONS}
            )
        for text in texts:
            if len(text) > LONGEST_SUGGESTION:
                raise ValidationError(
                    _("“%(text)s…” has %(text2)s characters. Shorten it to %(longest_suggestion)s.")
                    % {
                        "text": text[:30],
                        "text2": len(text),
                        "longest_suggestion": LONGEST_SUGGESTION,
                    }
                )
        return texts

    def has_changed(self, initial: Any, data: Any) -> bool:
        return texts_in(initial) != texts_in(str(data or "").splitlines())


class ToolsFormField(forms.MultipleChoiceField):
    """The tools that an assistant's model may call, in groups by their source."""

    widget = forms.CheckboxSelectMultiple

    def offer(self, stored: Sequence[str]) -> None:
        """Set the choices: those of now, and the ones that an assistant has already."""
        self.choices = [
            (group, [(one.name, one.title) for one in offers])
            for group, offers in tool_offers.all_tools(stored)
        ]


class EffortsFormField(forms.Field):
    """The reasoning efforts that users may choose, separated by commas."""

    widget = forms.TextInput(attrs={"class": "vTextField"})

    def __init__(self, **options: Any) -> None:
        help_text = _("What users may choose, for example low, medium, high. Of %(efforts)s.") % {
            "efforts": ", ".join(EFFORTS)
        }
        super().__init__(**options | {"help_text": help_text})

    def prepare_value(self, value: Any) -> Any:
        """Return the stored efforts as one line; what was typed is shown again as it is."""
        return value if isinstance(value, str) else ", ".join(texts_in(value))

    def to_python(self, value: Any) -> list[str]:
        """Return the list to store, from the least to the most. Raises ValidationError for other words."""
        words = re.split(r"[\s,]+", str(value or "").strip().lower())
        if unknown := [word for word in words if word and word not in EFFORTS]:
            raise ValidationError(
                _("“%(unknown)s” is no reasoning effort. Write some of %(efforts)s.")
                % {"unknown": unknown[0][:30], "efforts": ", ".join(EFFORTS)}
            )
        return [one for one in EFFORTS if one in words]

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return texts_in(initial) != self.to_python(data)
        except ValidationError:
            return True


NO_REPLIES = gettext_lazy("No replies in the last hour")
HIDDEN = "…"  # begins the value of a secret as a form shows it
LOST = gettext_lazy(
    "The stored {what} cannot be decrypted: ENCRYPTION_KEYS or SECRET_KEY has changed. Enter it again."
)


class ProviderForm(MergedForm):
    """A provider, whose secrets are written and never shown: a form that is saved unchanged keeps them."""

    merged_fields = ("header_lines", "proxy_address")

    new_key = forms.CharField(
        label=gettext_lazy("API key"),
        required=False,
        strip=True,
        max_length=4_000,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password", "class": "vTextField"}),
    )
    remove_key = forms.BooleanField(label=gettext_lazy("Remove the stored key"), required=False)
    header_lines = forms.CharField(
        label=gettext_lazy("Extra headers"),
        required=False,
        max_length=20_000,
        widget=forms.Textarea(attrs={"rows": 3, "class": "vLargeTextField"}),
        help_text=gettext_lazy(
            "One a line, for example X-Team: research. They are encrypted like the key."
        ),
    )
    proxy_address = forms.CharField(
        label=gettext_lazy("Proxy"),
        required=False,
        max_length=500,
        widget=forms.TextInput(attrs={"class": "vTextField"}),
        help_text=gettext_lazy(
            "For example http://user:password@proxy.example.org:3128. Empty: HTTP_PROXY and "
            "HTTPS_PROXY of the environment."
        ),
    )

    class Meta:
        model = Provider
        fields = (
            "name",
            "base_url",
            "key_variable",
            "first_byte_seconds",
            "silence_seconds",
            "concurrency",
            "notes",
            "enabled",
        )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        provider = self.instance
        key = self.fields["new_key"]
        key.help_text = _("Stored encrypted, and not shown again.")
        if provider.encrypted_key:
            key.help_text = _("Now %(provider)s. Leave it empty to keep it.") % {
                "provider": key_of(provider)
            }
        try:
            self.initial["header_lines"] = "\n".join(
                f"{name}: {hidden(value)}" for name, value in provider.headers.items()
            )
        except encryption.Undecryptable:
            self.fields["header_lines"].help_text = LOST.format(what="headers")
        try:
            self.initial["proxy_address"] = without_password(provider.proxy)
        except encryption.Undecryptable:
            self.fields["proxy_address"].help_text = LOST.format(what="proxy")

    def clean_name(self) -> str:
        name = str(self.cleaned_data["name"])
        if not name.isprintable():
            raise ValidationError(_("The name has a character that cannot be shown. Type it anew."))
        return name

    def clean_base_url(self) -> str:
        base_url = str(self.cleaned_data["base_url"])
        if fault := base_url and malformed(base_url):
            raise ValidationError(fault)
        return base_url

    def clean_new_key(self) -> str:
        key = str(self.cleaned_data["new_key"])
        if key.lower().startswith("bearer "):
            raise ValidationError(_("Leave out the word Bearer: it is added to each request."))
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise ValidationError(_("A key has no spaces and no characters other than ASCII."))
        return key

    def clean_header_lines(self) -> dict[str, str] | None:
        """Return the headers; None for unchanged ones."""
        if "header_lines" not in self.changed_data:
            return None
        if str(self.cleaned_data["header_lines"]).lstrip().startswith(("{", "[")):
            raise ValidationError(_("Write lines such as X-Team: research, not JSON."))
        headers: dict[str, str] = {}
        for line in str(self.cleaned_data["header_lines"]).splitlines():
            if not line.strip():
                continue
            name, colon, value = (part.strip() for part in line.partition(":"))
            if not colon or name in headers:
                raise ValidationError(
                    _("Write one header a line, as Name: value. Not: %(name)s")
                    % {"name": name[:50]}
                )
            if value.startswith(HIDDEN):
                value = self._kept_header(name, value)
            headers[name] = value
        validate_headers(headers)
        return headers

    def _kept_header(self, name: str, shown: str) -> str:
        try:
            value = self.instance.headers.get(name, "")
        except encryption.Undecryptable:
            value = ""
        if not value or hidden(value) != shown:
            raise ValidationError(_("Write the value of %(name)s.") % {"name": name})
        return str(value)

    def clean_proxy_address(self) -> str | None:
        """Return the proxy with its password; None for an unchanged one."""
        if "proxy_address" not in self.changed_data:
            return None
        address = str(self.cleaned_data["proxy_address"])
        if address:
            validate_proxy(address.replace(HIDDEN, quote(HIDDEN)))
            if unquote(urlsplit(address).password or "").startswith(HIDDEN):
                raise ValidationError(_("Write the proxy's password again."))
        return address

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        data, provider = self.cleaned_data, self.instance
        if data.get("new_key"):
            provider.key = data["new_key"]
        elif data.get("remove_key") or data.get("key_variable"):
            provider.encrypted_key = ""
        if data.get("header_lines") is not None:
            provider.headers = data["header_lines"]
        if data.get("proxy_address") is not None:
            provider.proxy = data["proxy_address"]
        return cleaned


def hidden(value: str) -> str:
    """Return the value of a header as a form shows it."""
    return HIDDEN + (value[-4:] if len(value) >= 12 else "")


def without_password(address: str) -> str:
    """Return the address of a proxy as a form shows it."""
    password = urlsplit(address).password
    return address.replace(f":{password}@", f":{HIDDEN}@", 1) if password else address


def key_of(provider: Provider) -> str:
    """Return in words where the key of a provider is, and how it ends."""
    if provider.is_environment:
        return f"OPENAI_API_KEY: {encryption.shown(provider.key)}"
    if provider.key_variable:
        try:
            is_set = bool(provider.key)
        except ImproperlyConfigured as error:  # the file that it names
            return f"variable {provider.key_variable}: {error}"
        return f"variable {provider.key_variable}" + (
            "" if is_set else _(", not set in this process")
        )
    try:
        return encryption.shown(provider.key)
    except encryption.Undecryptable:
        return _("cannot be decrypted: enter it again")


@admin.register(Provider)
class ProviderAdmin(MergingAdmin):
    form = ProviderForm
    list_display = ["name", "address", "key_shown", "concurrency", "models_count", "enabled"]
    search_fields = ["name", "base_url", "notes"]
    ordering = ["name"]  # the model's own is ignored where rows are counted
    fieldsets = [
        (
            None,
            {"fields": ["name", "base_url", "new_key", "remove_key", "key_variable", "enabled"]},
        ),
        (
            gettext_lazy("Requests"),
            {
                "fields": [
                    "first_byte_seconds",
                    "silence_seconds",
                    "concurrency",
                    "header_lines",
                    "proxy_address",
                ]
            },
        ),
        (None, {"fields": ["notes"]}),
    ]

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).annotate(models_count=Count("models"))

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        found: dict[int, Health] = {}

        @admin.display(description=_("last hour"))
        def health(provider: Provider) -> str:
            if not found:  # one statement for the whole list
                found.update(last_hour() or {0: Health()})
            one = found.get(provider.pk)
            return str(NO_REPLIES) if one is None else one.summary

        return [*self.list_display, health]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        health = last_hour().get(int(object_id)) if ROW_ID.fullmatch(object_id) else None
        context = {"health": health, "no_replies": NO_REPLIES, **(extra_context or {})}
        return super().change_view(request, object_id, form_url, context)

    def get_urls(self) -> list[URLPattern]:
        pages = {
            "test": provider_pages.test,
            "base_url": provider_pages.take_base_url,
            "discover": discovery.discover,
        }
        return [
            path(
                f"<path:pk>/{name.replace('_', '-')}/",
                self.admin_site.admin_view(page),
                name=f"chat_provider_{name}",
            )
            for name, page in pages.items()
        ] + super().get_urls()

    def response_post_save_add(self, request: HttpRequest, obj: Provider) -> HttpResponseRedirect:
        """Lead to the provider's page, which has the buttons of the next steps."""
        return HttpResponseRedirect(reverse("admin:chat_provider_change", args=[obj.pk]))

    @admin.display(description=gettext_lazy("key"))
    def key_shown(self, provider: Provider) -> str:
        """Return where the key is, and how it ends."""
        return key_of(provider)

    @admin.display(description=gettext_lazy("models"), ordering="models_count")
    def models_count(self, provider: Any) -> int:
        """Return how many models the provider serves."""
        return int(provider.models_count)


class LanguageModelForm(MergedForm):
    def clean_dimensions(self) -> int | None:
        """Return the size of vectors, which stays while documents have some of the model."""
        size: int | None = self.cleaned_data["dimensions"]
        made = DocumentIndex.objects.filter(model=self.instance.pk, embedded__gt=0)
        if "dimensions" in self.changed_data and self.instance.pk and made.exists():
            raise ValidationError(
                _(
                    "Documents have vectors of this model. Add the model with other vectors as a further one, and"
                    " mark that for documents."
                )
            )
        return size


@admin.register(LanguageModel)
class LanguageModelAdmin(MergingAdmin):
    form = LanguageModelForm
    form_fields = {"quirks": QuirksFormField, "efforts": EffortsFormField}
    filter_horizontal = ["groups"]
    list_display = [
        "name",
        "provider",
        "provider_model",
        "kind",
        "tokens",
        "price_now",
        "offered",
    ]
    list_filter = ["kind", "provider"]
    list_select_related = ["provider"]
    search_fields = ["name", "provider_model", "provider__name"]

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        field = super().formfield_for_foreignkey(db_field, request, **options)
        return with_providers(field) if db_field.name == "fallback" else field

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **options)
        if db_field.name in ("kind", "max_inputs") and field is not None:
            field.required = False  # they have defaults: LanguageModel.clean
        return field

    def save_model(self, request: HttpRequest, obj: LanguageModel, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if obj.enabled and pricing.in_force(obj.provider_model) is None:
            words, address = f"{obj} is not offered yet: it has no price.", ""
            if request.user.has_perm("billing.add_modelprice"):
                address = reverse("admin:billing_modelprice_add")
                address += f"?{urlencode({'model': obj.provider_model})}"
            link = format_html(' <a href="{}">Add one</a>', address) if address else ""
            self.message_user(request, format_html("{}{}", words, link), messages.WARNING)

    @admin.display(description=gettext_lazy("context / reply"), ordering="context_tokens")
    def tokens(self, model: LanguageModel) -> str:
        """Return the sizes of the context window and of the longest reply, or of a text and its vector."""
        if model.kind == ModelKind.EMBEDDING:
            return f"{model.context_tokens:,} / {model.dimensions}"
        return f"{model.context_tokens:,} / {model.max_output_tokens:,}"

    @admin.display(description=gettext_lazy("offered"))
    def offered(self, model: LanguageModel) -> str:
        """Return whether new chats can use the model, and if not, why."""
        if not model.enabled:
            return "no: disabled"
        if model.provider is not None and not model.provider.enabled:
            return _("no: its provider is disabled")
        return "yes" if pricing.in_force(model.provider_model) else "no: no price"

    @admin.display(description=gettext_lazy("price, in / out"))
    def price_now(self, model: LanguageModel) -> str:
        """Return the present price in credits per million tokens."""
        price = pricing.in_force(model.provider_model)
        if price is None:
            return NOTHING
        return f"{credits.exact(price.in_per_m)} / {credits.exact(price.out_per_m)}"


@admin.register(ChatPreference)
class ChatPreferenceAdmin(BaseAdmin):
    list_display = ["user", "model"]
    list_select_related = ["user", "model"]
    raw_id_fields = ["user"]
    search_fields = ["user__email"]


def with_providers(field: Any) -> Any:
    """Offer the models that reply, and name the provider of each: two may serve one of the same name."""
    field.queryset = field.queryset.filter(kind=ModelKind.CHAT).select_related("provider")
    field.label_from_instance = lambda model: f"{model} ({model.provider or 'environment'})"
    return field


def readable(request: HttpRequest, found: Assistant | Prompt | None) -> Assistant | Prompt | None:
    """Return a row whose content staff may read, else None."""
    is_read = found is not None and decide(request.user, found, in_admin=True)
    return found if is_read else None


@admin.register(Prompt)
class PromptAdmin(BaseAdmin):
    """The staff's prompts alone: those of users are as private as messages."""

    fields = ["title", "text"]
    list_display = ["title", "updated_at"]
    search_fields = ["title"]

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).filter(owner=None)

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        return readable(request, super().get_object(request, object_id, from_field))


class AssistantAdminForm(MergedForm):
    """An assistant, with the tools that there are now."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        field = self.fields.get("tools")
        if isinstance(field, ToolsFormField):
            field.offer(texts_in(self.instance.tools))


@admin.register(Assistant)
class AssistantAdmin(MergingAdmin):
    form = AssistantAdminForm
    form_fields = {
        "message_fee": CreditsFormField,
        "suggestions": SuggestionsFormField,
        "tools": ToolsFormField,
    }
    list_display = ["name", "model", "model_provider", "maker", "is_default", "position", "enabled"]
    list_filter = ["enabled", "restricted", "shared", "model"]
    list_select_related = ["model__provider", "owner"]
    search_fields = ["name", "slug", "owner__email"]
    prepopulated_fields = {"slug": ["name"]}
    filter_horizontal = ["groups"]
    actions = ["make_default"]

    def get_queryset(self, request: HttpRequest) -> Any:
        default = lifecycle.default_assistant()
        is_default = Case(
            When(pk=default.pk if default else 0, then=Value(True)),
            default=Value(False),
            output_field=BooleanField(),
        )
        # As chat.access.decide: private ones have no reader.
        shown = super().get_queryset(request).filter(Q(personal=False) | Q(shared=True))
        return shown.annotate(is_default=is_default)

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        return readable(request, super().get_object(request, object_id, from_field))

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        field = super().formfield_for_foreignkey(db_field, request, **options)
        return with_providers(field) if db_field.name == "model" else field

    @admin.display(description=gettext_lazy("provider"), ordering="model__provider__name")
    def model_provider(self, assistant: Assistant) -> str:
        """Return the provider of the assistant's model."""
        return str(assistant.model.provider or NOTHING)

    @admin.display(
        description=gettext_lazy("made by"), ordering="owner__email", empty_value="staff"
    )
    def maker(self, assistant: Assistant) -> str | None:
        """Return the owner of a shared assistant; None for one of staff's."""
        return str(assistant.owner or "a deleted user") if assistant.personal else None

    @admin.display(description=gettext_lazy("default"), boolean=True)
    def is_default(self, assistant: Any) -> bool:
        """Return whether new chats use the assistant."""
        return bool(assistant.is_default)

    @admin.action(description=gettext_lazy("Make default for new chats"), permissions=["change"])
    def make_default(self, request: HttpRequest, queryset: QuerySet[Assistant]) -> None:
        """Put the selected assistant before all others."""
        if queryset.count() != 1:
            self.message_user(request, _("Select one assistant."), messages.ERROR)
            return
        chosen = queryset.get()
        if chosen.personal:
            text = f"{chosen} belongs to a user, who may change it. Choose one of staff's."
            self.message_user(request, text, messages.ERROR)
            return
        is_default = lifecycle.put_first(chosen)
        self.log_change(request, chosen, _("Made default for new chats."))
        if is_default:
            self.message_user(request, (_("New chats now use %(chosen)s.") % {"chosen": chosen}))
            return
        self.message_user(
            request,
            f"{chosen} is first, but it is not offered: it, its model or the model's provider is "
            "disabled, the model has no price, or it is restricted to groups.",
            messages.WARNING,
        )
