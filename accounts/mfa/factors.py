"""Second factors: an authenticator app (TOTP), passkeys (WebAuthn) and recovery codes, all of allauth.mfa.

The secrets of apps and of recovery codes are encrypted at rest (lib.encryption); a passkey has none on the server.
"""

from __future__ import annotations

from typing import Any

import qrcode
from allauth.account.adapter import get_adapter
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AnonymousUser
from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from qrcode.image.svg import SvgPathFillImage

from accounts import sessions
from accounts.models import User
from chatproject.lib import encryption

# The parts of `Authenticator.data` that are encrypted: `manage.py rotate_keys` reads this attribute.
Authenticator.ENCRYPTED_PARTS = {"data": ("secret", "seed")}  # type: ignore[attr-defined] # allauth's class


class FactorAdapter(DefaultMFAAdapter):
    """allauth's questions about second factors, answered for this site."""

    error_messages = DefaultMFAAdapter.error_messages | {
        "incorrect_code": gettext_lazy(
            "That did not work. Try again with the newest code, or with your passkey."
        ),
        "cannot_delete_authenticator": gettext_lazy(
            "Members of staff need a second factor. Add another one before you remove this one."
        ),
        "cannot_generate_recovery_codes": gettext_lazy(
            "Set up an authenticator app or a passkey first."
        ),
    }

    def get_totp_issuer(self) -> str:
        return settings.SITE_NAME

    def _get_site_name(self) -> str:
        return settings.SITE_NAME

    def build_totp_svg(self, url: str) -> str:
        """Return the QR code of an app's address: dark on light in all themes, since cameras expect it."""
        drawn: str = qrcode.make(url, image_factory=SvgPathFillImage).to_string(encoding="unicode")
        return drawn

    def encrypt(self, text: str) -> str:
        return encryption.encrypt(text)

    def decrypt(self, encrypted_text: str) -> str:
        """Return the secret. Raises Undecryptable: a secret that is not the user's would accept foreign codes."""
        return encryption.decrypt(encrypted_text)

    def can_delete_authenticator(self, authenticator: Authenticator) -> bool:
        """Return whether a user may remove a factor: all but the last one of staff who must have one."""
        user = authenticator.user
        others = own_factors(user).exclude(pk=authenticator.pk)
        return not must_have(user) or others.exists()

    def generate_authenticator_name(self, user: AbstractBaseUser, type: Authenticator.Type) -> str:
        """Return a name for a new passkey."""
        count = Authenticator.objects.filter(user_id=user.pk, type=type).count()
        return _("Passkey") if not count else _("Passkey %(number)s") % {"number": count + 1}


def own_factors(user: User) -> Any:
    """Return the apps and passkeys of a user, without the recovery codes that complement them."""
    return Authenticator.objects.filter(user_id=user.pk).exclude(
        type=Authenticator.Type.RECOVERY_CODES
    )


def must_have(user: User | AnonymousUser) -> bool:
    """Return whether a user must have a second factor (STAFF_TWO_FACTOR)."""
    return bool(settings.STAFF_TWO_FACTOR and user.is_staff)


def is_missing(user: User | AnonymousUser) -> bool:
    """Return whether a user must have a second factor and has none; a query for members of staff alone."""
    return isinstance(user, User) and must_have(user) and not own_factors(user).exists()


def remove_all(user: User) -> bool:
    """Remove all factors of a user who has lost them, and end all sessions; call it in a transaction.

    Return False if there was none. The user is notified by mail.
    """
    removed, _rows = Authenticator.objects.filter(user_id=user.pk).delete()
    if not removed:
        return False
    sessions.end_all(user)
    transaction.on_commit(
        lambda: get_adapter().send_notification_mail("mfa/email/factors_removed", user)
    )
    return True
