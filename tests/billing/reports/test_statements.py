"""The statement of an account, and its CSV file."""

from __future__ import annotations

import asyncio
import csv
import io
import uuid
from datetime import date, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing.credits import MICRO
from billing.ledger import postings
from billing.metering import usage
from billing.metering.pricing import Tokens
from billing.models import Account, Hold
from billing.reports import statements
from billing.reports.statements import Filter
from tests.support import money

pytestmark = pytest.mark.django_db(transaction=True)


def give(account: Account, credits: int, **fields) -> None:
    money.grant(account, credits * MICRO, **fields)


def use(account: Account, amount: int, model: str = "small") -> Hold:
    """Pay for a reply."""
    held = money.hold(account, amount, model=model, conversation=uuid.uuid4())
    money.settle(held, amount, tokens=Tokens(input=100, cached=40, output=10))
    return held


def test_account_without_entries_has_an_empty_statement(account):
    statement = statements.history(account)
    assert (statement.lines, statement.older, statement.pending) == ([], None, [])
    assert (statement.opening, statement.closing) == (0, 0)


def test_lines_describe_entries_with_their_balance(account):
    give(account, 10, note="Welcome")
    held = use(account, 3 * MICRO)
    money.record(held, attempt=2, tokens=Tokens(input=20, cached=10, output=5))
    account.refresh_from_db()
    reply, welcome = statements.history(account).lines
    granted = (welcome.title, welcome.note, welcome.amount)
    assert granted == ("Credits given", "Welcome", 10 * MICRO)
    assert (reply.title, reply.model, reply.conversation) == ("Reply", "small", held.conversation)
    assert (reply.amount, reply.balance_after) == (-3 * MICRO, 7 * MICRO)
    assert (reply.input_tokens, reply.cached_tokens, reply.output_tokens) == (120, 50, 15)


def test_holds_appear_on_the_unfiltered_first_page(account):
    give(account, 10)
    held = money.hold(account, MICRO)
    account.refresh_from_db()
    assert statements.history(account).pending == [held]
    assert statements.history(account, before_seq=2).pending == []
    assert statements.history(account, wanted=Filter(kind="usage")).pending == []


def test_pages_join_without_gap_or_repetition(account, monkeypatch):
    monkeypatch.setattr(statements, "PAGE", 3)
    for amount in range(1, 8):
        give(account, amount)
    account.refresh_from_db()
    found: list[statements.StatementLine] = []
    before: int | None = None
    while True:
        page = statements.history(account, before_seq=before)
        if found:
            assert page.closing == found[-1].balance_before
        found += page.lines
        before = page.older
        if before is None:
            break
    assert [line.seq for line in found] == [7, 6, 5, 4, 3, 2, 1]
    assert found[-1].balance_before == 0


def test_page_takes_a_fixed_number_of_queries(account):
    def queries() -> int:
        account.refresh_from_db()
        with CaptureQueriesContext(connection) as captured:
            statements.history(account)
        return len(captured)

    give(account, 100)
    use(account, MICRO)
    few = queries()
    for _ in range(5):
        use(account, MICRO, "large")
        give(account, 1)
    money.hold(account, MICRO)
    assert few == 2
    assert queries() == 3


def test_statement_filters_by_kind_model_and_days(account):
    give(account, 10)
    use(account, MICRO, "small")
    use(account, MICRO, "large")
    give(account, 5)
    for seq, age in {1: 40, 2: 30, 3: 20}.items():
        moved = "UPDATE billing_ledgerentry SET created_at = %s WHERE seq = %s"
        money.tamper(moved, timezone.now() - timedelta(days=age), seq)

    def numbers(**wanted) -> list[int]:
        return [line.seq for line in statements.history(account, wanted=Filter(**wanted)).lines]

    def ago(days: int) -> date:
        return usage.today() - timedelta(days=days)

    assert numbers(kind="usage") == [3, 2]
    assert numbers(kind="given") == [4, 1]
    assert numbers(model="large") == [3]
    assert numbers(first=ago(31), last=ago(19)) == [3, 2]
    assert numbers(first=ago(20)) == [4, 3]
    assert numbers(last=ago(30)) == [2, 1]
    assert numbers(kind="expire") == []


def test_every_kind_has_a_title_and_a_filter():
    kinds = set(postings.Kind)
    assert set(statements.TITLES) == kinds
    assert {kind for _, found in statements.KINDS.values() for kind in found} == kinds


def test_models_include_those_used_today(account):
    give(account, 10)
    use(account, MICRO, "small")
    use(account, MICRO, "large")
    assert statements.models_of(account.user_id) == ["large", "small"]
    assert statements.models_of(money.open_account().user_id) == []


def whole_file(account: Account, **wanted) -> list[dict[str, str]]:
    account.refresh_from_db()
    text = ""
    after: int | None = 0
    while after is not None:
        part, after = statements.csv_part(
            account.pk, after_seq=after, until_seq=account.seq, wanted=Filter(**wanted)
        )
        text += part
    return list(csv.DictReader(io.StringIO(text)))


def test_amounts_of_the_file_sum_to_the_balance(account, monkeypatch):
    monkeypatch.setattr(statements, "PART", 4)
    give(account, 100)
    for amount in (1, 333_333, 1_000_001, 7):
        use(account, amount)
        give(account, 1)
    rows = whole_file(account)
    assert [int(row["number"]) for row in rows] == list(range(1, account.seq + 1))
    assert sum(Decimal(row["amount"]) for row in rows) * MICRO == account.balance
    assert Decimal(rows[-1]["balance"]) * MICRO == account.balance
    assert rows[1]["amount"] == "-0.000001"
    assert rows[1]["input_tokens"] == "100"
    assert rows[0]["input_tokens"] == ""


def test_later_entries_are_not_in_the_file(account):
    give(account, 1)
    account.refresh_from_db()
    give(account, 2)
    text, after = statements.csv_part(account.pk, after_seq=0, until_seq=account.seq)
    assert after is None
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(
    "note", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1+1", " =1", "\N{FULLWIDTH EQUALS SIGN}1"]
)
def test_no_text_of_the_file_is_a_formula(account, note):
    give(account, 1, note=note)
    [row] = whole_file(account)
    assert row["note"].startswith("'")


def test_dates_of_the_file_are_zoned_iso_dates(account):
    give(account, 1)
    [row] = whole_file(account)
    at = datetime.fromisoformat(row["date"])
    assert at.tzinfo is not None
    assert abs(at - timezone.now()) < timedelta(minutes=5)


def test_file_is_sent_in_parts(account, client, monkeypatch, valkey_url):
    monkeypatch.setattr(statements, "PART", 1)
    give(account, 1)
    give(account, 2, note="Grüße, 你好")
    client.force_login(account.user)
    response = client.get("/billing/history.csv")
    assert response["Content-Type"] == "text/csv; charset=utf-8"

    async def received() -> list[bytes]:
        return [part async for part in response.streaming_content]

    parts = asyncio.run(received())
    assert len(parts) == 3
    rows = list(csv.DictReader(io.StringIO(b"".join(parts).decode())))
    assert [row["amount"] for row in rows] == ["1", "2"]
    assert rows[1]["note"] == "Grüße, 你好"
