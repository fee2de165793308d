"""Memberships of plans: changed, ended once, followed by the group, granted once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from django.contrib.auth.models import Group, Permission
from django.utils import timezone

from accounts.models import Invitation, User
from billing.ledger import allowances, plans, signup
from billing.models import Account, LedgerEntry, Membership, Plan, PlanGroup
from chatproject.lib.db import money_transaction
from chatproject.local.servers import BASE_DIR
from tests.billing.ledger.test_ledger_faults import Fault, Faults, with_faults
from tests.support import money
from tests.support.locks import locked, wait_for_blocked_session
from tests.support.programs import Program
from tests.support.stack import database_url
from tests.support.threads import race

pytestmark = pytest.mark.django_db(transaction=True)

MONTH = datetime(2099, 3, 10, 12, tzinfo=UTC)
NOW = timezone.now()
PAST = NOW - timedelta(minutes=1)


def make_plan(slug: str, *, grouped: bool = True, **fields) -> Plan:
    group = Group.objects.create(name=f"Group of {slug}") if grouped else None
    return Plan.objects.create(slug=slug, name=slug.title(), group=group, **fields)


def state(account: Account) -> tuple[str | None, str | None, list[str], list[str]]:
    """Plan of the account, its copy, the user's groups, and the open memberships."""
    user = User.objects.select_related("plan", "account__plan").get(pk=account.user_id)
    plan = user.account.plan
    return (
        plan.slug if plan else None,
        user.plan.slug if user.plan else None,
        sorted(user.groups.values_list("name", flat=True)),
        [one.plan.slug for one in account.memberships.filter(ended_at=None)],
    )


def test_plan_and_group_follow_a_membership():
    account = money.open_account()
    by_hand = Group.objects.create(name="By hand")
    account.user.groups.add(by_hand)
    school, firm = make_plan("school"), make_plan("firm")
    assert firm.group is not None
    account.user.groups.add(firm.group)  # by hand: it stays
    assert money.give_plan(account, school, until=NOW + timedelta(days=9))
    assert not money.give_plan(account, school, until=NOW + timedelta(days=9))
    assert state(account) == (
        "school",
        "school",
        ["By hand", "Group of firm", "Group of school"],
        ["school"],
    )
    assert money.give_plan(account, firm)
    assert state(account) == ("firm", "firm", ["By hand", "Group of firm"], ["firm"])
    assert money.give_plan(account, None)
    assert state(account) == (None, None, ["By hand", "Group of firm"], [])
    assert not money.give_plan(account, None)
    assert Membership.objects.filter(ended_at=None).count() == 0
    assert Membership.objects.count() == 2


def test_copy_of_the_plan_survives_stale_saves():
    account = money.open_account()
    stale = User.objects.get(pk=account.user_id)
    money.give_plan(account, make_plan("school"))
    stale.save()
    assert state(account)[:2] == ("school", "school")
    # A process of the previous release writes the account alone.
    Account.objects.filter(pk=account.pk).update(plan=make_plan("firm"))
    assert state(account)[:2] == ("firm", "firm")


def test_group_of_a_plan_is_changed_for_all(monkeypatch):
    monkeypatch.setattr(plans, "BATCH", 1)
    school, everybody = make_plan("school"), make_plan("everybody", is_default=True)
    members = [money.open_account() for _ in range(2)]
    for account in members:
        money.give_plan(account, school)
    other = money.open_account()
    assert state(other)[2] == ["Group of everybody"]  # a new account has the default plan's
    assert everybody.group is not None
    school.group, everybody.group = everybody.group, None
    school.save()
    everybody.save()
    assert plans.follow_groups(NOW) == 3
    assert plans.follow_groups(NOW) == 0
    assert [state(one)[2] for one in (*members, other)] == [["Group of everybody"]] * 2 + [[]]
    # A group that gets permissions is no longer given: it would make staff of members.
    school.group.permissions.add(Permission.objects.latest("pk"))
    assert plans.follow_groups(NOW) == 2
    assert not PlanGroup.objects.exists()
    assert state(members[0])[2] == []


def test_due_membership_ends_once():
    make_plan("everybody", is_default=True)
    school = make_plan("school")
    accounts = [money.open_account() for _ in range(6)]
    for account in accounts:
        money.give_plan(account, school, until=PAST)
    later = money.open_account()
    money.give_plan(later, school, until=NOW + timedelta(days=1))
    assert sum(race([partial(plans.end_due, timezone.now())] * 3)) == 6
    assert plans.end_due(timezone.now()) == 0
    for account in accounts:
        assert state(account) == (None, None, ["Group of everybody"], [])
    assert state(later)[0] == "school"


