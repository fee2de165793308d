"""Whether the books are right, told from the rows alone.

Every rule is one set-based query that finds the rows which break it, and trusts nothing that the
ledger's code says of itself. All of them read one snapshot, so that a check may run at any time.
Nothing is ever corrected here: see docs/operations.md for what to do about a problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from django.apps import apps
from django.db import connection, transaction
from django.utils import timezone

from billing import credits
from billing.ledger import postings
from billing.models import Account, LedgerCheck
from chatproject.lib.db import money_transaction

# A hold that is active so long after its end was forgotten by everybody who resolves holds.
OVERDUE = timedelta(minutes=10)

# Of one rule; more would say nothing new.
MOST_PROBLEMS = 1_000

TRIGGERS = {
    "billing_account_in_balance": "billing_account",
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
        )
    },
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A rule that is broken, where, and how, in words. `account_id` if it is about one account."""

    code: str
    where: str
    message: str
    account_id: int | None = None


class Rule(NamedTuple):
    """A query for what breaks a rule.

    `[column]` in it stands for "this account is looked at". Its first two columns are `place` and
    `account_id`; the message's figures come from the others.
    """

    code: str
    message: str
    query: str
    freezes: bool = True


RULES = (
    Rule(
        "balance_lots",
        "The balance is {balance}, but its lots hold {lots}.",
        """
        SELECT 'account ' || a.id AS place, a.id AS account_id, a.balance, coalesce(l.lots, 0) AS lots
        FROM billing_account a LEFT JOIN (
          SELECT account_id, sum(remaining) AS lots FROM billing_creditlot
          WHERE [account_id] GROUP BY account_id
        ) l ON l.account_id = a.id
        WHERE [a.id] AND a.balance <> coalesce(l.lots, 0)
        """,
    ),
    Rule(
        "balance_entries",
        "The balance is {balance}, but its ledger entries add up to {entries}.",
        """
        SELECT 'account ' || a.id AS place, a.id AS account_id, a.balance,
          coalesce(e.entries, 0) AS entries
        FROM billing_account a LEFT JOIN (
          SELECT account_id, sum(amount) AS entries FROM billing_ledgerentry
          WHERE [account_id] GROUP BY account_id
        ) e ON e.account_id = a.id
        WHERE [a.id] AND a.balance <> coalesce(e.entries, 0)
        """,
    ),
    Rule(
        "balance_last",
        "The balance is {balance} at entry {seq}, but the last entry, {last_seq}, left {last}.",
        """
        SELECT 'account ' || a.id AS place, a.id AS account_id, a.balance, a.seq,
          coalesce(e.balance_after, 0) AS last, coalesce(e.seq, 0) AS last_seq
        FROM billing_account a LEFT JOIN LATERAL (
          SELECT balance_after, seq FROM billing_ledgerentry
          WHERE account_id = a.id ORDER BY seq DESC LIMIT 1
        ) e ON TRUE
        WHERE [a.id]
          AND (a.balance <> coalesce(e.balance_after, 0) OR a.seq <> coalesce(e.seq, 0))
        """,
    ),
    Rule(
        "held",
        "{held} are held, but its active holds add up to {holds}.",
        """
        SELECT 'account ' || a.id AS place, a.id AS account_id, a.held, coalesce(h.holds, 0) AS holds
        FROM billing_account a LEFT JOIN (
          SELECT account_id, sum(amount) AS holds FROM billing_hold
          WHERE [account_id] AND status = 'active' GROUP BY account_id
        ) h ON h.account_id = a.id
        WHERE [a.id] AND a.held <> coalesce(h.holds, 0)
        """,
    ),
    Rule(
        "bounds",
        "A balance of {balance}, {held} held and a debt of {debt} are out of bounds.",
        """
        SELECT 'account ' || a.id AS place, a.id AS account_id, a.balance, a.held, a.debt
        FROM billing_account a
        WHERE [a.id] AND NOT (a.balance >= a.held AND a.held >= 0 AND a.debt >= 0)
        """,
    ),
    Rule(
        "debt",
        "The debt is {debt}, but its debt entries add up to {entries}.",
        """
        SELECT 'account ' || a.id AS place, a.id AS account_id, a.debt, coalesce(d.entries, 0) AS entries
        FROM billing_account a LEFT JOIN (
          SELECT account_id, sum(amount) AS entries FROM billing_debtentry
          WHERE [account_id] GROUP BY account_id
        ) d ON d.account_id = a.id
        WHERE [a.id] AND a.debt <> coalesce(d.entries, 0)
        """,
    ),
    Rule(
        "free_in_debt",
        "{free} are free although {debt} are owed.",
        """
        SELECT 'account ' || a.id AS place, a.id AS account_id, a.balance - a.held AS free, a.debt
        FROM billing_account a WHERE [a.id] AND a.debt > 0 AND a.balance > a.held
        """,
    ),
    Rule(
        "chain",
        "Entry {seq} begins with {before}, after entry {previous}, which ended with {after}.",
        """
        SELECT 'account ' || account_id AS place, account_id, seq, balance_before AS before,
          previous AS previous, after
        FROM (
          SELECT account_id, seq, balance_before,
            coalesce(lag(seq) OVER w, 0) AS previous,
            coalesce(lag(balance_after) OVER w, 0) AS after
          FROM billing_ledgerentry WHERE [account_id]
          WINDOW w AS (PARTITION BY account_id ORDER BY seq)
        ) chain
        WHERE seq <> previous + 1 OR balance_before <> after
        """,
    ),
    Rule(
        "entry_adds_up",
        "Entry {seq} goes from {before} to {after} by {amount}.",
        """
        SELECT 'entry ' || id AS place, account_id, seq, balance_before AS before,
          balance_after AS after, amount
        FROM billing_ledgerentry
        WHERE [account_id] AND (balance_after <> balance_before + amount OR balance_after < 0)
        """,
    ),
    Rule(
        "entry_without_lots",
        "Entry {seq} of {amount} names no lot.",
        """
        SELECT 'entry ' || e.id AS place, e.account_id, e.seq, e.amount
        FROM billing_ledgerentry e
        WHERE [e.account_id] AND NOT EXISTS (SELECT FROM billing_lotmove m WHERE m.entry_id = e.id)
        """,
    ),
    Rule(
        "entry_moves",
        "Entry {seq} is of {amount}, but moves {moved} of its lots.",
        """
        SELECT 'entry ' || e.id AS place, e.account_id, e.seq, e.amount, sum(m.amount) AS moved
        FROM billing_ledgerentry e JOIN billing_lotmove m ON m.entry_id = e.id
        WHERE [e.account_id] GROUP BY e.id HAVING e.amount <> sum(m.amount)
        """,
    ),
    Rule(
        "move_abroad",
        "Entry {seq} moves a lot of account {owner}.",
        """
        SELECT 'entry ' || e.id AS place, e.account_id, e.seq, l.account_id AS owner
        FROM billing_lotmove m
        JOIN billing_ledgerentry e ON e.id = m.entry_id
        JOIN billing_creditlot l ON l.id = m.lot_id
        WHERE [e.account_id] AND l.account_id <> e.account_id
        """,
    ),
    Rule(
        "lot_moves",
        "The lot holds {remaining} of {granted}, but {brought} came in and {left} should be left.",
        """
        SELECT 'lot ' || l.id AS place, l.account_id, l.remaining, l.granted,
          coalesce(sum(m.amount) FILTER (WHERE m.amount > 0), 0) AS brought,
          coalesce(sum(m.amount), 0) AS left
        FROM billing_creditlot l LEFT JOIN billing_lotmove m ON m.lot_id = l.id
        WHERE [l.account_id]
        GROUP BY l.id
        HAVING l.remaining <> coalesce(sum(m.amount), 0)
          OR l.granted <> coalesce(sum(m.amount) FILTER (WHERE m.amount > 0), 0)
        """,
    ),
    Rule(
        "lot_bounds",
        "The lot holds {remaining} of {granted}.",
        """
        SELECT 'lot ' || id AS place, account_id, remaining, granted FROM billing_creditlot
        WHERE [account_id] AND NOT (granted > 0 AND remaining >= 0 AND remaining <= granted)
        """,
    ),
    Rule(
        "hold_entry",
        "The hold is {status} for {settled}, but {count} usage entries charged {charged}.",
        """
        SELECT 'hold ' || h.id AS place, h.account_id, h.status, coalesce(h.settled, 0) AS settled,
          count(e.id) AS count, coalesce(-sum(e.amount), 0) AS charged
        FROM billing_hold h LEFT JOIN billing_ledgerentry e ON e.hold_id = h.id
        WHERE [h.account_id]
        GROUP BY h.id
        HAVING count(e.id) <> (CASE WHEN h.status = 'settled' THEN 1 ELSE 0 END)
          OR coalesce(-sum(e.amount), 0) <> coalesce(h.settled, 0)
          OR bool_or(e.account_id <> h.account_id OR e.kind <> 'usage')
        """,
    ),
    Rule(
        "usage_without_hold",
        "Entry {seq} charges {amount} for usage without a hold.",
        """
        SELECT 'entry ' || id AS place, account_id, seq, -amount AS amount
        FROM billing_ledgerentry WHERE [account_id] AND kind = 'usage' AND hold_id IS NULL
        """,
    ),
    Rule(
        "hold_usage",
        "The hold was settled for {settled} and short by {shortfall}, but its usage records say"
        " {charged} and {short}.",
        """
        SELECT 'hold ' || h.id AS place, h.account_id, coalesce(h.settled, 0) AS settled, h.shortfall,
          sum(u.charged) AS charged, sum(u.shortfall) AS short
        FROM billing_hold h JOIN billing_usagerecord u ON u.hold_id = h.id
        WHERE [h.account_id]
        GROUP BY h.id
        HAVING sum(u.charged) <> coalesce(h.settled, 0) OR sum(u.shortfall) <> h.shortfall
        """,
    ),
    Rule(
        "hold_without_usage",
        "The hold was settled for {settled}, but no usage record says what for.",
        """
        SELECT 'hold ' || h.id AS place, h.account_id, h.settled FROM billing_hold h
        WHERE [h.account_id] AND h.status = 'settled'
          AND NOT EXISTS (SELECT FROM billing_usagerecord u WHERE u.hold_id = h.id)
        """,
    ),
    Rule(
        "usage_adds_up",
        "Usage of {cost} was charged {charged}, short by {shortfall} and absorbed {absorbed}.",
        """
        SELECT 'usage ' || u.id AS place, a.id AS account_id, u.cost, u.charged, u.shortfall, u.absorbed
        FROM billing_usagerecord u JOIN billing_account a ON a.user_id = u.user_id
        WHERE [a.id] AND u.cost <> u.charged + u.shortfall + u.absorbed
        """,
    ),
    Rule(
        "hold_overdue",
        "The hold of {amount} is active, and was to end at {expires_at}.",
        """
        SELECT 'hold ' || id AS place, account_id, amount, expires_at::text AS expires_at
        FROM billing_hold WHERE [account_id] AND status = 'active' AND expires_at < %(overdue)s
        """,
        freezes=False,
    ),
    Rule(
        "order_purchase",
        "The order is {status} and of {credits}, but {count} purchases gave {given}.",
        """
        SELECT 'order ' || o.id AS place, o.account_id, o.status, o.credits, count(e.id) AS count,
          coalesce(sum(e.amount), 0) AS given
        FROM billing_order o
        LEFT JOIN billing_ledgerentry e ON e.order_id = o.id AND e.kind = 'purchase'
        WHERE [o.account_id]
        GROUP BY o.id
        HAVING CASE WHEN o.status IN ('paid', 'partially_refunded', 'refunded')
          THEN count(e.id) <> 1 OR sum(e.amount) <> o.credits
            OR bool_or(e.account_id <> o.account_id)
          ELSE count(e.id) > 0 END
        """,
    ),
    Rule(
        "order_bonus",
        "The order is {status} with a bonus of {bonus}, but {count} entries gave {given}.",
        """
        SELECT 'order ' || o.id AS place, o.account_id, o.status, o.bonus, count(e.id) AS count,
          coalesce(sum(e.amount), 0) AS given
        FROM billing_order o
        LEFT JOIN billing_ledgerentry e ON e.order_id = o.id AND e.kind = 'bonus'
        WHERE [o.account_id]
        GROUP BY o.id
        HAVING CASE WHEN o.status IN ('paid', 'partially_refunded', 'refunded') AND o.bonus > 0
          THEN count(e.id) <> 1 OR sum(e.amount) <> o.bonus OR bool_or(e.account_id <> o.account_id)
          ELSE count(e.id) > 0 END
        """,
    ),
    Rule(
        "purchase_without_order",
        "Entry {seq} of {amount} is a purchase without an order.",
        """
        SELECT 'entry ' || id AS place, account_id, seq, amount FROM billing_ledgerentry
        WHERE [account_id] AND kind = 'purchase' AND order_id IS NULL
        """,
    ),
    Rule(
        "order_refunded",
        "{refunded} of {amount_minor} {currency} (minor units) are refunded.",
        """
        SELECT 'order ' || o.id AS place, o.account_id, o.amount_minor, o.currency,
          greatest(o.amount_refunded_minor, r.refunded) AS refunded
        FROM billing_order o LEFT JOIN (
          SELECT order_id, sum(amount_minor) AS refunded
          FROM billing_refund WHERE status = 'succeeded' GROUP BY order_id
        ) r ON r.order_id = o.id
        WHERE [o.account_id] AND greatest(o.amount_refunded_minor, r.refunded) > o.amount_minor
        """,
    ),
    Rule(
        "order_taken_back",
        "{taken} were taken back of an order of {given}.",
        """
        SELECT 'order ' || o.id AS place, o.account_id, -e.net AS taken, o.credits + o.bonus AS given
        FROM billing_order o JOIN (
          SELECT order_id, sum(amount) AS net FROM billing_ledgerentry
          WHERE order_id IS NOT NULL
            AND kind IN ('refund', 'dispute', 'refund_reversal', 'dispute_won')
          GROUP BY order_id
        ) e ON e.order_id = o.id
        WHERE [o.account_id] AND -e.net > o.credits + o.bonus
        """,
        freezes=False,
    ),
    Rule(
        "refund",
        "The refund is {status} with {credits} taken and a debt of {debt}, but its entries took"
        " {taken} and gave {returned} back.",
        """
        SELECT 'refund ' || r.id AS place, o.account_id, r.status, r.credits, r.debt,
          coalesce(e.taken, 0) AS taken, coalesce(e.returned, 0) AS returned
        FROM billing_refund r JOIN billing_order o ON o.id = r.order_id LEFT JOIN (
          SELECT refund_id, -sum(amount) FILTER (WHERE kind = 'refund') AS taken,
            sum(amount) FILTER (WHERE kind = 'refund_reversal') AS returned
          FROM billing_ledgerentry WHERE refund_id IS NOT NULL GROUP BY refund_id
        ) e ON e.refund_id = r.id
        WHERE [o.account_id] AND (
          coalesce(e.taken, 0) <> r.credits
          OR CASE WHEN r.status = 'failed'
            THEN coalesce(e.returned, 0) NOT BETWEEN r.credits AND r.credits + r.debt
            ELSE coalesce(e.returned, 0) > 0 END)
        """,
    ),
    Rule(
        "dispute",
        "The dispute is {status} with {credits} taken and a debt of {debt}, but its entries took"
        " {taken} and gave {returned} back.",
        """
        SELECT 'dispute ' || d.id AS place, o.account_id, d.status, d.credits, d.debt,
          coalesce(e.taken, 0) AS taken, coalesce(e.returned, 0) AS returned
        FROM billing_dispute d JOIN billing_order o ON o.id = d.order_id LEFT JOIN (
          SELECT dispute_id, -sum(amount) FILTER (WHERE kind = 'dispute') AS taken,
            sum(amount) FILTER (WHERE kind = 'dispute_won') AS returned
          FROM billing_ledgerentry WHERE dispute_id IS NOT NULL GROUP BY dispute_id
        ) e ON e.dispute_id = d.id
        WHERE [o.account_id] AND (
          coalesce(e.taken, 0) <> d.credits
          OR CASE WHEN d.returned
            THEN coalesce(e.returned, 0) NOT BETWEEN d.credits AND d.credits + d.debt
            ELSE coalesce(e.returned, 0) > 0 END)
        """,
    ),
    Rule(
        "promo_count",
        "The code counts {redeemed} redemptions, but there are {count}.",
        """
        SELECT 'promo code ' || c.code AS place, NULL::bigint AS account_id, c.redeemed,
          count(r.id) AS count
        FROM billing_promocode c LEFT JOIN billing_promoredemption r ON r.code_id = c.id
        GROUP BY c.id HAVING c.redeemed <> count(r.id)
        """,
        freezes=False,
    ),
)

