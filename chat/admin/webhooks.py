"""Admin of outgoing webhooks: which user has them, and switching them off.

Neither paths and secrets, by which others could post, nor messages, which belong to their users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from chat.models import Webhook
from chat.webhooks import ending
from chatproject.lib.admin import ReadOnlyAdmin, values_filter

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Webhook]
else:
    Base = admin.ModelAdmin


@admin.register(Webhook)
class WebhookAdmin(ReadOnlyAdmin, Base):
    fields = [
        *("owner", "host", "events", "includes_text", "active", "created_at"),
        *("failing_since", "disabled", "disabled_at"),
    ]
    list_display = ["created_at", "owner", "host", "active", "failing_since", "disabled"]
    list_select_related = ["owner"]
    list_filter = ["active", ("disabled", values_filter(*Webhook.Disabled.values))]
    list_per_page = 50
    show_full_result_count = False
    sortable_by = ["created_at"]
    search_fields = ["owner__email", "host"]
    search_help_text = gettext_lazy("Host, or e-mail address of the user")
    actions = ["switch_off"]

    @admin.action(description=gettext_lazy("Switch off"), permissions=["switch_off"])
    def switch_off(self, request: HttpRequest, queryset: QuerySet[Webhook]) -> None:
        """Switch off webhooks, each with an entry in the admin's log and a mail to its user."""
        for webhook in queryset:
            if ending.disable(webhook.pk, Webhook.Disabled.STAFF):
                self.log_change(request, webhook, _("Switched off."))

    def has_switch_off_permission(self, request: HttpRequest) -> bool:
        """Return whether a member of staff may switch off webhooks."""
        return request.user.has_perm("chat.change_webhook")
