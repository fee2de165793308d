"""Pages about credits: balance, promo codes, history, usage and limits.

Purchases are in order_views. Each page makes a small, fixed number of queries.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from billing.credits import exact, show
from billing.ledger import promo_codes, signup
from billing.ledger.promo_codes import PromoRefused
from billing.metering import limits
from billing.metering.usage import today
from billing.models import SpendingLimit
from billing.payments import packages
from billing.reports import balances, charts, statements, usage_report
from billing.reports.usage_report import ModelRow, Sums, UsageReport
from billing.web.forms import HistoryForm, LimitsForm
from chatproject.lib import rate_limits
from chatproject.lib.db import MoneyBusy, streamed_response
from chatproject.lib.stored_limits import uses

if TYPE_CHECKING:
    from chatproject.lib.http import Request


LOTS = 20  # on the overview
ORDERS = 5

TOO_MANY_CODES = gettext_lazy("You have tried too many codes. Try again in an hour.")

CSV = "text/csv; charset=utf-8"
INVALID_MONTH = gettext_lazy(
    "Enter a month as year and month, for example 2026-03. This is the current one."
)


# --- Balance ----------------------------------------------------------------------------------


@require_safe
@never_cache
def overview(request: Request) -> HttpResponse:
    """Show the balance, its lots and the last orders."""
    return _overview(request)


@require_safe
@never_cache
def balance(request: Request) -> HttpResponse:
    """Return the balance as JSON, in credits: decimal numbers as text, as floats are not exact."""
    found = balances.of_user(request.user.pk)
    return JsonResponse(
        {
            "available": exact(found.available),
            "balance": exact(found.balance),
            "held": exact(found.held),
            "low": found.low,
        }
    )


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def redeem(request: Request) -> HttpResponse:
    """Redeem a promo code."""
    if request.method != "POST":
        return redirect("billing:overview")  # a reload of the page after an error
    code = request.POST.get("code", "")[:100]
    try:
        uses.hit("promo_codes", request.user.pk)  # codes must not be guessed
    except rate_limits.RateLimited as error:
        if not request.accepts("text/html"):
            raise
        response = _overview(request, code=code, promo_error=str(TOO_MANY_CODES), status=429)
        response["Retry-After"] = str(error.retry_after)
        return response
    try:
        entry = promo_codes.redeem(user_id=request.user.pk, code=code)
    except PromoRefused as error:
        refusal = error.message
    except MoneyBusy:
        refusal = _("This code is in high demand right now. Try again in a moment.")
    else:
        messages.success(request, f"{show(entry.amount)} credits were added.")
        return redirect("billing:overview")
    return _overview(request, code=code, promo_error=refusal, status=400)


def _overview(
    request: Request, *, code: str = "", promo_error: str = "", status: int = 200
) -> HttpResponse:
    found = balances.of_user(request.user.pk)
    lots = balances.lots(found.account, LOTS + 1)
    return render(
        request,
        "billing/overview.html",
        {
            "page": "overview",
            "balance": found,
            "lots": lots[:LOTS],
            "is_cut": len(lots) > LOTS,
            "orders": packages.orders(request.user.pk, ORDERS),
            "code": code,
            "promo_error": promo_error,
            "bills_partial": settings.BILL_FAILED_PARTIAL,
        },
        status=status,
    )


# --- History ----------------------------------------------------------------------------------


@require_safe
@never_cache
def history(request: Request) -> HttpResponse:
    """Show a page of the statement."""
    form = HistoryForm(request.GET, models=statements.models_of(request.user.pk))
    form.full_clean()
    before = form.cleaned_data.get("before")
    statement = statements.history(
        signup.account_of(request.user.pk), before_seq=before, wanted=form.wanted
    )
    return render(
        request,
        "billing/history.html",
        {
            "page": "history",
            "form": form,
            "wanted": form.wanted,
            "query": form.query,
            "statement": statement,
            "is_newest": before is None,
        },
    )


@require_safe
@never_cache
def history_csv(request: Request) -> HttpResponseBase:
    """Return the statement as a file, the oldest line first; unfiltered it adds up to the balance."""
    form = HistoryForm(request.GET, models=statements.models_of(request.user.pk))
    if not form.is_valid():
        # A file would not show that the filter was ignored.
        return redirect(f"{reverse('billing:history')}?{request.GET.urlencode()}")
    account = signup.account_of(request.user.pk)
    wanted = form.wanted

    def part(after_seq: int) -> tuple[str, int | None]:
        return statements.csv_part(
            account.pk, after_seq=after_seq, until_seq=account.seq, wanted=wanted
        )

    is_head = request.method == "HEAD"
    return StreamingHttpResponse(
        streamed_response.no_part() if is_head else streamed_response.in_parts(part, 0),
        content_type=CSV,
        headers={"Content-Disposition": 'attachment; filename="credits.csv"'},
    )


# --- Usage ------------------------------------------------------------------------------------


@require_safe
@never_cache
def usage(request: Request) -> HttpResponse:
    """Show the credits and tokens of a month, by day, model and assistant."""
    this_month = today().replace(day=1)
    asked = _month(request)
    month = asked or this_month
    later = (month + timedelta(days=31)).replace(day=1)
    last = later - timedelta(days=1)
    report = usage_report.report(request.user.pk, first=month, last=last)
    return render(
        request,
        "billing/usage.html",
        {
            "page": "usage",
            "month": month,
            "earlier": (month - timedelta(days=1)).replace(day=1),
            "later": later if month < this_month else None,
            "error": INVALID_MONTH if "month" in request.GET and asked is None else "",
            "rows": report.rows[::-1],
            "total": report.total,
            "models": _by_model(report),
            "assistants": report.by_assistant,
            "chart": charts.by_day(
                ((row.day, row.model, row.sums.charged) for row in report.rows),
                first=month,
                last=last,
            ),
        },
    )


def _by_model(report: UsageReport) -> list[ModelRow]:
    """Return the sums of each model, the most expensive first."""
    sums: dict[str, Sums] = {}
    for row in report.rows:
        sums[row.model] = sums.get(row.model, Sums()) + row.sums
    rows = [ModelRow(model, total) for model, total in sums.items()]
    return sorted(rows, key=lambda row: (-row.sums.charged, row.model))


@require_safe
@never_cache
def usage_csv(request: Request) -> HttpResponse:
    """Return the usage of a month as a file."""
    month = _month(request) or today().replace(day=1)
    last = (month + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    report = usage_report.report(request.user.pk, first=month, last=last)
    return HttpResponse(
        statements.to_csv(usage_report.csv_rows(report)),
        content_type=CSV,
        headers={"Content-Disposition": f'attachment; filename="usage-{month:%Y-%m}.csv"'},
    )


def _month(request: Request) -> date | None:
    """Return the first day of the requested month; None when it is not valid or out of range."""
    try:
        found = date.fromisoformat(f"{request.GET.get('month', '')}-01")
    except ValueError:
        return None
    return found if 2000 <= found.year < 2200 else None


# --- Limits -----------------------------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def limits_page(request: Request) -> HttpResponse:
    """Show and save the user's own spending limits."""
    account = signup.account_of(request.user.pk)
    if request.method == "POST":
        form = LimitsForm(request.POST)
        if form.is_valid():
            for period in SpendingLimit.Period:
                limits.set_own(
                    account_id=account.pk, period=period, amount=form.cleaned_data[period]
                )
            messages.success(request, _("Your limits have been saved."))
            return redirect("billing:limits")
    else:
        own = {limit.period: limit.amount for limit in limits.own(account.pk)}
        form = LimitsForm(initial=own)
    return render(
        request,
        "billing/limits.html",
        {
            "page": "limits",
            "form": form,
            "of_staff": limits.of_staff(account.pk),
            "quota": limits.quota(account),
            "offers_top_up": settings.AUTO_TOP_UP,
        },
        status=400 if form.is_bound else 200,
    )
