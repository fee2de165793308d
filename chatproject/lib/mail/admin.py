"""Admin of the outbox: the fate of each mail, without its text and its recipients."""

from __future__ import annotations

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from chatproject.lib.admin import BaseAdmin, LargeTable, ReadOnlyAdmin, staff_id
from chatproject.lib.mail import outbox
from chatproject.lib.mail.models import OutgoingMail


@admin.register(OutgoingMail)
class OutgoingMailAdmin(LargeTable, ReadOnlyAdmin, BaseAdmin):
    sortable_by = ["created_at"]
    list_display = ["id", "created_at", "status", "attempts", "due_at", "sent_at", "error"]
    list_filter = ["status", "is_delayed", "created_at"]
    search_fields = ["recipients"]
    search_help_text = gettext_lazy("The complete e-mail address of a recipient")
    ordering = ["-created_at"]
    fields = [
        "message_id",
        "status",
        "attempts",
        "error",
        "is_delayed",
        "created_at",
        "due_at",
        "sent_at",
        "recipients",
    ]
    actions = ["send_again"]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[OutgoingMail], search_term: str
    ) -> tuple[QuerySet[OutgoingMail], bool]:
        """Find the mails to an address by its hash."""
        if search_term:
            queryset = queryset.filter(recipients__contains=outbox.hash_of(search_term))
        return queryset, False

    def has_resend_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("mail.resend_outgoingmail")

    @admin.action(description=gettext_lazy("Send again"), permissions=["resend"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[OutgoingMail]) -> None:
        """Queue failed mails again; their text is kept for some days."""
        sent = [mail for mail in queryset if outbox.send_again(mail)]
        LogEntry.objects.log_actions(
            staff_id(request), sent, CHANGE, change_message=_("Sent again"), single_object=False
        )
        skipped = len(queryset) - len(sent)
        self.message_user(request, f"{len(sent)} queued again.")
        if skipped:
            self.message_user(
                request,
                f"{skipped} skipped: only failed mails can be sent again, within"
                f" {outbox.FAILED_TEXT_KEPT.days} days.",
                messages.WARNING,
            )
