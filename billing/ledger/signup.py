"""Opening a user's account at sign-up, with its bonus."""

from __future__ import annotations

from django.conf import settings

from billing.ledger import postings
from billing.models import Account
from chatproject.lib import db


def open_account(*, user_id: int) -> Account:
    """Return the user's account, opening it with the sign-up bonus if it does not exist.

    The bonus is SIGNUP_CREDITS, in micro-credits. Call it inside a money transaction.
    """
    account = Account.objects.filter(user_id=user_id).first()
    if account is not None:
        return account
    is_new = postings.insert_account(user_id)
    account = Account.objects.get(user_id=user_id)
    if is_new and settings.SIGNUP_CREDITS > 0:
        postings.grant(
            account_id=account.pk,
            amount=settings.SIGNUP_CREDITS,
            key=f"signup:{user_id}",
            note="Welcome",
        )
        account.refresh_from_db()
    return account


def account_of(user_id: int) -> Account:
    """Return the account of a user, opening it if it does not exist.

    Accounts are opened together with the user (accounts.models). For users created another way, such
    as by a bulk import, this function opens it in a transaction of its own: call it outside of any.
    """
    account: Account | None = Account.objects.filter(user_id=user_id).first()
    return account or db.money_transaction(open_account, user_id=user_id)
