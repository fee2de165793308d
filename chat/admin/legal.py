"""Admin of the terms, the privacy notice and the imprint. A published version is never changed."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from accounts.consent import memory
from accounts.models import Consent, LegalDocument
from chat.rendering.document import to_html
from chatproject.lib.admin import NOTHING, BaseAdmin, ReadOnlyAdmin


class DocumentForm(forms.ModelForm):  # type: ignore[type-arg] # not generic at run time
    publish = forms.BooleanField(
        required=False,
        label=gettext_lazy("Publish"),
        help_text=gettext_lazy(
            "All users and visitors see it at once, and it can no longer be changed."
        ),
    )

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean() or {}
        if cleaned.get("version") is None and {"kind", "language"} <= cleaned.keys():
            of_kind = LegalDocument.objects.filter(kind=cleaned["kind"]).exclude(
                pk=self.instance.pk
            )
            newest = of_kind.order_by("-version").first()
            number = newest.version if newest else 0
            is_taken = of_kind.filter(version=number, language=cleaned["language"]).exists()
            cleaned["version"] = number + 1 if newest is None or is_taken else number
        return cleaned


@admin.register(LegalDocument)
class LegalDocumentAdmin(BaseAdmin):
    form = DocumentForm
    list_display = ["kind", "version", "language", "needs_consent", "published_at"]
    list_display_links = ["kind", "version"]
    list_filter = ["kind", "language"]
    search_fields = ["text"]
    readonly_fields = ["rendered", "published_at"]
    fields = [
        "kind",
        "language",
        "version",
        "text",
        "rendered",
        "changes",
        "needs_consent",
        "published_at",
        "publish",
    ]

    @admin.display(description=gettext_lazy("as shown"))
    def rendered(self, one: LegalDocument) -> str:
        if not one.html:
            return _("Save it to see it as users will.")
        return format_html('<div class="prose">{}</div>', mark_safe(one.html))  # noqa: S308 # sanitised

    def get_fields(self, request: HttpRequest, obj: LegalDocument | None = None) -> Any:
        fields = list(super().get_fields(request, obj))
        return fields if self.has_change_permission(request, obj) else fields[:-1]

    def has_change_permission(self, request: HttpRequest, obj: LegalDocument | None = None) -> bool:
        is_draft = obj is None or obj.published_at is None
        return is_draft and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: LegalDocument | None = None) -> bool:
        is_draft = obj is None or obj.published_at is None
        return is_draft and super().has_delete_permission(request, obj)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)  # it would delete published ones
        return actions

    def save_model(self, request: HttpRequest, obj: LegalDocument, form: Any, change: bool) -> None:
        obj.html = to_html(obj.text)
        if form.cleaned_data.get("publish"):
            obj.published_at = timezone.now()
        super().save_model(request, obj, form, change)
        transaction.on_commit(memory.forget)


@admin.register(Consent)
class ConsentAdmin(ReadOnlyAdmin):
    list_display = ["user", "kind", "version", "language", "agreed_at"]
    list_select_related = ["user", "document"]
    list_filter = ["kind"]
    search_fields = ["user__email"]
    show_full_result_count = False

    @admin.display(description=gettext_lazy("language"))
    def language(self, one: Consent) -> str:
        return one.document.language or NOTHING