FREEZING = frozenset(rule.code for rule in RULES if rule.freezes)

# Figures of messages that are no micro-credits.
PLAIN = {
    "account_id", "seq", "last_seq", "previous", "count", "owner", "redeemed", "refunded",
    "amount_minor",
}  # fmt: skip

# Accounts of which something was written since a moment.
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
    """What is wrong: everywhere, in one account, or in those that were written to since a moment.

    What was changed behind the ledger's back may not look like written to: run it in full each night.
    """
    return _check(since, account_id)[0]


def run_and_store(*, since: datetime | None = None) -> LedgerCheck:
    """Check everything (or what was written to since a moment) and keep the result for the staff."""
    started = timezone.now()
    problems, entries = _check(since, None)
    return LedgerCheck.objects.create(
        started_at=started,
        is_full=since is None,
        entries=entries,
        problems=[asdict(problem) for problem in problems],
    )


def freeze(problems: list[Problem]) -> list[int]:
    """Freeze the accounts whose books are wrong; returns which were not frozen before."""
    wrong = {one.account_id for one in problems if one.account_id and one.code in FREEZING}
    ids = list(
        Account.objects.filter(pk__in=wrong, status=Account.Status.ACTIVE).values_list(
            "pk", flat=True
        )
    )
    for account_id in ids:
        money_transaction(postings.set_status, account_id=account_id, status=Account.Status.FROZEN)
    return ids


