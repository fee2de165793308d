"""Opening a user's account, and the sign-up bonus."""

from __future__ import annotations

from datetime import datetime

from django.conf import settings
from django.utils import timezone
from django.utils.translation import gettext_noop

from billing.ledger import allowances, plans, postings
from billing.models import Account, LedgerEntry
from chatproject.lib import db

WELCOME = gettext_noop("Welcome")


def open_account(*, user_id: int) -> Account:
    """Return the user's account, opening it if it does not exist.

    With ALLOW_UNVERIFIED_CREDITS a new one has the sign-up bonus. Call it inside a money transaction.
    """
    account = Account.objects.filter(user_id=user_id).first()
    if account is not None:
        return account
    is_new = postings.insert_account(user_id)
    account = Account.objects.get(user_id=user_id)
    if is_new:
        plans.follow_group(user_id)
    if is_new and settings.ALLOW_UNVERIFIED_CREDITS:
        _grant(account)
    return account


def grant_bonus(*, user_id: int) -> None:
    """Grant a user the sign-up bonus, unless the account has it. Call it inside a money transaction."""
    _grant(open_account(user_id=user_id))


def _grant(account: Account) -> None:
    key = f"signup:{account.user_id}"
    # The amount may have been another one then, for which `postings.grant` would refuse the key.
    if settings.SIGNUP_CREDITS > 0 and not LedgerEntry.objects.filter(idempotency_key=key).exists():
        postings.grant(account_id=account.pk, amount=settings.SIGNUP_CREDITS, key=key, note=WELCOME)
        account.refresh_from_db()


def join_plan(
    *, user_id: int, plan_id: int, invitation_id: int, until: datetime | None = None
) -> None:
    """Move the account of a new user to the plan of an invitation, with its credits, unless staff gave it one.

    Call it inside a money transaction.
    """
    now = timezone.now()
    account = open_account(user_id=user_id)
    if account.plan_id in (None, plan_id) and not account.memberships.exists():
        plans.change(
            account_id=account.pk,
            plan_id=plan_id,
            source=plans.Source.INVITATION,
            invitation_id=invitation_id,
            until=until,
        )
        if settings.BILLING and (until is None or until > now):
            allowances.grant_joined(account.pk, now)


def account_of(user_id: int) -> Account:
    """Return the account of a user, opening it if it does not exist.

    Accounts are opened together with the user (accounts.models). For users created another way, such
    as by a bulk import, this function opens it in a transaction of its own: call it outside of any.
    """
    account: Account | None = Account.objects.filter(user_id=user_id).first()
    return account or db.money_transaction(open_account, user_id=user_id)
