"""Promo codes: a word that gives credits, to so many people and so often each."""

from __future__ import annotations

import re
from datetime import timedelta

from django.db.models import F, Q
from django.utils import timezone

from billing.ledger import postings
from billing.models import LedgerEntry, PromoCode, PromoRedemption
from chatproject.lib.db import money_transaction

WELL_FORMED = re.compile(r"[A-Z0-9_-]{1,40}")


class PromoRefused(Exception):
    """A code was not redeemed, and nothing was given; the message is a sentence for the user."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


def redeem(*, user_id: int, code: str) -> LedgerEntry:
    """Give the user the credits of a code, typed in whatever case.

    Raises PromoRefused, and lib.db.MoneyBusy when too many do the same at once.
    """
    code = code.strip().upper()
    if not WELL_FORMED.fullmatch(code):
        raise PromoRefused(_unknown(code))
    return money_transaction(_redeem, user_id, code)


def _redeem(user_id: int, code: str) -> LedgerEntry:
    now = timezone.now()
    # Whoever changes the code's row waits here for the one before, so that what follows counts
    # all redemptions there are. The code comes before the account in the order of locks.
    taken = PromoCode.objects.filter(
        Q(valid_from=None) | Q(valid_from__lte=now),
        Q(valid_to=None) | Q(valid_to__gt=now),
        code=code,
        active=True,
        redeemed__lt=F("max_redemptions"),
    ).update(redeemed=F("redeemed") + 1)
    promo = PromoCode.objects.filter(code=code).first()
    if promo is None:
        raise PromoRefused(_unknown(code))
    number = PromoRedemption.objects.filter(code=promo, user_id=user_id).count() + 1
    if number > promo.per_user:
        raise PromoRefused(f"You have used the code {code} already.")
    if not taken:
        raise PromoRefused(_why_not(promo))
    account = postings.open_account(user_id=user_id)
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


def _unknown(code: str) -> str:
    return f"There is no code {code[:40] or 'without letters'}. Check how it is spelled."


def _why_not(promo: PromoCode) -> str:
    now = timezone.now()
    if not promo.active:
        return f"The code {promo.code} is no longer given out."
    if promo.valid_from is not None and promo.valid_from > now:
        begins = timezone.localtime(promo.valid_from)
        return f"The code {promo.code} is valid from {begins:%-d %B %Y, %H:%M}. Try again then."
    if promo.valid_to is not None and promo.valid_to <= now:
        ended = timezone.localtime(promo.valid_to)
        return f"The code {promo.code} was valid until {ended:%-d %B %Y}."
    return f"The code {promo.code} has been used as often as it may be."
