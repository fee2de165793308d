"""The ways in which a sign-in at an identity provider fails, in words for the user."""

from __future__ import annotations

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy

# By code: the sentence that a page shows. `%(name)s` is the identity provider's name.
SENTENCES: dict[str, Promise] = {
    "cancelled": gettext_lazy(
        "The sign-in was cancelled at %(name)s. Nothing was changed. Try again, or sign in another way."
    ),
    "expired": gettext_lazy(
        "This sign-in took too long, or it was begun in another browser. Begin again."
    ),
    "unreachable": gettext_lazy(
        "%(name)s does not answer. Try again in a minute, or sign in another way."
    ),
    "refused": gettext_lazy(
        "%(name)s refused the sign-in. Try again. If that fails, ask the operator of this site."
    ),
    "invalid": gettext_lazy(
        "The answer of %(name)s could not be verified, so you are not signed in. Try again. If that"
        " fails, ask the operator of this site."
    ),
    "clock": gettext_lazy(
        "The clocks of this site and of %(name)s differ, or the answer came too late. Try again. If"
        " that fails, ask the operator of this site."
    ),
    "no_email": gettext_lazy(
        "%(name)s gave no e-mail address, and an account needs one. Allow it there, or add an address"
        " to your account there. Then try again."
    ),
    "not_allowed": gettext_lazy(
        "Your account at %(name)s may not use this site. Ask the operator of this site for access."
    ),
    "exists": gettext_lazy(
        "There is already an account with this e-mail address. Sign in to it with your password or"
        " passkey, then connect %(name)s in the settings."
    ),
}


class SignInFailed(Exception):
    """A sign-in at an identity provider has failed; `code` is a key of SENTENCES.

    `reason` is for the operator's log and has no secret and no data of the user.
    """

    def __init__(self, code: str, reason: str = "") -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{code}: {reason}")
