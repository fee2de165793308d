"""Admin for operators: audit records, checks of the ledger, numbers of receipts."""

from __future__ import annotations

from django.contrib import admin
from django.utils.translation import gettext_lazy

from billing.admin.base import RecordAdmin
from billing.models import AuditRecord, InvoiceCounter, LedgerCheck
from chatproject.lib.admin import values_filter

# The usual ones; a search finds any other.
ACTIONS = (
    *("give credits", "take credits", "refund", "set price", "change plan"),
    *("freeze account", "unfreeze account", "reset messages"),
)


@admin.register(AuditRecord)
class AuditRecordAdmin(RecordAdmin):
    list_display = ["created_at", "actor", "action", "target", "reason", "ip"]
    list_filter = [("action", values_filter(*ACTIONS)), "created_at"]
    list_select_related = ["actor"]
    search_fields = ["actor__email", "action", "target", "reason"]


@admin.register(LedgerCheck)
class LedgerCheckAdmin(RecordAdmin):
    list_display = ["started_at", "seconds", "is_full", "entries", "found"]
    list_filter = ["is_full", "started_at"]

    @admin.display(description=gettext_lazy("seconds"))
    def seconds(self, check: LedgerCheck) -> str:
        """Return the duration of the check."""
        return f"{(check.ended_at - check.started_at).total_seconds():.1f}"

    @admin.display(description=gettext_lazy("problems"))
    def found(self, check: LedgerCheck) -> int:
        """Return the number of problems that the check found."""
        return len(check.problems)


@admin.register(InvoiceCounter)
class InvoiceCounterAdmin(RecordAdmin):
    list_display = ["series", "last"]
