"""Admin of usage, and of spending limits set by staff."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.translation import gettext_lazy

from billing.admin.base import AuditedAdmin, RecordAdmin, amount
from billing.credits import CreditsFormField
from billing.models import DailyUsage, SpendingLimit, UsageRecord
from chatproject.lib.admin import LargeTable

AMOUNTS = ("cost", "charged", "shortfall", "absorbed")


@admin.register(UsageRecord)
class UsageRecordAdmin(LargeTable, RecordAdmin):
    sortable_by = ["created_at"]
    list_display = [
        "created_at",
        "user",
        "model",
        "purpose",
        "input_tokens",
        "output_tokens",
        *map(amount, AMOUNTS),
        "source",
        "finish",
    ]
    list_filter = ["purpose", "source", "finish", "created_at"]
    list_select_related = ["user"]
    search_fields = ["user__email", "model__exact", "run_id__exact"]
    search_help_text = gettext_lazy("E-mail address, name of a model, or id of a run")
    credit_fields = AMOUNTS
    hidden = ("assistant",)  # the name of a user's own one is private


@admin.register(DailyUsage)
class DailyUsageAdmin(LargeTable, RecordAdmin):
    sortable_by = ["day"]
    list_display = ["day", "user", "model", "purpose", "calls", *map(amount, AMOUNTS)]
    list_filter = ["purpose", "day"]
    list_select_related = ["user"]
    search_fields = ["user__email", "model__exact"]
    credit_fields = AMOUNTS


@admin.register(SpendingLimit)
class SpendingLimitAdmin(AuditedAdmin):
    list_display = ["whom", "period", "model", amount("amount", "limit"), "set_by"]
    list_filter = ["set_by", "period"]
    list_select_related = ["account__user"]
    search_fields = ["account__user__email", "model"]
    autocomplete_fields = ["account"]
    # Limits set here are of staff; users set their own on their page.
    exclude = ["set_by"]
    form_fields = {"amount": CreditsFormField}

    def is_by_staff(self, limit: SpendingLimit | None) -> bool:
        """Return whether a limit was set here and not by its user; None stands for any limit."""
        return limit is None or limit.set_by == SpendingLimit.SetBy.STAFF

    def has_change_permission(self, request: HttpRequest, obj: SpendingLimit | None = None) -> bool:
        return self.is_by_staff(obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: SpendingLimit | None = None) -> bool:
        return self.is_by_staff(obj) and super().has_delete_permission(request, obj)

    @admin.display(description=gettext_lazy("account"), ordering="account")
    def whom(self, limit: SpendingLimit) -> Any:
        """Return the user of a limit, or "everybody" for one of the whole site."""
        return limit.account.user if limit.account else "everybody"
