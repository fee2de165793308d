"""allauth's forms of second factors, with the named limit `codes` and in the words of this site."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from typing import Any, TypeVar

from allauth.core.internal.cryptokit import normalize_user_code
from allauth.mfa.adapter import get_adapter
from allauth.mfa.base import forms as base
from allauth.mfa.models import Authenticator
from allauth.mfa.totp import forms as totp
from allauth.mfa.totp.internal.auth import generate_totp_secret
from allauth.mfa.webauthn import forms as webauthn
from cryptography.exceptions import InvalidSignature
from django import forms
from django.core.cache import cache
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from chatproject.lib import encryption, rate_limits

T = TypeVar("T")

# Errors of fido2 for answers of another form, beside its own.
UNREADABLE = (
    AttributeError,
    IndexError,
    InvalidSignature,
    KeyError,
    TypeError,
    ValueError,
    struct.error,
)

logger = logging.getLogger(__name__)

# Where a session keeps the secret of an app that is being set up, encrypted.
SECRET = "new_totp_secret"  # noqa: S105 # a name
# Seconds in which a code is accepted: the present step of 30 s and one on each side.
CODE_SECONDS = 90


class _Counted:
    """Counts each check of a code or a passkey before it is made; a right one clears the count."""

    user: Any

    def _checked(self, check: Any) -> Any:
        """Return the result of a check. Raises RateLimited, or a RedisError while nothing can be counted."""
        rate_limits.hit("codes", self.user.pk)
        try:
            checked = check()
        except encryption.Undecryptable:
            logger.exception("the second factor of user %s cannot be decrypted", self.user.pk)
            raise forms.ValidationError(
                _("Your second factor cannot be checked. Ask the operator to reset it.")
            ) from None
        rate_limits.clear("codes", self.user.pk)
        return checked

    def _use_once(self, code: str) -> None:
        """Refuse a code of an app that was accepted before: it may have been observed."""
        key = f"totp:{self.user.pk}:{normalize_user_code(code)}"
        if not cache.add(key, 1, timeout=CODE_SECONDS):
            raise get_adapter().validation_error("incorrect_code")


class _Code(_Counted):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field: forms.Field = self.fields["code"]  # type: ignore[attr-defined] # a form beside this class
        field.label = gettext_lazy("Code")
        field.widget = forms.TextInput(
            attrs={"autocomplete": "one-time-code", "inputmode": "numeric", "maxlength": "20"}
        )

    def clean_code(self) -> str:
        def check() -> str:
            code: str = super(_Code, self).clean_code()  # type: ignore[misc]
            if self.authenticator.type == Authenticator.Type.TOTP:  # type: ignore[attr-defined]
                self._use_once(code)
            return code

        checked: str = self._checked(check)
        return checked


class CodeForm(_Code, base.AuthenticateForm):
    """The code of an app, or a recovery code, of a user who signs in."""


class ConfirmCodeForm(_Code, base.ReauthenticateForm):
    """The same, of a signed-in user before a change."""


def _read(read: Callable[[], T]) -> T:
    """Return the result of reading a passkey's answer. Raises ValidationError for one that fido2 cannot read."""
    try:
        return read()
    except UNREADABLE as error:
        raise get_adapter().validation_error("incorrect_code") from error


class _Passkey(_Counted):
    def clean_credential(self) -> Authenticator:
        check = super().clean_credential  # type: ignore[misc]
        checked: Authenticator = self._checked(lambda: _read(check))
        return checked


class PasskeyForm(_Passkey, webauthn.AuthenticateWebAuthnForm):
    """The answer of a passkey of a user who signs in with the password."""


class ConfirmPasskeyForm(_Passkey, webauthn.ReauthenticateWebAuthnForm):
    """The same, of a signed-in user before a change."""


class SignInPasskeyForm(webauthn.LoginWebAuthnForm):
    """The answer of a passkey in place of the password."""

    def clean_credential(self) -> Authenticator:
        checked: Authenticator = _read(super().clean_credential)
        return checked


class AddPasskeyForm(webauthn.AddWebAuthnForm):
    """A new passkey."""

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = _read(super().clean)
        return cleaned


class ActivateForm(_Counted, totp.ActivateTOTPForm):
    """The first code of a new app. Its secret waits in the session, encrypted like the stored one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.user = kwargs.pop("user")
        session = kwargs.pop("session")
        # Past allauth's own, which stores the secret as it is.
        forms.Form.__init__(self, *args, **kwargs)
        token = session.get(SECRET) if self.is_bound else None
        if token is None:
            token = session[SECRET] = encryption.encrypt(generate_totp_secret())
        self.secret = encryption.decrypt(token)
        self.fields["code"].label = gettext_lazy("Code of the app")
        self.fields["code"].widget = forms.TextInput(
            attrs={"autocomplete": "one-time-code", "inputmode": "numeric", "maxlength": "20"}
        )

    def clean_code(self) -> str:
        def check() -> str:
            code: str = super(ActivateForm, self).clean_code()
            self._use_once(code)
            return code

        checked: str = self._checked(check)
        return checked


def forget_secret(request: HttpRequest) -> None:
    """Remove the secret of an app that has been set up from the session."""
    request.session.pop(SECRET, None)
