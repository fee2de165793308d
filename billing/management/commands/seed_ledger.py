from __future__ import annotations

import uuid
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.core.management.base import BaseCommand, CommandError
from django.db import connection, transaction
from django.utils import timezone

from billing.metering import usage
from billing.models import Order

ROWS = 100_000  # approximate number of entries per transaction

# An account's history: a grant, then usage of varying size over the past 400 days. It bypasses the
# ledger's functions, which write one entry at a time; check_ledger finds no problem in it.
SEED = """
WITH account AS (
  INSERT INTO billing_account (user_id, status, balance, held, debt, seq, created_at, updated_at)
  SELECT user_id, 'active', %(given)s - (
      SELECT sum((1 + n * 7919 %% 997) * 100) FROM generate_series(2, %(each)s) n
    ), 0, 0, %(each)s, %(now)s - interval '400 days', %(now)s
  FROM unnest(%(users)s::bigint[]) AS user_id RETURNING id, user_id, balance
), lot AS (
  INSERT INTO billing_creditlot (account_id, kind, granted, remaining, priority, effective_at,
    paid_minor, currency, source_key)
  SELECT id, 'grant', %(given)s, balance, 50, %(now)s - interval '400 days', 0, '', 'seed:' || id
  FROM account RETURNING id, account_id
), call AS MATERIALIZED (
  SELECT account.id AS account_id, user_id, n AS seq, (1 + n * 7919 %% 997) * 100 AS amount,
    gen_random_uuid() AS hold_id, 'seeded-' || n %% 3 AS model, 10 + n %% 4000 AS input,
    5 + n * 31 %% 800 AS output, gen_random_uuid() AS conversation,
    %(now)s - interval '400 days' * (1 - n / (1.0 + %(each)s)) AS at
  FROM account, generate_series(2, %(each)s) n
), hold AS (
  INSERT INTO billing_hold (id, account_id, key, amount, status, settled, shortfall, model,
    conversation, expires_at, created_at, resolved_at, resolved_by)
  SELECT hold_id, account_id, 'seed:' || hold_id, amount * 2, 'settled', amount, 0, model,
    conversation, at + interval '1 hour', at, at, 'worker'
  FROM call
), usage AS (
  INSERT INTO billing_usagerecord (run_id, attempt, step, purpose, user_id, hold_id, model,
    assistant, conversation, input_tokens, cached_tokens, output_tokens, reasoning_tokens, source,
    cost, charged, shortfall, absorbed, finish, created_at)
  SELECT hold_id, 1, 0, 'chat', user_id, hold_id, model, '', conversation, input, 0, output, 0,
    'provider', amount, amount, 0, 0, 'complete', at
  FROM call
), entry AS (
  INSERT INTO billing_ledgerentry (account_id, seq, kind, counter_account, amount, balance_before,
    balance_after, idempotency_key, hold_id, note, created_at)
  SELECT id, 1, 'grant', 'grants', %(given)s, 0, %(given)s, 'seed:' || id, NULL, 'Seeded',
    %(now)s - interval '400 days' FROM account
  UNION ALL
  SELECT account_id, seq, 'usage', 'revenue', -amount, %(given)s - sum(amount) OVER w + amount,
    %(given)s - sum(amount) OVER w, 'settle:' || hold_id, hold_id, '', at
  FROM call WINDOW w AS (PARTITION BY account_id ORDER BY seq)
  RETURNING id, account_id, amount
)
INSERT INTO billing_lotmove (entry_id, lot_id, amount)
SELECT entry.id, lot.id, entry.amount FROM entry JOIN lot USING (account_id)
"""


class Command(BaseCommand):
    help = "Fills the ledger with made-up histories of users, for benchmarks. Never in production."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--entries", type=int, default=100_000)
        parser.add_argument("--accounts", type=int, default=100)
        parser.add_argument(
            "--yes", action="store_true", help="without DEBUG, or on a database that has orders"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        each, accounts = options["entries"] // options["accounts"], options["accounts"]
        if each < 2:
            raise CommandError("Each account needs at least two entries: ask for more of them.")
        if not options["yes"] and (not settings.DEBUG or Order.objects.exists()):
            raise CommandError(
                "This writes made-up accounts into a database that may be a real one."
                " If it is not, pass --yes."
            )
        at_once = max(1, ROWS // each)
        for done in range(0, accounts, at_once):
            seed(min(at_once, accounts - done), each)
        usage.roll_up(timezone.now())
        with connection.cursor() as cursor:
            for table in connection.introspection.table_names():
                if table.startswith("billing_"):
                    cursor.execute(f"ANALYZE {table}")
        self.stdout.write(f"{accounts} accounts with {each} entries each.")


def seed(accounts: int, each: int) -> None:
    """Add users, each with an account that has `each` entries."""
    model, password = get_user_model(), make_password(None)
    name = model.USERNAME_FIELD
    users = model.objects.bulk_create(
        model(password=password, **{name: f"seeded-{uuid.uuid4().hex}@example.org"})
        for _ in range(accounts)
    )
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        if cursor.fetchone()[0]:
            # Skips checking millions of foreign keys that are correct by construction.
            cursor.execute("SET LOCAL session_replication_role = replica")
        values: dict[str, Any] = {
            "users": [user.pk for user in users],
            "each": each,
            "given": each * 100_000,
            "now": timezone.now(),
        }
        cursor.execute(SEED, values)
