"""The page of a user's plan: end, next credits, limits, and the other plans."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.utils import formats, timezone, translation

from accounts import plan_page
from billing.credits import MICRO
from billing.ledger import allowances, signup
from billing.models import Plan
from chatproject.lib.env import Limit
from tests.support import money
from tests.support.people import owner

__all__ = ["owner"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def facts(client) -> dict[str, str]:
    html = client.get("/accounts/plan/").content.decode().split('id="plans"')[0]
    return dict(re.findall(r"<div><dt>(.+?)</dt><dd>(.+?)</dd></div>", html))


def test_plan_page_shows_end_credits_and_limits(client, owner, settings):
    client.force_login(owner)
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"uploads": Limit(((100, 600),))}
    assert "No plan" in client.get("/accounts/plan/").content.decode()
    assert facts(client)["Uploads"] == "100 in 10 minutes"
    Plan.objects.create(
        slug="free", name="Free", is_default=True, monthly_credits=5 * MICRO, is_shown=False
    )
    Plan.objects.create(slug="secret", name="Secret", is_shown=False)
    team = Plan.objects.create(
        slug="team",
        name="Team <b>",
        monthly_credits=500 * MICRO,
        monthly_messages=1_000,
        messages_per_minute=7,
        parallel_runs=9,
        upload_mb=3_000,
    )
    assert facts(client)["Next credits"] == "5 within minutes"
    page = client.get("/accounts/plan/").content.decode()
    assert "Team &lt;b&gt;" in page.split('id="plans"')[1]
    assert "Secret" not in page
    now = timezone.now()
    allowances.grant_month(now)
    month_ends = allowances.month_of(now)[1]
    account = signup.account_of(owner.pk)
    money.give_plan(account, team, until=month_ends - timedelta(seconds=1))
    shown = facts(client)
    # It ends with the month: the next credits are the default plan's.
    day = formats.date_format(timezone.localtime(month_ends), "j F Y")
    assert shown["Next credits"] == f"5 on {day}"
    assert shown["Credits each month"] == "500"
    assert shown["Messages used this month"] == "0 of 1,000"
    assert shown["Messages"] == "7 per minute"
    assert shown["Replies at the same time"] == "9"
    assert shown["Space for files"] == "3 GB"
    page = client.get("/accounts/plan/").content.decode()
    assert "then you have the plan Free" in page
    assert 'id="plans"' not in page
    settings.BILLING = False
    assert "Credits each month" not in facts(client)


@pytest.mark.parametrize(
    ("rates", "text"),
    [
        ((), "Kein Limit"),
        (((5, 60), (20, 86400)), "5 pro Minute, 20 pro Tag"),
        (((1_000, 7200), (3, 30)), "1.000 in 2 Stunden, 3 in 30 Sekunden"),
    ],
)
def test_limits_are_written_in_words(rates, text):
    with translation.override("de"):
        assert plan_page.words(Limit(rates)) == text
