"""The report page of the staff, and its button that has the books checked now."""

from __future__ import annotations

from datetime import date

import redis
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.views.decorators.http import require_POST

from billing import queue
from billing.admin.base import address, insist, staff_id
from billing.ledger import staff_actions
from billing.reports import staff_report

# Who may see the checks of the books may see the figures.
VIEW = "billing.view_ledgercheck"
MONTHS = 24  # that can be chosen


def show(request: HttpRequest) -> HttpResponse:
    """A month's flows, and how things stand now."""
    insist(request, VIEW)
    month = staff_report.month_of(request.GET.get("month", ""))
    context = {
        **admin.site.each_context(request),
        "title": "Billing report",
        "report": staff_report.make(month),
        "months": _months(month),
        "now": timezone.now(),
    }
    return TemplateResponse(request, "admin/billing/report.html", context)


def _months(chosen: date) -> list[date]:
    """The months to choose from, the newest first."""
    newest = timezone.localdate().replace(day=1)
    months = {staff_report.later(newest, -number) for number in range(MONTHS)}
    return sorted({*months, chosen}, reverse=True)


@require_POST
def check(request: HttpRequest) -> HttpResponse:
    """Have the books checked by a job."""
    insist(request, VIEW)
    try:
        queue.enqueue_task("check ledger")
    except redis.RedisError:
        messages.error(request, "The queue does not answer just now. Try again in a minute.")
    else:
        staff_actions.record(
            actor_id=staff_id(request), action="check ledger", target="ledger", ip=address(request)
        )
        messages.success(request, "The books are being checked. Reload this page in a moment.")
    return HttpResponseRedirect(reverse("billing_report"))


urlpatterns: list[URLPattern] = [
    path("", admin.site.admin_view(show), name="billing_report"),
    path("check/", admin.site.admin_view(check), name="billing_report_check"),
]
