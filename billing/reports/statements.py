"""Account statements: an account's ledger as its owner sees it, page by page or as a CSV file.

Keyset pagination over the entries' numbers (`seq`), which are in order of time and have no gaps, makes
the thousandth page cost as much as the first.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Count, Max, Q, QuerySet, Sum
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext, gettext_lazy

from billing.credits import exact
from billing.metering import usage
from billing.models import Account, DailyUsage, Hold, LedgerEntry, UsageRecord

Kind = LedgerEntry.Kind

PAGE = 50  # lines of a page
PART = 2_000  # lines of a file per query
PENDING = 20  # holds that a page shows

# The kinds of lines that users choose from, each with its title and its kinds of entries.
KINDS: dict[str, tuple[Promise, tuple[Kind, ...]]] = {
    "usage": (gettext_lazy("Replies"), (Kind.USAGE,)),
    "purchase": (gettext_lazy("Purchases"), (Kind.PURCHASE, Kind.BONUS)),
    "given": (gettext_lazy("Given"), (Kind.GRANT, Kind.PROMO)),
    "refund": (gettext_lazy("Refunds and disputes"), (
        Kind.REFUND, Kind.REFUND_REVERSAL, Kind.DISPUTE, Kind.DISPUTE_WON, Kind.DEBT_RECOVERY,
    )),
    "expire": (gettext_lazy("Expired"), (Kind.EXPIRE,)),
    "correction": (gettext_lazy("Corrections"), (Kind.ADJUST_UP, Kind.ADJUST_DOWN)),
}  # fmt: skip

TITLES = {
    Kind.PURCHASE: gettext_lazy("Purchase"),
    Kind.BONUS: gettext_lazy("Bonus"),
    Kind.GRANT: gettext_lazy("Credits given"),
    Kind.PROMO: gettext_lazy("Promo code"),
    Kind.ADJUST_UP: gettext_lazy("Correction"),
    Kind.REFUND_REVERSAL: gettext_lazy("Refund that did not go through"),
    Kind.DISPUTE_WON: gettext_lazy("Disputed payment settled"),
    Kind.USAGE: gettext_lazy("Reply"),
    Kind.EXPIRE: gettext_lazy("Expired credits"),
    Kind.ADJUST_DOWN: gettext_lazy("Correction"),
    Kind.REFUND: gettext_lazy("Refund"),
    Kind.DISPUTE: gettext_lazy("Disputed payment"),
    Kind.DEBT_RECOVERY: gettext_lazy("Debt paid"),
}

# Entries whose note was written for the user.
WITH_NOTE = {Kind.GRANT, Kind.PROMO, Kind.ADJUST_UP, Kind.ADJUST_DOWN}

FINISHES = {
    UsageRecord.Finish.STOPPED: gettext_lazy("stopped"),
    UsageRecord.Finish.FAILED: gettext_lazy("failed midway"),
}


@dataclass(frozen=True, slots=True)
class Filter:
    """A choice of lines: a key of KINDS, a model's name, days of the site's time zone."""

    kind: str = ""
    model: str = ""
    first: date | None = None
    last: date | None = None

    @property
    def leaves_out(self) -> bool:
        """Whether lines between others are left out, so that the balances are not consecutive."""
        return bool(self.kind or self.model)


EVERYTHING = Filter()


@dataclass(frozen=True, slots=True)
class StatementLine:
    """One entry of the ledger in words; amounts in micro-credits."""

    seq: int
    at: datetime
    kind: Kind
    title: str
    amount: int
    balance_before: int
    balance_after: int
    note: str = ""
    order_id: UUID | None = None
    model: str = ""
    conversation: UUID | None = None
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    is_counted: bool = False  # by us, as the provider reported no usage
    finish: str = ""

    @classmethod
    def of(cls, entry: LedgerEntry, used: dict[str, Any]) -> StatementLine:
        """Describe an entry; `used` has the sums of its usage records, if it has any."""
        kind = Kind(entry.kind)
        finish = ""
        if used.get("stopped"):
            finish = str(FINISHES[UsageRecord.Finish.STOPPED])
        elif used.get("failed"):
            finish = str(FINISHES[UsageRecord.Finish.FAILED])
        title = str(TITLES[kind])
        if entry.hold and entry.hold.key.startswith("embed:"):
            title = gettext("Embeddings")
        elif entry.hold and entry.hold.key.startswith("insight:"):
            title = gettext("Insights")
            if used.get("name"):  # of the category
                title = f"{title}: {gettext(used['name'])}"
        if entry.order and kind in (Kind.PURCHASE, Kind.BONUS):
            title = f"{title}: {entry.order.package_name}"
        return cls(
            seq=entry.seq,
            at=entry.created_at,
            kind=kind,
            title=title,
            amount=entry.amount,
            balance_before=entry.balance_before,
            balance_after=entry.balance_after,
            note=gettext(entry.note) if entry.note and kind in WITH_NOTE else "",
            order_id=entry.order_id,
            model=entry.hold.model if entry.hold else "",
            conversation=entry.hold.conversation if entry.hold else None,
            input_tokens=used.get("input", 0),
            cached_tokens=used.get("cached", 0),
            output_tokens=used.get("output", 0),
            reasoning_tokens=used.get("reasoning", 0),
            is_counted=bool(used.get("counted") and (used["input"] or used["output"])),
            finish=finish,
        )

    @property
    def has_tokens(self) -> bool:
        return bool(self.input_tokens or self.output_tokens)

    @property
    def cells(self) -> list[object]:
        """The line's values for the COLUMNS of the file."""
        tokens = self.input_tokens, self.cached_tokens, self.output_tokens, self.reasoning_tokens
        return [
            self.seq,
            timezone.localtime(self.at).isoformat(timespec="seconds"),
            self.title,
            self.model,
            *(tokens if self.has_tokens else ("",) * 4),
            self.conversation or "",
            self.order_id or "",
            self.note,
            Amount(exact(self.amount)),
            Amount(exact(self.balance_after)),
        ]


