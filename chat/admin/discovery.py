"""The discovery of a provider's models: its list, from which staff add language models with prices.

A POST asks the provider and stores the list in the cache, from which each page of it is shown: the
provider is asked once for a list of thousands. Sizes and prices that the provider does not state come
from the price list in the file PRICE_LIST.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from itertools import count
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.paginator import Paginator
from django.db import IntegrityError, models, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.text import slugify
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing import credits
from billing.credits import CreditsFormField
from billing.metering import pricing
from billing.metering.litellm_prices import (
    PriceList,
    Rate,
    Refused,
    Unreadable,
    price_of,
    read_list,
)
from billing.metering.publishing import publish
from billing.models import ModelPrice
from chat.admin.provider_pages import (
    BUSY,
    LOST,
    Busy,
    asking,
    context_of,
    log,
    models_of,
    provider_of,
)
from chat.conversations import lifecycle
from chat.llm.model_list import Listed, fetch
from chat.llm.probe import SECONDS
from chat.models import EFFORTS, Assistant, LanguageModel, Provider
from chatproject.lib import encryption
from chatproject.lib.admin import client_ip, staff_id

PER_PAGE = 50
KEPT_SECONDS = 3_600
HIGHEST_MARKUP = Decimal(10_000)

NEW_ASSISTANTS = "new"


@dataclass(frozen=True, slots=True)
class Known:
    """The sizes and the price of a listed model, as far as they are known.

    `price` is not stored. `in_force` is the present price of the model's name, which stays. `abilities` are
    the flags of the price list ("supports_vision" …).
    """

    context: int | None
    output: int | None
    price: ModelPrice | None
    in_force: ModelPrice | None
    abilities: dict[str, Any]

    @property
    def note(self) -> str:
        """The source of the price, and the parts of it that have no field."""
        if self.in_force is not None:
            return f"in force since {timezone.localtime(self.in_force.effective_from):%Y-%m-%d}"
        if self.price is None:
            return _("no price known")
        parts = [self.price.source]
        if self.price.reasoning_per_m is not None:
            parts.append(f"reasoning {credits.exact(self.price.reasoning_per_m)}")
        if self.price.request_fee:
            parts.append(f"{credits.exact(self.price.request_fee)} per call")
        if self.price.tiers:
            parts.append(f"{len(self.price.tiers)} tiers for long prompts")
        return ", ".join(parts)


class ListedForm(forms.Form):
    """A row of the list. The figures of the price are credits per million tokens."""

    chosen = forms.BooleanField(required=False)
    listed = forms.CharField(max_length=200, widget=forms.HiddenInput)
    name = forms.CharField(max_length=100)
    context_tokens = forms.IntegerField(min_value=512, max_value=2**31 - 1)
    max_output_tokens = forms.IntegerField(min_value=16, max_value=2**31 - 1)
    in_per_m = CreditsFormField(required=False)
    cached_in_per_m = CreditsFormField(required=False)
    out_per_m = CreditsFormField(required=False)

    def __init__(
        self, data: Any, *, prefix: str, model: Listed, known: Known, is_present: bool
    ) -> None:
        self.model, self.known, self.is_present = model, known, is_present
        price = known.in_force or known.price
        context = known.context or LanguageModel._meta.get_field("context_tokens").default
        output = known.output or LanguageModel._meta.get_field("max_output_tokens").default
        initial = {
            "listed": model.name,
            "name": model.title,
            "context_tokens": max(context, 512),
            "max_output_tokens": max(16, min(output, context // 2)),
        }
        if price is not None:
            initial |= {name: getattr(price, name) for name in FIGURES}
        # Fields without their checkbox may have any value.
        super().__init__(data, prefix=prefix, initial=initial, use_required_attribute=False)
        for name, field in self.fields.items():
            field.label = LABELS.get(name, name)
            field.widget.attrs |= {"aria-label": f"{field.label} of {model.name}"}
            field.widget.attrs.pop("class", None)
        for name in FIGURES if known.in_force else ():
            self.fields[name].disabled = True

    def clean_name(self) -> str:
        name = str(self.cleaned_data["name"])
        if not name.isprintable():
            raise ValidationError(_("The name has a character that cannot be shown. Type it anew."))
        return name

    def clean(self) -> dict[str, Any]:
        data = self.cleaned_data
        stated = [name for name in FIGURES if data.get(name) is not None]
        if "in_per_m" in stated and "out_per_m" in stated:
            if "cached_in_per_m" not in stated:
                data["cached_in_per_m"] = data["in_per_m"]
        elif stated and not self.errors:
            raise ValidationError(_("Enter the prices of input and output, or none."))
        return data


FIGURES = ("in_per_m", "cached_in_per_m", "out_per_m")
LABELS = {
    "chosen": gettext_lazy("Choose"),
    "name": gettext_lazy("Name"),
    "context_tokens": gettext_lazy("Context"),
    "max_output_tokens": gettext_lazy("Longest reply"),
    "in_per_m": gettext_lazy("Input price"),
    "cached_in_per_m": gettext_lazy("Price of cached input"),
    "out_per_m": gettext_lazy("Output price"),
}


class OptionsForm(forms.Form):
    """The fate of the chosen models."""

    enabled = forms.BooleanField(required=False, initial=True, label=gettext_lazy("Enabled"))
    assistant = forms.ChoiceField(required=False, label=gettext_lazy("Assistant"))
    default = forms.BooleanField(required=False, label=gettext_lazy("Default for new chats"))

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        choices = [("", "none"), (NEW_ASSISTANTS, _("a new one for each model"))]
        choices += [
            (str(one.pk), (_("give it to %(one)s") % {"one": one}))
            for one in Assistant.objects.all()
        ]
        field = self.fields["assistant"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = choices

    def clean(self) -> dict[str, Any]:
        data = self.cleaned_data
        if data.get("default") and not data.get("assistant"):
            data["assistant"] = NEW_ASSISTANTS  # chats begin with an assistant
        return data


def discover(request: HttpRequest, pk: str) -> HttpResponse:
    """Show the list of a provider's models; a POST asks for it anew, or adds the chosen ones."""
    provider = provider_of(request, pk)
    if request.method == "POST" and "add" not in request.POST:
        return ask(request, provider)
    stored = cache.get(cache_key(provider))
    if stored is None:
        return list_page(request, provider, None)
    listed = [Listed(**one) for one in stored]
    if request.method != "POST":
        return list_page(request, provider, listed)
    if not request.user.has_perm("chat.add_languagemodel"):
        messages.error(request, _("You may not add language models."))
        return list_page(request, provider, listed)
    return add_chosen(request, provider, listed)


