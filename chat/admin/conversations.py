"""Admin of conversations, messages and runs: read-only, as they are records."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from billing import credits
from chat.models import Conversation, Message, MessagePart, Run
from chatproject.lib.admin import ReadOnlyAdmin, column


@admin.register(Conversation)
class ConversationAdmin(ReadOnlyAdmin):
    list_display = ["title", "owner", "assistant", "updated_at", "deleted_at"]
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
    list_display = ["message", "position", "kind"]
    list_filter = ["kind"]
    search_fields = ["message__id"]


@admin.register(Run)
class RunAdmin(ReadOnlyAdmin):
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
    list_filter = ["status", "error_code", "model", "queued_at"]
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
