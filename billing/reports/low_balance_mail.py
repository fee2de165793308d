"""The low-balance mail, sent once each time that a balance becomes low."""

from __future__ import annotations

from django.conf import settings
from django.core.mail import send_mail
from django.db import transaction
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.models import Account
from billing.reports import balances
from billing.signals import balance_low
from chatproject.lib import languages


def notify_if_low(account_id: int) -> bool:
    """Mail the user if the balance has become low, and send `balance_low`; return whether a mail was sent.

    Sent once per crossing: the next mail follows only after the balance was above the mark again.
    May be called at any time and concurrently. Raises Account.DoesNotExist.
    """
    balance = balances.of_account(account_id)
    if not balance.low:
        Account.objects.filter(pk=account_id, low_told_at__isnull=False).update(low_told_at=None)
        return False
    if not balance.last_lot or not balance.account.user.is_active:
        return False  # without any lot there were never credits to run out of
    with transaction.atomic():
        # The call whose update writes the time sends the mail.
        unsent = Account.objects.filter(pk=account_id, low_told_at=None)
        if not unsent.update(low_told_at=timezone.now()):
            return False
        balance_low.send(None, balance=balance)
        shop = reverse("billing:packages")
        context = {
            "balance": balance,
            "site_name": settings.SITE_NAME,
            "link": f"{settings.SITE_URL}{shop}" if settings.SITE_URL else "",
        }
        with languages.use(balance.account.user.language):
            is_empty = balance.balance <= 0
            words = (
                _("You have no credits left") if is_empty else _("You're running low on credits")
            )
            body = render_to_string("billing/email/low_balance.txt", context)
            to = [balance.account.user.email]
            send_mail(f"{settings.SITE_NAME}: {words}", body, None, to)
    return True
