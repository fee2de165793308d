"""The plans of accounts: `change` is the one entry point, for staff, invitations and the end of a membership.

An open Membership says why an account has its plan, and until when. Its end returns the account to the default
plan, in the transaction that closes the row: of any number of processes, one finds it open. The group of a plan
follows: `follow_group` adds it to the user's groups and removes it, but only where the plan gave it (PlanGroup).
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from functools import partial

from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.utils import timezone

from billing.models import Account, Membership, Order, Plan, PlanGroup
from chatproject.lib.batches import apart
from chatproject.lib.db import money_transaction

Source = Membership.Source

BATCH = 200  # rows per query
SECONDS = 60.0  # time limit of one call; the next call continues


def plan_of(account: Account) -> Plan | None:
    """Return the account's own plan, or the default plan."""
    return account.plan or Plan.objects.filter(is_default=True).first()


def membership_of(account: Account) -> Membership | None:
    """Return the open membership of an account; None while it has the default plan."""
    if account.plan_id is None:
        return None
    return account.memberships.filter(ended_at=None, plan_id=account.plan_id).first()


def change(
    *,
    account_id: int,
    plan_id: int | None,
    source: Source,
    until: datetime | None = None,
    actor_id: int | None = None,
    invitation_id: int | None = None,
    order: Order | None = None,
    reason: str = "",
) -> bool:
    """Give an account a plan, or with None the default one; return whether that changed anything.

    `until` is the time at which it returns to the default plan. Call it inside a money transaction: the user's
    row is locked before the account. This month's credits do not change (billing.ledger.allowances).
    """
    account = locked(account_id)
    now = timezone.now()
    open_ones = Membership.objects.filter(account=account, ended_at=None)
    present = open_ones.first()
    is_same = plan_id is None or (present is not None and present.until == until)
    if account.plan_id == plan_id and is_same:
        return False
    open_ones.update(ended_at=now)
    if plan_id is not None:
        Membership.objects.create(
            account=account,
            plan_id=plan_id,
            since=now,
            until=until,
            source=source,
            actor_id=actor_id,
            invitation_id=invitation_id,
            order=order,
            reason=reason.strip()[:300],
        )
    Account.objects.filter(pk=account_id).update(plan_id=plan_id, updated_at=now)
    _follow(account.user_id)
    return True


def add_bought(order: Order, now: datetime) -> None:
    """Give the buyer of a paid order its plan, once; call it in the transaction that adds the credits, before them.

    The days are added to the rest of the same plan. Another plan ends.
    """
    if order.plan_id is None or order.plan_days is None:
        return
    account = locked(order.account_id)
    if Membership.objects.filter(order=order).exists():
        return
    present = membership_of(account)
    is_same = present is not None and present.plan_id == order.plan_id
    if is_same and present is not None and present.until is None:
        return  # it has no end
    begin = present.until if is_same and present is not None and present.until else now
    change(
        account_id=account.pk,
        plan_id=order.plan_id,
        source=Source.ORDER,
        until=max(begin, now) + timedelta(days=order.plan_days),
        order=order,
    )


def take_bought(order: Order, now: datetime) -> None:
    """Take the days of a plan back, once, as all the money of its order went back; the caller saves the order.

    Call it under the order's lock, before the account is locked.
    """
    if order.plan_days is None or order.plan_reclaimed_at is not None:
        return
    order.plan_reclaimed_at = now
    account = locked(order.account_id)
    present = membership_of(account)
    if present is None or present.plan_id != order.plan_id or present.source != Source.ORDER:
        return
    assert present.until is not None
    until = present.until - timedelta(days=order.plan_days)
    Membership.objects.filter(pk=present.pk).update(until=until)
    if until <= now:
        _end(present.pk, account.pk, now)


def return_bought(order: Order, now: datetime) -> None:
    """Undo `take_bought`, as the money did not stay with the buyer: for the rest of the days since the payment."""
    if order.plan_days is None or order.plan_reclaimed_at is None or order.paid_at is None:
        return
    order.plan_reclaimed_at = None
    account = locked(order.account_id)
    until = order.paid_at + timedelta(days=order.plan_days)
    present = membership_of(account)
    is_longer = present is not None and (present.until is None or present.until >= until)
    if until > now and not (is_longer and account.plan_id == order.plan_id):
        change(account_id=account.pk, plan_id=order.plan_id, source=Source.ORDER, until=until)


