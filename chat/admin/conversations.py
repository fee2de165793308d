"""Admin of conversations, messages and runs: read-only, as they are records."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from billing import credits
from chat.models import Conversation, Message, MessagePart, Run
from chatproject.lib.admin import ReadOnlyAdmin, column

READ = "chat.view_message"


class TextGuard(ReadOnlyAdmin):
    """Shows the text of messages, in `text_fields`, only to staff who may view messages.

    Without that right the fields are neither shown nor searched, nor can a filter in the address probe
    them.
    """

    text_fields: tuple[str, ...] = ()

    def get_exclude(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return () if request.user.has_perm(READ) else self.text_fields

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        shown = super().get_list_display(request)
        if request.user.has_perm(READ):
            return [*shown]
        return [name for name in shown if name not in self.text_fields]

    def get_search_fields(self, request: HttpRequest) -> list[str]:
        searched = super().get_search_fields(request)
        if request.user.has_perm(READ):
            return [*searched]
        return [name for name in searched if name not in self.text_fields]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        is_text = lookup.split("__")[0] in self.text_fields
        return (request.user.has_perm(READ) or not is_text) and super().lookup_allowed(
            lookup, value, request
        )


@admin.register(Conversation)
class ConversationAdmin(TextGuard):
    text_fields = ("title",)
    list_display = ["id", "title", "owner", "assistant", "updated_at", "deleted_at"]
    list_filter = ["assistant", "updated_at"]
    list_select_related = ["owner", "assistant"]
    search_fields = ["title", "owner__email", "id"]
    date_hierarchy = "created_at"


class PartInline(admin.TabularInline):  # type: ignore[type-arg]
    model = MessagePart
    extra = 0
    can_delete = False
    readonly_fields = ["position", "kind", "data"]


@admin.register(Message)
class MessageAdmin(ReadOnlyAdmin):
    list_display = ["id", "conversation", "role", "status", "created_at"]
    list_filter = ["role", "status"]
    list_select_related = ["conversation"]
    search_fields = ["id", "conversation__id"]
    inlines = [PartInline]


@admin.register(MessagePart)
class MessagePartAdmin(ReadOnlyAdmin):
    """Parts are text of messages, so that their own permission is not enough."""

    list_display = ["message", "position", "kind"]
    list_filter = ["kind"]
    search_fields = ["message__id"]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm(READ) and super().has_view_permission(request, obj)


@admin.register(Run)
class RunAdmin(TextGuard):
    # A provider's error may quote the prompt.
    text_fields = ("prefix", "prefix_reasoning", "error_message")
    list_display = [
        "id",
        "user",
        "model",
        "status",
        "attempt",
        "queued_at",
        "seconds",
        "prompt_tokens",
        "completion_tokens",
        column("charged", credits.show, "credits"),
        "error_code",
    ]
    list_filter = ["status", "error_code", "error_cause", "provider", "model", "queued_at"]
    search_fields = ["id", "user__email", "conversation__id"]
    date_hierarchy = "queued_at"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        return super().get_queryset(request).select_related("user", "model")

    @admin.display(description="seconds")
    def seconds(self, run: Run) -> str:
        """Return the time from queueing to the end."""
        if run.ended_at is None:
            return ""
        return f"{(run.ended_at - run.queued_at).total_seconds():.1f}"
