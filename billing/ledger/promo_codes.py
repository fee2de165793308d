"""Redeeming promo codes, each of which grants credits a limited number of times in all and per user."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing.ledger import postings, signup
from billing.models import LedgerEntry, PromoCode, PromoRedemption
from chatproject.lib import languages
from chatproject.lib.db import money_transaction

WELL_FORMED = re.compile(r"[A-Z0-9_-]{1,40}")
UNKNOWN = gettext_lazy("There is no code {code}. Check the spelling.")


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
        raise PromoRefused(UNKNOWN.format(code=code[:40] or _("without letters")))
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
        raise PromoRefused(_("You have used the code %(code)s already.") % {"code": code})
    if not taken:
        raise PromoRefused(_reason(promo, now))
    account = signup.open_account(user_id=user_id)
    entry = postings.grant(
        account_id=account.pk,
        amount=promo.credits,
        key=f"promo:{promo.pk}:{user_id}:{number}",
        kind=LedgerEntry.Kind.PROMO,
        expires_at=None if promo.lot_days is None else now + timedelta(days=promo.lot_days),
        note=_("Code %(code)s") % {"code": code},
    ).entry
    PromoRedemption.objects.create(code=promo, user_id=user_id, number=number, entry=entry)
    return entry


def _reason(promo: PromoCode, now: datetime) -> str:
    """Return a sentence on why a code cannot be used."""
    if not promo.active:
        return _("The code %(code)s is no longer valid.") % {"code": promo.code}
    if promo.valid_from is not None and promo.valid_from > now:
        begins = languages.day(promo.valid_from, "j F Y, H:i")
        return _("The code %(code)s is valid from %(begins)s. Try again then.") % {
            "code": promo.code,
            "begins": begins,
        }
    if promo.valid_to is not None and promo.valid_to <= now:
        ended = languages.day(promo.valid_to, "j F Y")
        return _("The code %(code)s was valid until %(ended)s.") % {
            "code": promo.code,
            "ended": ended,
        }
    return _("The code %(code)s has been used up.") % {"code": promo.code}