def test_ended_membership_grants_the_default_plans_credits():
    make_plan("everybody", is_default=True, monthly_credits=3)
    account = money.open_account()
    money.give_plan(account, make_plan("school", monthly_credits=100), until=MONTH)
    assert allowances.grant_month(MONTH) == 1
    assert money.state(account)[0] == 3


def test_change_amid_a_month_grants_nothing_twice():
    free, school = make_plan("free"), make_plan("school", monthly_credits=100)
    firm = make_plan("firm", monthly_credits=900)
    account = money.open_account()
    money.give_plan(account, free)
    assert allowances.grant_month(MONTH) == 0
    money.give_plan(account, school)  # the month has brought nothing so far
    assert allowances.grant_month(MONTH) == 1
    for plan in (firm, school, None, firm):
        money.give_plan(account, plan)
        assert allowances.grant_month(MONTH) == 0
    assert money.state(account)[0] == 100
    assert allowances.grant_month(MONTH + timedelta(days=30)) == 1
    assert money.state(account)[0] == 1000


def test_account_is_opened_with_the_users_plan():
    plan = make_plan("school", monthly_credits=100)
    invitation = Invitation.objects.create(expires_at=NOW, plan=plan)
    user = User.objects.create_user("new@example.org", plan=plan)
    account = money_transaction(signup.open_account, user_id=user.pk)
    assert state(account) == ("school", "school", ["Group of school"], [])
    for _ in range(2):
        money_transaction(
            signup.join_plan, user_id=user.pk, plan_id=plan.pk, invitation_id=invitation.pk
        )
    assert state(account)[3] == ["school"]
    membership = Membership.objects.get()
    assert (membership.source, membership.invitation) == ("invitation", invitation)


# --- Faults and kills -------------------------------------------------------------------------


def case(call: str) -> tuple[Account, Callable[[], object]]:
    """A call, and its account, which has a plan, a group, and a membership that is due."""
    account = money.open_account()
    school, _ = Plan.objects.order_by("slug")
    money.give_plan(account, school, until=PAST)
    match call:
        case "change":
            firm = Plan.objects.get(slug="school2")
            source = plans.Source.STAFF
            return account, partial(
                plans.change, account_id=account.pk, plan_id=firm.pk, source=source
            )
        case "end":
            pk = account.memberships.get().pk
            return account, partial(plans._end, pk, account.pk, NOW)
    return account, partial(allowances._grant, account.pk, "2099-03", MONTH)


@pytest.mark.parametrize("call", ["change", "end", "grant"])
def test_fault_at_any_statement_leaves_no_trace(call):
    make_plan("school1", monthly_credits=5)
    make_plan("school2")

    def whole(account: Account) -> tuple[object, ...]:
        return state(account), money.state(account), PlanGroup.objects.count()

    account, fn = case(call)
    counter = Faults(at=0)
    money_transaction(with_faults, fn, counter)
    right = state(account), money.state(account)
    assert counter.seen > 3
    for number in range(1, counter.seen + 1):
        account, fn = case(call)
        before = whole(account)
        with pytest.raises(Fault):
            money_transaction(with_faults, fn, Faults(at=number))
        assert whole(account) == before
        money_transaction(fn)
        assert (state(account), money.state(account)) == right
    assert money.problems() == []


CLOCK = """
import django; django.setup()
from datetime import datetime
from django.db import connection
from accounts.models import Invitation, User
from billing.ledger import allowances
connection.ensure_connection()
print("ready", flush=True)
print("granted", allowances.grant_month(datetime.fromisoformat({now!r})), flush=True)
"""


def test_killed_and_second_clock_grant_once(tmp_path):
    """A clock is killed amid the month's grants, while another one works on the same accounts."""
    make_plan("everybody", is_default=True, monthly_credits=100)
    accounts = [money.open_account() for _ in range(8)]
    money.give_plan(accounts[0], make_plan("school", monthly_credits=7), until=PAST)
    program = [sys.executable, "-c", CLOCK.format(now=MONTH.isoformat())]
    environment = {**os.environ, "DATABASE_URL": database_url()}
    with Program(program, cwd=BASE_DIR, env=environment) as first:
        with locked(accounts[3]):
            first.wait_for("ready")
            wait_for_blocked_session()
            assert LedgerEntry.objects.count() == 3  # it is amid its work
            first.process.kill()
            first.process.wait()
        with Program(program, cwd=BASE_DIR, env=environment) as second:
            third = allowances.grant_month(MONTH)
            [_, granted] = second.wait_for("granted").split()
    assert third + int(granted) == 5
    assert LedgerEntry.objects.count() == 8
    assert {money.state(one)[0] for one in accounts} == {100}
    assert Membership.objects.filter(ended_at=None).count() == 0
    assert money.problems() == []
