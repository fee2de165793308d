"""The audit of the ledger, which reads rows alone.

Each rule of audit_rules.sql is one set-based query for the rows that break it, and relies on nothing
that the ledger's code computes. All rules read one snapshot, so that a check may run at any time.
The audit never corrects anything: docs/operations/money.md explains what to do about a problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from django.apps import apps
from django.db import connection, transaction
from django.utils import timezone

from billing import credits
from billing.ledger import postings
from billing.models import Account, LedgerCheck
from chatproject.lib.db import limits, money_transaction

# An active hold this long past its end was missed by everything that resolves holds.
OVERDUE = timedelta(minutes=10)

MAX_PROBLEMS = 1_000  # per rule

TRIGGERS = {
    "billing_account_in_balance": "billing_account",
    "billing_account_plan_copied": "billing_account",
    "accounts_user_plan_kept": "accounts_user",
    "billing_hold_guarded": "billing_hold",
    "billing_order_guarded": "billing_order",
    **{
        f"{table}_append_only": table
        for table in (
            "billing_ledgerentry",
            "billing_lotmove",
            "billing_debtentry",
            "billing_usagerecord",
            "billing_modelprice",
            "billing_auditrecord",
            "billing_invoice",
        )
    },
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken rule, the place, and a sentence about it; `account_id` if it concerns one account."""

    code: str
    where: str
    message: str
    account_id: int | None = None


class Rule(NamedTuple):
    """A query for the rows that break a rule; the format is described in audit_rules.sql."""

    code: str
    message: str
    query: str
    freezes: bool


def read_rules(text: str) -> Iterator[Rule]:
    """Parse rules in the format of audit_rules.sql."""
    for block in re.split(r"^-- (?=rule:|warning:)", text, flags=re.MULTILINE)[1:]:
        head, _, query = block.partition("\n")
        name, _, message = head.partition(" | ")
        kind, _, code = name.partition(": ")
        yield Rule(code, message, query.strip(), freezes=kind == "rule")


RULES = tuple(read_rules(Path(__file__).with_name("audit_rules.sql").read_text(encoding="utf-8")))
FREEZING = frozenset(rule.code for rule in RULES if rule.freezes)

# Figures of messages that are not micro-credits.
PLAIN = {
    "account_id", "seq", "last_seq", "previous", "count", "owner", "redeemed", "refunded",
    "amount_minor", "returned", "sum",
}  # fmt: skip

# Accounts that were written to since a moment.
TOUCHED = """
WITH touched AS MATERIALIZED (
  SELECT id FROM billing_account WHERE updated_at >= %(since)s
  UNION SELECT account_id FROM billing_ledgerentry WHERE created_at >= %(since)s
  UNION SELECT account_id FROM billing_hold WHERE created_at >= %(since)s OR resolved_at >= %(since)s
    OR (status = 'active' AND expires_at < %(overdue)s)
  UNION SELECT account_id FROM billing_order WHERE updated_at >= %(since)s
  UNION SELECT o.account_id FROM billing_order o JOIN billing_refund r ON r.order_id = o.id
    WHERE r.updated_at >= %(since)s
  UNION SELECT o.account_id FROM billing_order o JOIN billing_dispute d ON d.order_id = o.id
    WHERE d.updated_at >= %(since)s
)
"""


def check(*, since: datetime | None = None, account_id: int | None = None) -> list[Problem]:
    """Return the problems of all accounts, of one, or of those written to since a moment.

    A change made past the ledger may leave no trace of its time: run the check in full each night.
    """
    return _check(since, account_id)[0]


def run_and_store(*, since: datetime | None = None) -> LedgerCheck:
    """Check all accounts (or those written to since a moment) and store the result for staff."""
    started = timezone.now()
    problems, entries = _check(since, None)
    return LedgerCheck.objects.create(
        started_at=started,
        is_full=since is None,
        entries=entries,
        problems=[asdict(problem) for problem in problems],
    )


