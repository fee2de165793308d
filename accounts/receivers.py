"""Receivers of Django's signals about users."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from allauth.account.models import EmailAddress
from allauth.account.signals import email_removed, password_reset, user_signed_up
from django.db.models.signals import post_delete, post_save
from django.http import HttpRequest

from accounts import claims, sign_in_limits
from accounts.models import User
from accounts.signals import access_changed
from chatproject.lib.db import after_commit
from chatproject.lib.log_events import log_event


def connect() -> None:
    """Connect all receivers."""
    post_save.connect(user_saved, sender=User, dispatch_uid="accounts.user_saved")
    user_signed_up.connect(signed_up, dispatch_uid="accounts.signed_up")
    post_delete.connect(user_deleted, sender=User, dispatch_uid="accounts.user_deleted")
    # In this order: the second needs Redis.
    password_reset.connect(end_foreign_access)
    password_reset.connect(sign_in_limits.forget_attempts)


def signed_up(*, user: User, **kwargs: Any) -> None:
    """Log the event."""
    after_commit(log_event, "sign_up", user_id=user.pk)


def user_saved(
    *, instance: User, created: bool, update_fields: Collection[str] | None, **kwargs: Any
) -> None:
    """Send `access_changed`, unless the user is new or only the time of the sign-in is stored."""
    if not created and (update_fields is None or set(update_fields) - {"last_login"}):
        after_commit(access_changed.send, sender=User, user_id=instance.pk)


def user_deleted(*, instance: User, **kwargs: Any) -> None:
    """Send `access_changed`; Django clears the key of the instance after this call."""
    after_commit(access_changed.send, sender=User, user_id=instance.pk)


def end_foreign_access(*, request: HttpRequest, user: User, **kwargs: Any) -> None:
    """Remove the additional addresses of an account whose owner has chosen a new password with a link.

    Removes unconfirmed ones. If the primary address is not confirmed, another person may have made the account with
    it, and confirmed an address of their own: then all of them are removed, and all other access ends.
    """
    others = EmailAddress.objects.filter(user=user).exclude(email__iexact=user.email)
    if EmailAddress.objects.filter(user=user, email__iexact=user.email, verified=True).exists():
        others = others.filter(verified=False)
    else:
        claims.end_access_of_maker(user)
    for address in others:
        address.delete()
        email_removed.send(sender=User, request=request, user=user, email_address=address)
