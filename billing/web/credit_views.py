"""The pages about credits: what one has, what happened to it, and how much of it may be used.

Buying is in order_views. Each page makes a small, fixed number of queries.
"""

from __future__ import annotations

from datetime import date, timedelta
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import redis
from django.conf import settings
from django.contrib import messages
from django.core.cache import cache
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods

from billing.credits import exact, show
from billing.ledger import postings, promo_codes
from billing.ledger.promo_codes import PromoRefused
from billing.metering import limits
from billing.metering.usage import today
from billing.models import SpendingLimit
from billing.payments import packages
from billing.reports import balances, charts, statements, usage_report
from billing.reports.usage_report import ModelRow, Report, Sums
from billing.web.forms import HistoryForm, LimitsForm
from chatproject.lib.db import MoneyBusy, streamed_response

if TYPE_CHECKING:
    from chatproject.lib.http import Request


LOTS = 20  # that the overview shows
ORDERS = 5

PROMO_TRIES = 10  # of codes, by one user in an hour
HOUR = 60 * 60


# --- What one has -----------------------------------------------------------------------------


@require_GET
@never_cache
def overview(request: Request) -> HttpResponse:
    """The balance, what it is made of, the last orders."""
    return _overview(request)


@require_GET
@never_cache
def balance(request: Request) -> HttpResponse:
    """The balance for programs, in credits: decimal numbers as text, as floats would not be exact."""
    found = balances.of_user(request.user.pk)
    return JsonResponse(
        {
            "available": exact(found.available),
            "balance": exact(found.balance),
            "held": exact(found.held),
            "low": found.low,
        }
    )


@require_http_methods(["GET", "POST"])
@never_cache
def redeem(request: Request) -> HttpResponse:
    """Redeem a promo code."""
    if request.method == "GET":
        return redirect("billing:overview")  # a reload of the page that an error was told on
    code = request.POST.get("code", "")[:100]
    refusal = _too_many_tries(request.user.pk)
    if not refusal:
        try:
            entry = promo_codes.redeem(user_id=request.user.pk, code=code)
        except PromoRefused as error:
            refusal = error.message
        except MoneyBusy:
            refusal = "Too many people use this code right now. Try again in a moment."
        else:
            messages.success(request, f"You got {show(entry.amount)} credits.")
            return redirect("billing:overview")
    return _overview(request, code=code, promo_error=refusal)


def _too_many_tries(user_id: int) -> str:
    """Count a try at a code; a sentence when there were too many, as codes are not to be guessed."""
    key = f"promo-tries:{user_id}"
    try:
        cache.add(key, 0, HOUR)
        tries = cache.incr(key)
    except ValueError:
        tries = 1  # its hour ended between the two calls
    except redis.RedisError:
        return "Codes cannot be checked at the moment. Try again in a minute."
    if tries > PROMO_TRIES:
        return f"You have tried {PROMO_TRIES} codes within an hour. Try again later."
    return ""


def _overview(request: Request, *, code: str = "", promo_error: str = "") -> HttpResponse:
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
        },
        status=400 if promo_error else 200,
    )


# --- What happened ----------------------------------------------------------------------------


@require_GET
@never_cache
def history(request: Request) -> HttpResponse:
    """The statement, a page at a time."""
    form = _history_form(request)
    before = form.cleaned_data.get("before")
    statement = statements.history(
        postings.account_of(request.user.pk), before_seq=before, wanted=form.wanted
    )
    return render(
        request,
        "billing/history.html",
        {
            "page": "history",
            "form": form,
            "wanted": form.wanted,
            "query": _query(form.wanted),
            "statement": statement,
            "is_newest": before is None,
        },
    )


@require_GET
@never_cache
def history_csv(request: Request) -> HttpResponseBase:
    """The statement as a file, the oldest line first; unfiltered its amounts add up to the balance."""
    form = _history_form(request)
    if not form.is_valid():
        # A file would hide that something else was asked for.
        return redirect(f"{reverse('billing:history')}?{request.GET.urlencode()}")
    account = postings.account_of(request.user.pk)
    part = partial(_history_part, account_id=account.pk, until_seq=account.seq, wanted=form.wanted)
    return _file(
        StreamingHttpResponse(streamed_response.in_parts(part, 0)),
        "credits.csv",
    )


def _history_part(
    after_seq: int, *, account_id: int, until_seq: int, wanted: statements.Filter
) -> tuple[str, int | None]:
    return statements.csv_part(account_id, after_seq=after_seq, until_seq=until_seq, wanted=wanted)


def _history_form(request: Request) -> HistoryForm:
    form = HistoryForm(request.GET, models=statements.models_of(request.user.pk))
    form.full_clean()
    return form


def _query(wanted: statements.Filter) -> str:
    given = {
        "kind": wanted.kind,
        "model": wanted.model,
        "first": wanted.first or "",
        "last": wanted.last or "",
    }
    return urlencode({name: value for name, value in given.items() if value})


def _file(response: HttpResponseBase, name: str) -> HttpResponseBase:
    response["Content-Type"] = "text/csv; charset=utf-8"
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


# --- How much was used ------------------------------------------------------------------------


@require_GET
@never_cache
def usage(request: Request) -> HttpResponse:
    """Credits and tokens of a month, by day, model and assistant."""
    this_month = today().replace(day=1)
    month = _month(request) or this_month
    last = _next(month) - timedelta(days=1)
    report = usage_report.report(request.user.pk, first=month, last=last)
    return render(
        request,
        "billing/usage.html",
        {
            "page": "usage",
            "month": month,
            "earlier": (month - timedelta(days=1)).replace(day=1),
            "later": _next(month) if month < this_month else None,
            "error": NO_MONTH if "month" in request.GET and not _month(request) else "",
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


def _by_model(report: Report) -> list[ModelRow]:
    """The sums of each model, the dearest first."""
    sums: dict[str, Sums] = {}
    for row in report.rows:
        sums[row.model] = sums.get(row.model, Sums()) + row.sums
    rows = [ModelRow(model, total) for model, total in sums.items()]
    return sorted(rows, key=lambda row: (-row.sums.charged, row.model))


NO_MONTH = "Give a month as year and month, for example 2026-03. This is the current one."


@require_GET
@never_cache
def usage_csv(request: Request) -> HttpResponseBase:
    """The usage of a month as a file."""
    month = _month(request) or today().replace(day=1)
    report = usage_report.report(
        request.user.pk, first=month, last=_next(month) - timedelta(days=1)
    )
    text = statements.to_csv(usage_report.csv_rows(report))
    return _file(HttpResponse(text), f"usage-{month:%Y-%m}.csv")


def _month(request: Request) -> date | None:
    """The first day of the month that is asked for, if it is one that a calendar shows."""
    try:
        found = date.fromisoformat(f"{request.GET.get('month', '')}-01")
    except ValueError:
        return None
    return found if 2000 <= found.year < 2200 else None


def _next(month: date) -> date:
    return (month + timedelta(days=31)).replace(day=1)


# --- How much may be used ---------------------------------------------------------------------


@require_http_methods(["GET", "POST"])
@never_cache
def limits_page(request: Request) -> HttpResponse:
    """One's own limits on spending."""
    account = postings.account_of(request.user.pk)
    if request.method == "POST":
        form = LimitsForm(request.POST)
        if form.is_valid():
            for period in SpendingLimit.Period:
                limits.set_own(
                    account_id=account.pk, period=period, amount=form.cleaned_data[period]
                )
            messages.success(request, "Your limits are saved.")
            return redirect("billing:limits")
    else:
        form = LimitsForm(initial=LimitsForm.initial_of(limits.own(account.pk)))
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
