"""The command that fills a ledger, and pages that read a filled one by index."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from billing.ledger import audit
from billing.models import Account, DailyUsage, LedgerEntry, UsageRecord
from tests.support import money

pytestmark = pytest.mark.django_db(transaction=True)


def seed(*arguments: str) -> str:
    out = StringIO()
    call_command("seed_ledger", *arguments, stdout=out)
    return out.getvalue()


def test_seeded_ledger_is_consistent(settings):
    settings.DEBUG = True
    assert seed("--entries", "600", "--accounts", "20") == "20 accounts with 30 entries each.\n"
    assert audit.check() == []
    assert (LedgerEntry.objects.count(), UsageRecord.objects.count()) == (600, 580)
    assert DailyUsage.objects.exists()
    # Its accounts work like any other.
    account = Account.objects.latest("pk")
    money.grant(account, 5)
    money.settle(money.hold(account, 5000), 7000)
    assert audit.check() == []


def test_database_in_use_is_not_seeded(account, settings):
    with pytest.raises(CommandError, match="--yes"):
        seed()
    settings.DEBUG = True
    money.order(account)
    with pytest.raises(CommandError, match="--yes"):
        seed()
    with pytest.raises(CommandError, match="two entries"):
        seed("--entries", "5", "--accounts", "4", "--yes")
    assert seed("--entries", "8", "--accounts", "4", "--yes")


PAGES = [
    "/billing/",
    "/billing/history/",
    "/billing/history/?kind=usage",
    "/billing/history/?model=seeded-1",
    "/billing/history/?before=2000",
    "/billing/usage/",
]


def test_pages_read_a_long_ledger_by_index(client):
    seed("--entries", "50000", "--accounts", "20", "--yes")
    client.force_login(Account.objects.latest("pk").user)
    scanned = []
    for page in PAGES:
        with CaptureQueriesContext(connection) as queries:
            assert client.get(page).status_code == 200
        assert any("billing_" in query["sql"] for query in queries)
        for query in queries:
            scanned += [f"{page}: {table} in {query['sql']}" for table in scanned_by(query["sql"])]
    assert scanned == []


def scanned_by(query: str) -> list[str]:
    """The ever-growing tables that a query reads from end to end."""
    if "billing_" not in query or not re.match(r"(SELECT|WITH)", query.strip()):
        return []
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {query}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    return re.findall(r"Seq Scan on (billing_(?:ledgerentry|usagerecord|lotmove|hold)\b)", plan)