def _check(since: datetime | None, account_id: int | None) -> tuple[list[Problem], int]:
    values = {"since": since, "account": account_id, "overdue": timezone.now() - OVERDUE}
    problems: list[Problem] = []
    is_outermost = not connection.in_atomic_block
    with transaction.atomic(), connection.cursor() as cursor:
        if is_outermost:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # The default suits single rows; these queries sort and hash millions.
        cursor.execute("SET LOCAL work_mem = '128MB'; SET LOCAL jit = off")
        problems += _missing(cursor)
        for rule in RULES:
            query = scoped(rule.query, since, account_id)
            cursor.execute(f"{query} LIMIT {MOST_PROBLEMS}", values)
            names = [column.name for column in cursor.description]
            for row in cursor.fetchall():
                found = dict(zip(names, row, strict=True))
                figures = {name: _shown(name, value) for name, value in found.items()}
                problems.append(
                    Problem(
                        rule.code,
                        found["place"],
                        rule.message.format(**figures),
                        found["account_id"],
                    )
                )
        cursor.execute(
            scoped(
                "SELECT count(*) FROM billing_ledgerentry WHERE [account_id]", since, account_id
            ),
            values,
        )
        [entries] = cursor.fetchone()
    return problems, entries


def scoped(query: str, since: datetime | None, account_id: int | None) -> str:
    """A rule's query for so much of the tables; its parameters are `since`, `account`, `overdue`."""
    conditions = []
    if account_id is not None:
        conditions.append("{} = %(account)s")
    if since is not None:
        conditions.append("{} IN (SELECT id FROM touched)")
    condition = " AND ".join(conditions) or "TRUE"
    scoped = re.sub(r"\[([a-z_.]+)\]", lambda match: condition.format(*[match[1]] * 2), query)
    return (TOUCHED if since is not None else "") + scoped


def _shown(name: str, value: Any) -> Any:
    if name not in PLAIN and isinstance(value, int | Decimal):
        return credits.exact(int(value))
    return value


def _missing(cursor: Any) -> Iterator[Problem]:
    """Triggers and constraints that the tables should have and have not, or that are switched off."""
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
    # Columns that are unique by themselves have constraints with names of Django's making.
    cursor.execute(
        "SELECT indrelid::regclass::text, attname FROM pg_index"
        " JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]"
        " WHERE indisunique AND indisvalid AND indnkeyatts = 1 AND indpred IS NULL"
    )
    unique = set(cursor.fetchall())
    for model in apps.get_app_config("billing").get_models():
        table = model._meta.db_table
        for constraint in model._meta.constraints:
            if constraint.name not in names:
                yield Problem(
                    "constraint_missing", table, f"The constraint {constraint.name} is missing."
                )
        for field in model._meta.local_concrete_fields:
            if field.unique and (table, field.column) not in unique:
                yield Problem(
                    "constraint_missing", table, f"The column {field.column} is not unique."
                )
