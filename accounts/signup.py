"""The sign-up credits of a verified address or an approved account: once per user and address.

The right to them is a row, written in the transaction that verifies the address; the money follows
after its commit, and the clock grants what a crash left out.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from allauth.account.models import EmailAddress
from allauth.account.signals import email_confirmed
from django.conf import settings
from django.dispatch import receiver
from django.utils import timezone
from django.utils.crypto import salted_hmac

from accounts.models import SignupGrant, User
from billing.ledger import signup
from chatproject.lib import db
from chatproject.lib.batches import apart

PATIENCE = timedelta(minutes=1)  # a grant of this age was lost after its commit
BATCH = 200


@receiver(email_confirmed, dispatch_uid="accounts.signup")
def grant_for_address(email_address: EmailAddress, **kwargs: Any) -> None:
    """Grant the sign-up credits of a user who confirmed an address."""
    entitle(email_address.user, email_address.email)


def approve(user: User) -> bool:
    """Verify a user's address on behalf of staff, with the sign-up credits; call it in a transaction.

    Return False when the address is verified for another account.
    """
    address, _ = EmailAddress.objects.get_or_create(user=user, email=user.email)
    if not address.set_verified():
        return False
    address.set_as_primary(conditional=True)
    entitle(user, address.email)
    return True


def entitle(user: User, address: str) -> None:
    """Store the right to the sign-up credits, and grant them after the commit.

    Another user's right with the same address, or an earlier one of this user, leaves all as it is.
    """
    right = SignupGrant(user=user, address_hash=hash_of(address))
    SignupGrant.objects.bulk_create([right], ignore_conflicts=True)
    db.after_commit(grant, user.pk)


def hash_of(address: str) -> str:
    """Return the keyed hash of an address, which outlives the address itself."""
    return salted_hmac("accounts.signup", address.strip().lower()).hexdigest()


def grant(user_id: int) -> None:
    """Grant what a user has a right to and did not receive. Raises MoneyBusy."""
    waiting = SignupGrant.objects.filter(user_id=user_id, granted_at=None)
    if settings.BILLING and waiting.exists():
        db.money_transaction(signup.grant_bonus, user_id=user_id)
        waiting.update(granted_at=timezone.now())


def grant_lost(now: datetime) -> None:
    """Grant the sign-up credits whose process died after the confirmation."""
    if not settings.BILLING:
        return
    lost = SignupGrant.objects.filter(granted_at=None, created_at__lte=now - PATIENCE)
    for user_id in list(lost.order_by("created_at").values_list("pk", flat=True)[:BATCH]):
        with apart(f"the sign-up credits of user {user_id}"):
            grant(user_id)