class Amount(str):
    """A number that this module has formatted: its minus sign does not begin a formula."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A page of lines, the newest first. `older` is the `before_seq` of the next page, if any."""

    lines: list[StatementLine]
    older: int | None
    pending: list[Hold] = field(default_factory=list)

    @property
    def opening(self) -> int:
        """The balance before the first of these lines."""
        return self.lines[-1].balance_before if self.lines else 0

    @property
    def closing(self) -> int:
        """The balance after the last of these lines."""
        return self.lines[0].balance_after if self.lines else 0


def history(
    account: Account,
    *,
    before_seq: int | None = None,
    wanted: Filter = EVERYTHING,
    length: int | None = None,
) -> Statement:
    """Return a page of an account's statement, of PAGE or `length` lines, in three queries at most."""
    length = length or PAGE
    entries = _entries(account.pk, wanted).order_by("-seq")
    if before_seq is not None:
        entries = entries.filter(seq__lt=before_seq)
    found = list(entries[: length + 1])
    page = found[:length]
    pending = []
    if before_seq is None and wanted == EVERYTHING and account.held:
        active = Hold.objects.filter(account=account, status=Hold.Status.ACTIVE)
        pending = list(active.order_by("-created_at")[:PENDING])
    return Statement(
        lines=_lines(page),
        older=page[-1].seq if len(found) > length else None,
        pending=pending,
    )


def models_of(user_id: int) -> list[str]:
    """Return the names of the models that a user has used, on rolled-up days and lately."""
    lately = timezone.now() - timedelta(days=2)
    names = DailyUsage.objects.filter(user=user_id).values_list("model")
    fresh = UsageRecord.objects.filter(user=user_id, created_at__gte=lately).values_list("model")
    return sorted({name for (name,) in names.order_by().distinct().union(fresh.order_by())})


def _entries(account_id: int, wanted: Filter) -> QuerySet[LedgerEntry]:
    entries = LedgerEntry.objects.filter(account=account_id).select_related("hold", "order")
    if wanted.kind:
        entries = entries.filter(kind__in=KINDS[wanted.kind][1])
    if wanted.model:
        entries = entries.filter(hold__model=wanted.model)
    if wanted.first:
        entries = entries.filter(created_at__gte=usage.start_of(wanted.first))
    if wanted.last:
        entries = entries.filter(created_at__lt=usage.start_of(wanted.last + timedelta(days=1)))
    return entries


def _lines(entries: list[LedgerEntry]) -> list[StatementLine]:
    used: dict[UUID | None, dict[str, Any]] = {
        row["hold_id"]: dict(row)
        for row in UsageRecord.objects.filter(
            hold__in=[entry.hold_id for entry in entries if entry.hold_id]
        )
        .exclude(finish=UsageRecord.Finish.CRASHED)  # the operator paid for it
        .values("hold_id")
        .annotate(
            input=Sum("input_tokens"),
            cached=Sum("cached_tokens"),
            output=Sum("output_tokens"),
            reasoning=Sum("reasoning_tokens"),
            name=Max("assistant"),
            counted=Count("pk", filter=Q(source=UsageRecord.Source.COUNTED)),
            stopped=Count("pk", filter=Q(finish=UsageRecord.Finish.STOPPED)),
            failed=Count("pk", filter=Q(finish=UsageRecord.Finish.FAILED)),
        )
        .order_by()
    }
    return [StatementLine.of(entry, used.get(entry.hold_id, {})) for entry in entries]


# --- The file ---------------------------------------------------------------------------------

COLUMNS = (
    "number", "date", "what", "model", "input_tokens", "cached_tokens", "output_tokens",
    "reasoning_tokens", "chat", "order", "note", "amount", "balance",
)  # fmt: skip


def csv_part(
    account_id: int, *, after_seq: int, until_seq: int, wanted: Filter = EVERYTHING
) -> tuple[str, int | None]:
    """Return a part of the statement as CSV, oldest line first, and the `after_seq` of the next part.

    The part after 0 begins with the names of the columns; None follows the last part. Entries never
    change, so that all parts up to `until_seq` are consistent, whatever is written meanwhile. Amounts
    are exact: without a filter they add up to the balance after `until_seq`.
    """
    found = list(
        _entries(account_id, wanted)
        .filter(seq__gt=after_seq, seq__lte=until_seq)
        .order_by("seq")[:PART]
    )
    rows: list[Iterable[object]] = [] if after_seq else [COLUMNS]
    rows += [line.cells for line in _lines(found)]
    return to_csv(rows), found[-1].seq if len(found) == PART else None


# First characters that make spreadsheets evaluate a cell.
FORMULA_STARTS = (
    "=", "+", "-", "@", "\N{FULLWIDTH EQUALS SIGN}", "\N{FULLWIDTH PLUS SIGN}",
    "\N{FULLWIDTH HYPHEN-MINUS}", "\N{FULLWIDTH COMMERCIAL AT}",
)  # fmt: skip


def to_csv(rows: Iterable[Iterable[object]]) -> str:
    """Format rows as CSV. Text that a spreadsheet would take for a formula gets an apostrophe first."""
    text = io.StringIO()
    csv.writer(text).writerows(
        [
            f"'{cell}"
            if isinstance(cell, str)
            and not isinstance(cell, Amount)
            and cell.lstrip().startswith(FORMULA_STARTS)
            else cell
            for cell in row
        ]
        for row in rows
    )
    return text.getvalue()
