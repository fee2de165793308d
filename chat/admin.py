"""Staff's view of conversations and runs. What people wrote is read-only here."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from billing import credits
from billing.admin.base import BillingAdmin, amount
from billing.metering import pricing
from chat.models import Assistant, Conversation, LanguageModel, Message, MessagePart, Run


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    """Shows rows that only the program writes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(LanguageModel)
class LanguageModelAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = [
        "name",
        "provider_model",
        "context_tokens",
        "max_output_tokens",
        "continuation",
        "enabled",
        "price_now",
    ]
    list_filter = ["enabled"]
    search_fields = ["name", "provider_model"]

    @admin.display(description="price, in / out")
    def price_now(self, model: LanguageModel) -> str:
        """Credits per million tokens now; without a price it is not offered."""
        price = pricing.in_force(model.provider_model)
        if price is None:
            return "no price: not offered"
        return f"{credits.exact(price.in_per_m)} / {credits.exact(price.out_per_m)}"


@admin.register(Assistant)
class AssistantAdmin(BillingAdmin):
    credit_fields = ("message_fee",)
    list_display = ["name", "model", "position", "enabled"]
    list_filter = ["enabled", "model"]
    search_fields = ["name", "slug"]
    prepopulated_fields = {"slug": ["name"]}


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
        amount("charged", "credits"),
        "error_code",
    ]
    list_filter = ["status", "error_code", "model", "queued_at"]
    search_fields = ["id", "user__email", "conversation__id"]
    date_hierarchy = "queued_at"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        return super().get_queryset(request).select_related("user", "model")

    @admin.display(description="seconds")
    def seconds(self, run: Run) -> str:
        """From the queue to the end."""
        if run.ended_at is None:
            return ""
        return f"{(run.ended_at - run.queued_at).total_seconds():.1f}"
