"""The billing report for staff, and its button that starts a check of the ledger."""

from __future__ import annotations

import redis
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from billing import queue
from billing.ledger import staff_actions
from billing.models import LedgerCheck
from billing.reports import staff_report
from chatproject.lib.admin import client_ip, require_permission, staff_id

# The permission to see checks of the ledger includes the report.
VIEW = "billing.view_ledgercheck"
MONTHS = 24  # in the list to choose from


def show(request: HttpRequest) -> HttpResponse:
    """Show a month's flows, and the present balances and problems."""
    require_permission(request, VIEW)
    month = staff_report.month_of(request.GET.get("month", ""))
    newest = timezone.localdate().replace(day=1)
    months = {month, *(staff_report.later(newest, -number) for number in range(MONTHS))}
    context = {
        **admin.site.each_context(request),
        "title": _("Billing report"),
        "report": staff_report.make(month),
        "months": sorted(months, reverse=True),
        "now": timezone.now(),
    }
    return TemplateResponse(request, "admin/billing/report.html", context)


@require_POST
def check(request: HttpRequest) -> HttpResponse:
    """Enqueue a check of the ledger."""
    require_permission(request, VIEW)
    try:
        queue.enqueue_task("check ledger")
    except redis.RedisError:
        messages.error(request, _("The queue is not responding. Try again in a minute."))
    else:
        staff_actions.record(
            actor_id=staff_id(request),
            action="check ledger",
            target="ledger",
            ip=client_ip(request),
        )
        LogEntry.objects.create(
            user_id=staff_id(request),
            content_type=ContentType.objects.get_for_model(LedgerCheck),
            object_repr="ledger",
            action_flag=CHANGE,
            change_message=_("Check ledger"),
        )
        messages.success(request, _("The ledger is being checked. Reload this page in a moment."))
    return HttpResponseRedirect(reverse("billing_report"))


urlpatterns: list[URLPattern] = [
    path("", admin.site.admin_view(show), name="billing_report"),
    path("check/", admin.site.admin_view(check), name="billing_report_check"),
]
