"""Mails about changes of an account to addresses that it had before.

allauth itself writes about a new password, a removed address (to the primary one) and a changed
primary address (to the old one).
"""

from __future__ import annotations

from typing import Any

from allauth.account.adapter import get_adapter
from allauth.account.models import EmailAddress
from allauth.account.signals import email_added, email_confirmed, email_removed
from django.dispatch import receiver
from django.http import HttpRequest


@receiver(email_added, dispatch_uid="accounts.notices")
def notify_of_added(request: HttpRequest, email_address: EmailAddress, **kwargs: Any) -> None:
    """Write to the primary address that another address was added."""
    user = email_address.user
    if email_address.email.lower() != user.email.lower():
        context = {"email_address": email_address.email}
        get_adapter(request).send_notification_mail("account/email/email_added", user, context)


@receiver(email_confirmed, dispatch_uid="accounts.notices")
def notify_of_confirmed(request: HttpRequest, email_address: EmailAddress, **kwargs: Any) -> None:
    """Write to the primary address that another address was confirmed."""
    user = email_address.user
    if email_address.email.lower() != user.email.lower():
        context = {"email_address": email_address.email}
        get_adapter(request).send_notification_mail("account/email/email_confirmed", user, context)


@receiver(email_removed, dispatch_uid="accounts.notices")
def notify_removed(request: HttpRequest, email_address: EmailAddress, **kwargs: Any) -> None:
    """Write to an address that it was removed from its account."""
    get_adapter(request).send_notification_mail(
        "account/email/email_deleted",
        email_address.user,
        {"deleted_email": email_address.email},
        email=email_address.email,
    )
