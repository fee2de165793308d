"""Accounts as readers see them. Writing is the ledger's."""

from __future__ import annotations

from billing import ledger
from billing.models import Account
from chatproject.lib import db


def of(user_id: int) -> Account:
    """The account of a user, opened now if it is not there yet.

    Accounts are opened with the user (accounts.models). This is for users who came in another way,
    such as a bulk import, and must not be called inside a transaction when that may be so.
    """
    account: Account | None = Account.objects.filter(user_id=user_id).first()
    return account or db.money_transaction(ledger.open_account, user_id=user_id)
