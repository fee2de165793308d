"""Redeeming promo codes, each of which grants credits a limited number of times in all and per user."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from django.db.models import F, Q
from django.utils import timezone

from billing.ledger import postings, signup
from billing.models import LedgerEntry, PromoCode, PromoRedemption
from chatproject.lib.db import money_transaction

WELL_FORMED = re.compile(r"[A-Z0-9_-]{1,40}")
UNKNOWN = "There is no code {code}. Check the spelling."


class PromoRefused(Exception):
    """A code was refused and nothing granted; `message` is a sentence for the user."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


def redeem(*, user_id: int, code: str) -> LedgerEntry:
    """Grant the user the credits of a code, which may be typed in any case.

    Raises PromoRefused, and lib.db.MoneyBusy while too many users redeem the same code.
    """
    code = code.strip().upper()
    if not WELL_FORMED.fullmatch(code):
        raise PromoRefused(UNKNOWN.format(code=code[:40] or "without letters"))
    return money_transaction(_redeem, user_id, code)


def _redeem(user_id: int, code: str) -> LedgerEntry:
    now = timezone.now()
    # The update locks the code's row, so that all earlier redemptions are counted below. The code
    # comes before the account in the order of locks.
    taken = PromoCode.objects.filter(
        Q(valid_from=None) | Q(valid_from__lte=now),
        Q(valid_to=None) | Q(valid_to__gt=now),
        code=code,
        active=True,
        redeemed__lt=F("max_redemptions"),
    ).update(redeemed=F("redeemed") + 1)
    promo = PromoCode.objects.filter(code=code).first()
    if promo is None:
        raise PromoRefused(UNKNOWN.format(code=code))
    number = PromoRedemption.objects.filter(code=promo, user_id=user_id).count() + 1
    if number > promo.per_user:
        raise PromoRefused(f"You have used the code {code} already.")
    if not taken:
        raise PromoRefused(_reason(promo, now))
    account = signup.open_account(user_id=user_id)
    entry = postings.grant(
        account_id=account.pk,
        amount=promo.credits,
        key=f"promo:{promo.pk}:{user_id}:{number}",
        kind=LedgerEntry.Kind.PROMO,
        expires_at=None if promo.lot_days is None else now + timedelta(days=promo.lot_days),
        note=f"Code {code}",
    ).entry
    PromoRedemption.objects.create(code=promo, user_id=user_id, number=number, entry=entry)
    return entry


def _reason(promo: PromoCode, now: datetime) -> str:
    """Return a sentence on why a code cannot be used."""
    if not promo.active:
        return f"The code {promo.code} is no longer valid."
    if promo.valid_from is not None and promo.valid_from > now:
        begins = timezone.localtime(promo.valid_from)
        return f"The code {promo.code} is valid from {begins:%-d %B %Y, %H:%M}. Try again then."
    if promo.valid_to is not None and promo.valid_to <= now:
        ended = timezone.localtime(promo.valid_to)
        return f"The code {promo.code} was valid until {ended:%-d %B %Y}."
    return f"The code {promo.code} has been used up."