def cache_key(provider: Provider) -> str:
    """Return the key of a provider's list, which another address makes void."""
    return f"models:2:{provider.pk}:{provider.address}"


def ask(request: HttpRequest, provider: Provider) -> HttpResponse:
    """Ask the provider for its list, and show it or the reason of the failure."""
    try:
        with asking():
            listed, diagnosis = fetch(provider, SECONDS)
    except Busy:
        messages.warning(request, BUSY)
        return list_page(request, provider, None)
    except (encryption.Undecryptable, ImproperlyConfigured) as error:
        is_lost = isinstance(error, encryption.Undecryptable)
        messages.error(request, LOST if is_lost else str(error))
        return list_page(request, provider, None)
    if not listed:
        log(request, provider, f"Discovered no models, cause {diagnosis.cause or 'no list'}.")
        return list_page(request, provider, None, result=diagnosis)
    cache.set(cache_key(provider), [asdict(one) for one in listed], KEPT_SECONDS)
    log(request, provider, f"Discovered {len(listed)} models in {diagnosis.milliseconds} ms.")
    return HttpResponseRedirect(reverse("admin:chat_provider_discover", args=[provider.pk]))


def list_page(
    request: HttpRequest,
    provider: Provider,
    listed: list[Listed] | None,
    *,
    rows: list[ListedForm] | None = None,
    options: OptionsForm | None = None,
    **context: Any,
) -> HttpResponse:
    """Return the page of a list; `rows` are the forms of a page that is shown again with errors."""
    query, markup = request.GET.get("q", "").strip(), markup_of(request)
    context |= context_of(request, provider, _("Models of")) | {"query": query, "markup": markup}
    context["may_add"] = request.user.has_perm("chat.add_languagemodel")
    if listed is not None:
        words = query.lower().split()
        found = [
            one
            for one in listed
            if all(word in f"{one.name} {one.title}".lower() for word in words)
        ]
        found.sort(key=lambda one: not one.is_chat)
        page = Paginator(found, PER_PAGE).get_page(request.GET.get("page"))
        if rows is None:
            rows = forms_of(request, provider, [*page.object_list], markup, None)
        asked: dict[str, str | int] = {"q": query, "markup": str(markup)}
        context |= {
            "total": len(listed),
            "page": page,
            "rows": rows,
            "options": options or OptionsForm(),
            "here": urlencode(asked | {"page": page.number}),
            "before": urlencode(asked | {"page": page.number - 1}),
            "after": urlencode(asked | {"page": page.number + 1}),
        }
    return TemplateResponse(request, "admin/chat/provider/discover.html", context)


