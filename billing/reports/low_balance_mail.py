"""The mail that says that credits run out, once for each time that they do."""

from __future__ import annotations

import logging

from django.conf import settings
from django.core.mail import send_mail
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone

from billing.models import Account
from billing.reports import balances
from billing.reports.balances import Balance

logger = logging.getLogger(__name__)


def tell_if_low(account_id: int) -> bool:
    """Write to the user if the balance has become low; returns whether a mail was sent.

    Once per crossing: the next mail comes after the balance was above the mark. It may be called at
    any time and by several processes at once, but not inside a transaction, as it talks to the
    mail server. Raises Account.DoesNotExist.
    """
    balance = balances.of_account(account_id)
    if not balance.low:
        Account.objects.filter(pk=account_id, low_told_at__isnull=False).update(low_told_at=None)
        return False
    if not balance.last_lot or not balance.account.user.is_active:
        return False  # nothing ever came in: there is nothing that runs out
    # Who writes the time sends the mail.
    claimed = Account.objects.filter(pk=account_id, low_told_at=None).update(
        low_told_at=timezone.now()
    )
    if not claimed:
        return False
    try:
        _send(balance)
    except OSError as error:
        # The mail server is away (its own errors are OSErrors too): the next call tries again.
        Account.objects.filter(pk=account_id).update(low_told_at=None)
        logger.warning("the low-balance mail of account %d waits: %s", account_id, error)
        return False
    return True


def _send(balance: Balance) -> None:
    context = {
        "balance": balance,
        "site_name": settings.SITE_NAME,
        "link": f"{settings.SITE_URL}{reverse('billing:packages')}" if settings.SITE_URL else "",
    }
    subject = "You have no credits left" if balance.balance <= 0 else "Your credits run out"
    send_mail(
        f"{settings.SITE_NAME}: {subject}",
        render_to_string("billing/email/low_balance.txt", context),
        None,
        [balance.account.user.email],
    )
