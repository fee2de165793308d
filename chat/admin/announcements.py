"""Admin of announcements. A change reaches open pages at once."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from chat import announcements
from chat.models import Announcement, AnnouncementDismissal
from chat.rendering.document import to_html
from chatproject.lib.admin import BaseAdmin, ReadOnlyAdmin


class AnnouncementForm(forms.ModelForm):  # type: ignore[type-arg]
    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean() or {}
        is_for_groups = cleaned.get("audience") == Announcement.Audience.GROUPS
        if is_for_groups and not cleaned.get("groups"):
            self.add_error("groups", _("Choose the groups that see it."))
        return cleaned


@admin.register(Announcement)
class AnnouncementAdmin(BaseAdmin):
    form = AnnouncementForm
    fields = ["text", "level", "audience", "groups", "starts_at", "ends_at", "is_dismissible"]
    filter_horizontal = ["groups"]
    list_display = ["__str__", "state", "level", "audience", "starts_at", "ends_at"]
    list_filter = ["level", "audience", "starts_at"]
    search_fields = ["text"]

    @admin.display(description=gettext_lazy("state"))
    def state(self, one: Announcement) -> str:
        now = timezone.now()
        if one.starts_at > now:
            return _("Planned")
        return _("Ended") if one.ends_at is not None and one.ends_at <= now else _("Shown")

    def save_model(self, request: HttpRequest, obj: Announcement, form: Any, change: bool) -> None:
        obj.html = to_html(obj.text)
        super().save_model(request, obj, form, change)
        transaction.on_commit(announcements.announce_change)

    def delete_model(self, request: HttpRequest, obj: Announcement) -> None:
        super().delete_model(request, obj)
        transaction.on_commit(announcements.announce_change)

    def delete_queryset(self, request: HttpRequest, queryset: Any) -> None:
        super().delete_queryset(request, queryset)
        transaction.on_commit(announcements.announce_change)


@admin.register(AnnouncementDismissal)
class AnnouncementDismissalAdmin(ReadOnlyAdmin):
    list_display = ["announcement", "user", "created_at"]
    list_select_related = ["announcement", "user"]
    search_fields = ["user__email"]