@limits.statements(limits.LONG_STATEMENT)
def _check(since: datetime | None, account_id: int | None) -> tuple[list[Problem], int]:
    """Return the problems, and the number of ledger entries that were checked."""
    values = {"since": since, "account": account_id, "overdue": timezone.now() - OVERDUE}
    is_outermost = not connection.in_atomic_block
    with transaction.atomic(), connection.cursor() as cursor:
        if is_outermost:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # The default suits single rows; these queries sort and hash millions.
        cursor.execute("SET LOCAL work_mem = '128MB'; SET LOCAL jit = off")
        problems = list(missing_guards(cursor))
        for rule in RULES:
            query = scoped(rule.query, since, account_id)
            cursor.execute(f"{query} LIMIT {MAX_PROBLEMS}", values)
            names = [column.name for column in cursor.description]
            for row in cursor.fetchall():
                found = dict(zip(names, row, strict=True))
                figures = {
                    name: credits.exact(int(value))
                    if name not in PLAIN and isinstance(value, int | Decimal)
                    else value
                    for name, value in found.items()
                }
                message = rule.message.format(**figures)
                problems.append(Problem(rule.code, found["place"], message, found["account_id"]))
        count = "SELECT count(*) FROM billing_ledgerentry WHERE [account_id]"
        cursor.execute(scoped(count, since, account_id), values)
        [entries] = cursor.fetchone()
    return problems, entries


def missing_guards(cursor: Any) -> Iterator[Problem]:
    """Find triggers and constraints of the tables that are missing or switched off."""
    cursor.execute(
        "SELECT tgname, tgrelid::regclass::text FROM pg_trigger"
        " WHERE NOT tgisinternal AND tgenabled IN ('O', 'A')"
    )
    triggers = dict(cursor.fetchall())
    for name, table in TRIGGERS.items():
        if triggers.get(name) != table:
            yield Problem("trigger_missing", table, f"The trigger {name} is missing or disabled.")
    cursor.execute(
        "SELECT conname FROM pg_constraint WHERE convalidated"
        " UNION SELECT relname FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid"
        " WHERE indisunique AND indisvalid"
    )
    names = {name for (name,) in cursor.fetchall()}
    # Django makes up the names of constraints behind `unique=True`: those are found by column.
    cursor.execute(
        "SELECT indrelid::regclass::text, attname FROM pg_index"
        " JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]"
        " WHERE indisunique AND indisvalid AND indnkeyatts = 1 AND indpred IS NULL"
    )
    unique = set(cursor.fetchall())
    for model in apps.get_app_config("billing").get_models():
        table = model._meta.db_table
        missing = [
            f"The constraint {constraint.name} is missing."
            for constraint in model._meta.constraints
            if constraint.name not in names
        ] + [
            f"The column {field.column} is not unique."
            for field in model._meta.local_concrete_fields
            if field.unique and (table, field.column) not in unique
        ]
        for message in missing:
            yield Problem("constraint_missing", table, message)


def scoped(query: str, since: datetime | None, account_id: int | None) -> str:
    """Limit a rule's query to accounts; its parameters are `since`, `account` and `overdue`."""
    conditions = []
    if account_id is not None:
        conditions.append("{} = %(account)s")
    if since is not None:
        conditions.append("{} IN (SELECT id FROM touched)")
    condition = " AND ".join(conditions) or "TRUE"
    limited = re.sub(r"\[([a-z_.]+)\]", lambda match: condition.format(*[match[1]] * 2), query)
    return (TOUCHED if since is not None else "") + limited


def freeze(problems: list[Problem]) -> list[int]:
    """Freeze the accounts that break a rule; returns those that were active before."""
    wrong = {one.account_id for one in problems if one.account_id and one.code in FREEZING}
    active = Account.objects.filter(pk__in=wrong, status=Account.Status.ACTIVE)
    ids = list(active.values_list("pk", flat=True))
    for account_id in ids:
        money_transaction(postings.set_status, account_id=account_id, status=Account.Status.FROZEN)
    return ids
