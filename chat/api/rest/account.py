"""Search, and the money of the account: balance, usage, ledger."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Annotated, Any, Literal

from ninja import Router
from pydantic import Field

from accounts.models import Scope
from billing.credits import exact
from billing.metering import usage
from billing.reports import balances, statements, usage_report
from chat.api.rest import paging
from chat.api.rest.auth import ApiRequest, needs
from chat.api.rest.errors import Problem
from chat.api.rest.schemas import (
    BalanceOut,
    Cursor,
    LedgerEntry,
    Limit,
    Page,
    SearchResult,
    UsageReport,
    responses,
)
from chat.conversations import search
from chatproject.lib import rate_limits

router = Router(tags=["account"])

MOST_DAYS = 366


@router.get(
    "/search", auth=needs(Scope.READ), response=responses({200: SearchResult}), tags=["search"]
)
def search_conversations(
    request: ApiRequest,
    q: Annotated[
        str,
        Field(
            min_length=1,
            max_length=search.MAX_CHARACTERS,
            description='Words, "phrases" and -excluded words.',
        ),
    ],
    cursor: Cursor = "",
    limit: Limit = 50,
) -> dict[str, Any]:
    """Search the titles and messages of the conversations; the best 30 are found."""
    rate_limits.hit("searches", request.auth.user.pk)
    found = search.search(request.auth.user, q)
    items = [
        {
            "conversation": hit.conversation,
            "title": "".join(text for text, _is_match in hit.title),
            "updated_at": hit.updated_at,
            "archived": hit.is_archived,
            "message": hit.message,
            "snippet": "".join(text for text, _is_match in hit.snippet),
        }
        for hit in found.hits
    ]
    return {**paging.page(items, cursor, limit), "note": found.note}


@router.get("/balance", auth=needs(Scope.USAGE), response=responses({200: BalanceOut}))
def read_balance(request: ApiRequest) -> dict[str, Any]:
    """Return the credits of the account."""
    found = balances.of_user(request.auth.user.pk)
    return {
        "available": exact(found.available),
        "balance": exact(found.balance),
        "held": exact(found.held),
        "debt": exact(found.debt),
        "frozen": found.is_frozen,
        "warning": found.low,
    }


@router.get("/usage", auth=needs(Scope.USAGE), response=responses({200: UsageReport}))
def read_usage(
    request: ApiRequest,
    first: Annotated[
        date | None, Field(description="By default the first day of the month of `last`.")
    ] = None,
    last: Annotated[date | None, Field(description="By default today.")] = None,
    cursor: Cursor = "",
    limit: Limit = 50,
) -> dict[str, Any]:
    """Return the usage by day and model, from the first to the last day, both included; a year at most."""
    end = last or usage.today()
    begin = first or end.replace(day=1)
    if (
        not timedelta(0) <= end - begin < timedelta(days=MOST_DAYS)
        or not 1000 <= begin.year <= end.year <= 9000
    ):
        message = f"The days are in order, and at most {MOST_DAYS}."
        raise Problem("invalid_request", fields=[{"field": "first", "message": message}])
    report = usage_report.report(request.auth.user.pk, first=begin, last=end)
    items = [
        {
            "day": row.day,
            "model": row.model,
            "calls": row.sums.calls,
            "input_tokens": row.sums.input_tokens,
            "cached_tokens": row.sums.cached_tokens,
            "output_tokens": row.sums.output_tokens,
            "reasoning_tokens": row.sums.reasoning_tokens,
            "charged": exact(row.sums.charged),
        }
        for row in report.rows
    ]
    page = paging.page(items, cursor, limit)
    return {"first": begin, "last": end, **page, "charged": exact(report.total.charged)}


@router.get("/ledger", auth=needs(Scope.USAGE), response=responses({200: Page[LedgerEntry]}))
def list_ledger(
    request: ApiRequest,
    cursor: Cursor = "",
    limit: Limit = 50,
    kind: Literal["", "usage", "purchase", "given", "refund", "expire", "correction"] = "",
) -> dict[str, Any]:
    """List the entries of the account's ledger, the newest first."""
    account = balances.of_user(request.auth.user.pk).account
    page = statements.history(
        account,
        before_seq=paging.number(cursor),
        wanted=statements.Filter(kind=kind),
        length=limit,
    )
    items = [
        {
            "seq": line.seq,
            "at": line.at,
            "kind": str(line.kind.value),
            "title": line.title,
            "note": line.note,
            "amount": exact(line.amount),
            "balance_after": exact(line.balance_after),
            "order": line.order_id,
            "model": line.model,
            "conversation": line.conversation,
        }
        for line in page.lines
    ]
    return {"items": items, "next": str(page.older) if page.older is not None else None}