def locked(account_id: int) -> Account:
    """Return an account, and lock its user's row, then its own, until the end of the transaction."""
    users = get_user_model()._default_manager
    users.select_for_update(no_key=True).get(account=account_id)
    return Account.objects.select_for_update(no_key=True).get(pk=account_id)


def end_due(now: datetime) -> int:
    """End the memberships whose time has come; return how many this call has ended.

    May be called at any time, concurrently, and again after a kill.
    """
    deadline = time.monotonic() + SECONDS
    ended = last = 0
    due = Membership.objects.filter(ended_at=None, until__lte=now).order_by("pk")
    while batch := list(due.filter(pk__gt=last).values_list("pk", "account_id")[:BATCH]):
        for pk, account_id in batch:
            if time.monotonic() > deadline:
                return ended
            last = pk
            with apart(f"the end of membership {pk}"):
                ended += money_transaction(partial(_end, pk, account_id, now))
    return ended


def _end(membership_id: int, account_id: int, now: datetime) -> bool:
    account = locked(account_id)
    due = Membership.objects.filter(pk=membership_id, ended_at=None, until__lte=now).first()
    if due is None:
        return False
    Membership.objects.filter(pk=due.pk).update(ended_at=now)
    # A process of the previous release may have given it another plan under the open membership.
    if account.plan_id == due.plan_id:
        Account.objects.filter(pk=account_id).update(plan_id=None, updated_at=now)
        _follow(account.user_id)
    return True


# --- Groups -----------------------------------------------------------------------------------

# The group that each user should have by the plan; one with permissions is never given.
WANTED = """
SELECT owner.id, owner.is_active, allowed.id AS wanted, given.group_id AS given
FROM accounts_user AS owner
LEFT JOIN billing_plan AS plan ON plan.id = coalesce(
  owner.plan_id, (SELECT id FROM billing_plan WHERE is_default)
)
LEFT JOIN auth_group AS allowed ON allowed.id = plan.group_id AND NOT EXISTS (
  SELECT 1 FROM auth_group_permissions WHERE group_id = allowed.id
)
LEFT JOIN billing_plangroup AS given ON given.user_id = owner.id
"""

ONE = f"{WANTED} WHERE owner.id = %s"  # of a constant

# Active users whose groups do not follow their plan. A user who is in the group anyway needs nothing.
ASTRAY = f"""
SELECT found.id FROM ({WANTED}) AS found
WHERE found.id > %s AND found.is_active AND found.wanted IS DISTINCT FROM found.given AND NOT (
  found.given IS NULL AND EXISTS (
    SELECT 1 FROM accounts_user_groups WHERE user_id = found.id AND group_id = found.wanted
  )
)
ORDER BY found.id LIMIT {BATCH}
"""  # noqa: S608 # of constants


def follow_groups(now: datetime) -> int:
    """Let the groups of all users follow their plans, for example after the group of a plan was changed.

    The groups of inactive users follow as soon as they are active. Returns the number of users concerned. May be
    called at any time and concurrently.
    """
    deadline = time.monotonic() + SECONDS
    followed = last = 0
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(ASTRAY, [last])
            batch = [user_id for (user_id,) in cursor.fetchall()]
        if not batch:
            break
        last = batch[-1]
        for user_id in batch:
            with apart(f"the group of user {user_id}"):
                follow_group(user_id)
                followed += 1
    return followed


@transaction.atomic
def follow_group(user_id: int) -> None:
    """Let the groups of a user follow the plan."""
    get_user_model()._default_manager.select_for_update(no_key=True).get(pk=user_id)
    _follow(user_id)


REMOVE = "DELETE FROM accounts_user_groups WHERE user_id = %s AND group_id = %s"

# A group that a person has given is not the plan's.
ADD = """
WITH added AS (
  INSERT INTO accounts_user_groups (user_id, group_id) VALUES (%s, %s)
  ON CONFLICT DO NOTHING RETURNING user_id, group_id
)
INSERT INTO billing_plangroup (user_id, group_id) SELECT user_id, group_id FROM added
"""


def _follow(user_id: int) -> None:
    """Do it under the lock of the user's row."""
    with connection.cursor() as cursor:
        cursor.execute(ONE, [user_id])
        _id, _is_active, wanted, given = cursor.fetchone()
        if wanted == given:
            return
        if given is not None:
            cursor.execute(REMOVE, [user_id, given])
            PlanGroup.objects.filter(user_id=user_id).delete()
        if wanted is not None:
            cursor.execute(ADD, [user_id, wanted])