def markup_of(request: HttpRequest) -> Decimal:
    """Return the percentage that is added to the provider's prices."""
    try:
        markup = Decimal(request.GET.get("markup") or "0")
    except InvalidOperation:
        return Decimal(0)
    return markup if markup.is_finite() and 0 <= markup <= HIGHEST_MARKUP else Decimal(0)


def forms_of(
    request: HttpRequest,
    provider: Provider,
    listed: list[Listed],
    markup: Decimal,
    data: Any,
) -> list[ListedForm]:
    """Return the forms of some models, with the known facts about each."""
    names = [one.name for one in listed]
    in_force = pricing.all_in_force(names)
    present = {
        *models_of(provider)
        .filter(provider_model__in=names)
        .values_list("provider_model", flat=True)
    }
    prices = None
    if settings.PRICE_LIST:
        try:
            prices = read_list(settings.PRICE_LIST)
        except Unreadable as error:
            messages.warning(
                request, (_("The file of PRICE_LIST cannot be read: %(error)s") % {"error": error})
            )
    rate, now = Rate(settings.CREDIT_USD, markup), timezone.now()
    return [
        ListedForm(
            data,
            prefix=str(number),
            model=one,
            known=known_of(one, provider, prices, rate, now, in_force.get(one.name)),
            is_present=one.name in present,
        )
        for number, one in enumerate(listed)
    ]


def known_of(
    model: Listed,
    provider: Provider,
    prices: PriceList | None,
    rate: Rate,
    now: datetime,
    in_force: ModelPrice | None,
) -> Known:
    """Return what the provider, or else the price list, states about a model."""
    context, output, price = model.context, model.output, None
    abilities: dict[str, Any] = {}
    sources = [(model.entry, f"list of {provider}")] if model.entry else []
    if prices is not None:
        try:
            key = prices.find(model.name)
        except Refused:
            pass
        else:
            abilities = entry = prices.entry(key)
            sizes = [entry.get(name) for name in ("max_input_tokens", "max_output_tokens")]
            sizes = [size if type(size) is int and size > 0 else None for size in sizes]
            context, output = context or sizes[0], output or sizes[1]
            sources.append((entry, f"{settings.PRICE_LIST.rpartition('/')[2]}: {key}"))
    for entry, source in sources:
        try:
            price = price_of(entry, rate, model=model.name, effective_from=now)
        except Refused:
            continue
        price.source = source[:200]
        break
    return Known(context, output, price, in_force, abilities)


def add_chosen(request: HttpRequest, provider: Provider, listed: list[Listed]) -> HttpResponse:
    """Add the chosen models of a posted page, or show it again with its errors."""
    by_name = {one.name: one for one in listed}
    posted = [request.POST.get(f"{number}-listed", "") for number in range(PER_PAGE)]
    shown = [by_name[name] for name in posted if name in by_name]
    if len(shown) < len([name for name in posted if name]):
        messages.error(request, _("The list has changed meanwhile. Choose again."))
        return list_page(request, provider, listed)
    rows = forms_of(request, provider, shown, markup_of(request), request.POST)
    options = OptionsForm(request.POST)
    chosen = [row for row in rows if row["chosen"].value()]
    for row in rows:
        if row not in chosen:
            row.errors.clear()
    invalid = [row for row in chosen if not row.is_valid()]
    if invalid or not options.is_valid():
        messages.error(request, _("Nothing was added. Correct the errors below."))
    elif problem := problem_of(request, chosen, options.cleaned_data):
        messages.error(request, problem)
    else:
        try:
            with transaction.atomic():
                done = add(request, provider, chosen, options.cleaned_data)
        except ValidationError as error:
            messages.error(
                request,
                (_("Nothing was added. %(messages)s") % {"messages": " ".join(error.messages)}),
            )
        except IntegrityError:
            messages.error(
                request, _("Nothing was added: another member of staff added one of them.")
            )
        else:
            messages.success(request, done)
            here = reverse("admin:chat_provider_discover", args=[provider.pk])
            return HttpResponseRedirect(f"{here}?{request.GET.urlencode()}")
    return list_page(request, provider, listed, rows=rows, options=options)


