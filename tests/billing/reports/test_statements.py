"""The statement as its owner reads it, and the file of it."""

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

from accounts.models import User
from billing.ledger import postings
from billing.metering import usage
from billing.metering.pricing import Tokens
from billing.models import Account, Hold, UsageRecord
from billing.reports import statements
from billing.reports.statements import Filter
from chatproject.lib.db import money_transaction

pytestmark = pytest.mark.django_db(transaction=True)

CREDIT = 1_000_000


def give(account: Account, credits: int, **fields) -> None:
    money_transaction(
        postings.grant,
        account_id=account.pk,
        amount=credits * CREDIT,
        key=uuid.uuid4().hex,
        **fields,
    )


def hold(account: Account, amount: int, model: str = "small", **fields) -> Hold:
    return money_transaction(
        postings.hold,
        account_id=account.pk,
        amount=amount,
        key=f"run:{uuid.uuid4()}",
        model=model,
        conversation=uuid.uuid4(),
        expires_at=timezone.now() + timedelta(hours=1),
        **fields,
    )


def use(account: Account, amount: int, model: str = "small", *, attempts: int = 1) -> Hold:
    """A reply that was paid for; its tokens are spread over so many attempts."""
    held = hold(account, amount, model)

    def settle() -> None:
        postings.settle(hold_id=held.pk, cost=amount)
        for attempt in range(1, attempts + 1):
            cost = amount if attempt == attempts else 0
            usage.record(
                run_id=held.pk,
                attempt=attempt,
                user_id=account.user_id,
                model=model,
                tokens=Tokens(input=100, cached=40, output=10),
                source=UsageRecord.Source.PROVIDER,
                cost=cost,
                charged=cost,
                shortfall=0,
                absorbed=0,
                finish=UsageRecord.Finish.COMPLETE,
                hold_id=held.pk,
            )

    money_transaction(settle)
    return held


def date_entries(account: Account, ages: dict[int, int]) -> None:
    """Let entries (by number) be so many days old, which the ledger itself would refuse."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE billing_ledgerentry DISABLE TRIGGER USER")
        for seq, age in ages.items():
            cursor.execute(
                "UPDATE billing_ledgerentry SET created_at = %s WHERE account_id = %s AND seq = %s",
                [timezone.now() - timedelta(days=age), account.pk, seq],
            )
        cursor.execute("ALTER TABLE billing_ledgerentry ENABLE TRIGGER USER")


def test_an_account_without_entries_has_an_empty_statement(account):
    statement = statements.history(account)
    assert (statement.lines, statement.older, statement.pending) == ([], None, [])
    assert (statement.opening, statement.closing) == (0, 0)


def test_lines_say_what_happened_with_the_balance_after_each(account):
    give(account, 10, note="Welcome")
    held = use(account, 3 * CREDIT, attempts=2)
    account.refresh_from_db()
    reply, welcome = statements.history(account).lines
    assert (welcome.title, welcome.note, welcome.amount) == (
        "Credits given",
        "Welcome",
        10 * CREDIT,
    )
    assert (reply.title, reply.model, reply.conversation) == ("Reply", "small", held.conversation)
    assert (reply.amount, reply.balance_after) == (-3 * CREDIT, 7 * CREDIT)
    assert (reply.input_tokens, reply.cached_tokens, reply.output_tokens) == (200, 80, 20)


def test_holds_stand_on_the_first_page_only_and_not_between_filtered_lines(account):
    give(account, 10)
    held = hold(account, CREDIT)
    account.refresh_from_db()
    assert statements.history(account).pending == [held]
    assert statements.history(account, before_seq=2).pending == []
    assert statements.history(account, wanted=Filter(kind="usage")).pending == []


def test_pages_follow_each_other_without_gap_or_repetition(account, monkeypatch):
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


def test_a_page_costs_the_same_number_of_queries_however_long_it_is(account):
    def queries() -> int:
        account.refresh_from_db()
        with CaptureQueriesContext(
            connection,
        ) as captured:
            statements.history(account)
        return len(captured)

    give(account, 100)
    use(account, CREDIT)
    few = queries()
    for _ in range(5):
        use(account, CREDIT, "large")
        give(account, 1)
    hold(account, CREDIT)
    assert few == 2
    assert queries() == 3


def test_filters_by_kind_model_and_days(account):
    give(account, 10)
    use(account, CREDIT, "small")
    use(account, CREDIT, "large")
    give(account, 5)
    date_entries(account, {1: 40, 2: 30, 3: 20})

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


def test_every_kind_of_entry_has_a_title_and_can_be_filtered_for():
    kinds = set(postings.Kind)
    assert set(statements.TITLES) == kinds
    assert {kind for _, found in statements.KINDS.values() for kind in found} == kinds


def test_the_models_of_a_user_come_from_past_days_and_from_today(account):
    give(account, 10)
    use(account, CREDIT, "small")
    use(account, CREDIT, "large")
    assert statements.models_of(account.user_id) == ["large", "small"]
    stranger = User.objects.create_user("stranger@example.org")
    assert statements.models_of(stranger.pk) == []


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


def test_the_amounts_of_the_file_add_up_to_the_balance_exactly(account, monkeypatch):
    monkeypatch.setattr(statements, "PART", 4)
    give(account, 100)
    for amount in (1, 333_333, 1_000_001, 7):
        use(account, amount)
        give(account, 1)
    rows = whole_file(account)
    assert [int(row["number"]) for row in rows] == list(range(1, account.seq + 1))
    assert sum(Decimal(row["amount"]) for row in rows) * CREDIT == account.balance
    assert Decimal(rows[-1]["balance"]) * CREDIT == account.balance
    assert rows[1]["amount"] == "-0.000001"
    assert rows[1]["input_tokens"] == "100"
    assert rows[0]["input_tokens"] == ""


def test_what_is_written_after_the_file_has_begun_is_not_in_it(account):
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


def test_dates_of_the_file_are_iso_dates_with_their_zone(account):
    give(account, 1)
    [row] = whole_file(account)
    at = datetime.fromisoformat(row["date"])
    assert at.tzinfo is not None
    assert abs(at - timezone.now()) < timedelta(minutes=5)


def test_the_file_is_sent_in_parts(account, client, monkeypatch, valkey_url):
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
