"""Mails about second factors that allauth does not write."""

from __future__ import annotations

from typing import Any

from allauth.account.adapter import get_adapter
from allauth.mfa.models import Authenticator
from allauth.mfa.signals import authenticator_used
from django.dispatch import receiver
from django.http import HttpRequest

from accounts.models import User


@receiver(authenticator_used, dispatch_uid="accounts.mfa.notices")
def notify_of_used_code(
    request: HttpRequest, user: User, authenticator: Authenticator, **kwargs: Any
) -> None:
    """Write that a recovery code was used, and how many are left."""
    if authenticator.type == Authenticator.Type.RECOVERY_CODES:
        authenticator.refresh_from_db()
        left = len(authenticator.wrap().get_unused_codes())  # type: ignore[no-untyped-call] # allauth's
        get_adapter(request).send_notification_mail(
            "mfa/email/recovery_code_used", user, {"left": left}
        )