def problem_of(request: HttpRequest, chosen: list[ListedForm], options: dict[str, Any]) -> str:
    """Return why chosen models cannot be added; "" if they can."""
    user, assistant = request.user, options["assistant"]
    if not chosen:
        return _("Choose a model.")
    if added := [row.model.name for row in chosen if row.is_present]:
        return _("Nothing was added: %(added)s was added meanwhile. Choose again.") % {
            "added": ", ".join(added)
        }
    if len(chosen) > 1 and assistant not in ("", NEW_ASSISTANTS):
        return _("An assistant has one model. Choose one, or a new assistant for each.")
    if options["default"] and len(chosen) > 1:
        return _("For the default of new chats choose one model.")
    if assistant == NEW_ASSISTANTS and not user.has_perm("chat.add_assistant"):
        return _("You may not add assistants.")
    is_changed = options["default"] or assistant not in ("", NEW_ASSISTANTS)
    if is_changed and not user.has_perm("chat.change_assistant"):
        return _("You may not change assistants.")
    is_priced = any(
        row.cleaned_data["in_per_m"] is not None for row in chosen if not row.known.in_force
    )
    if is_priced and not user.has_perm("billing.add_modelprice"):
        return _("You may not add prices. Leave the prices empty.")
    return ""


def add(
    request: HttpRequest, provider: Provider, chosen: list[ListedForm], options: dict[str, Any]
) -> str:
    """Add models, prices and assistants, in the caller's transaction; return a sentence for staff.

    Raises ValidationError, for a whole that cannot be stored.
    """
    now = timezone.now()
    priced = 0
    is_default = False
    for row in chosen:
        data = row.cleaned_data
        model = LanguageModel(
            provider=provider,
            name=data["name"],
            provider_model=row.model.name,
            context_tokens=data["context_tokens"],
            max_output_tokens=data["max_output_tokens"],
            description=row.model.description,
            vision=row.model.vision or row.known.abilities.get("supports_vision") is True,
            tools=row.model.tools or row.known.abilities.get("supports_function_calling") is True,
            reasoning=row.model.reasoning or row.known.abilities.get("supports_reasoning") is True,
            efforts=[one for one in EFFORTS if one in row.model.efforts],
            enabled=options["enabled"],
        )
        stored(request, model, (_("Discovered at %(provider)s.") % {"provider": provider}))
        if row.known.in_force is None and data["in_per_m"] is not None:
            priced += 1
            price = row.known.price or ModelPrice(model=row.model.name)
            if any(getattr(price, name) != data[name] for name in FIGURES):
                price.source = f"changed by hand; {price.source}".removesuffix("; ")[:200]
            for name in FIGURES:
                setattr(price, name, data[name])
            price.effective_from = now
            price.full_clean()
            publish(price, actor_id=staff_id(request), ip=client_ip(request))
            logged(
                request,
                price,
                (_("Discovered at %(provider)s.") % {"provider": provider}),
                is_new=True,
            )
        if not options["assistant"]:
            continue
        if options["assistant"] == NEW_ASSISTANTS:
            own = Assistant.objects.filter(personal=False)
            last = own.aggregate(last=models.Max("position"))["last"] or 0
            assistant = Assistant(
                name=model.name, slug=free_slug(model.name), model=model, position=last + 1
            )
            stored(request, assistant, (_("Added with the model %(model)s.") % {"model": model}))
        else:
            assistant = Assistant.objects.get(pk=options["assistant"])
            assistant.model = model
            assistant.save(update_fields=["model"])
            logged(
                request,
                assistant,
                (
                    _("Changed model to %(model)s of %(provider)s.")
                    % {"model": model, "provider": provider}
                ),
                is_new=False,
            )
        if options["default"]:
            is_default = lifecycle.put_first(assistant)
            logged(request, assistant, _("Made default for new chats."), is_new=False)
    words = f"{len(chosen)} model{'s' if len(chosen) > 1 else ''} added, {priced} with a new price."
    if options["default"]:
        words += (
            _(" New chats now use it.")
            if is_default
            else _(" It is first, but new chats do not use it: it is disabled or has no price.")
        )
    return words


def stored(request: HttpRequest, row: models.Model, message: str) -> None:
    """Validate and store a new row, and its entry in the admin's log. Raises ValidationError."""
    try:
        row.full_clean()
    except ValidationError as error:
        raise ValidationError([f"{row}: {' '.join(error.messages)}"]) from error
    row.save()
    logged(request, row, message, is_new=True)


def logged(request: HttpRequest, row: models.Model, message: str, *, is_new: bool) -> None:
    """Store an entry in the admin's log."""
    pages = admin.site.get_model_admin(type(row))
    (pages.log_addition if is_new else pages.log_change)(request, row, message)


def free_slug(name: str) -> str:
    """Return a slug of a name that no assistant has."""
    base = slugify(name)[:40] or "assistant"
    taken = {*Assistant.objects.filter(slug__startswith=base).values_list("slug", flat=True)}
    if base not in taken:
        return base
    return next(slug for number in count(2) if (slug := f"{base}-{number}") not in taken)
