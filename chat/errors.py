"""Codes and sentences of the errors that a user can see."""

from __future__ import annotations

from django.conf import settings
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_noop as _
from msgspec import Struct

from chatproject.lib import languages

# Each text says what happened and what to do. These are sources (gettext): `sentence` translates them.
ERRORS: dict[str, str] = {
    "not_signed_in": _("You are not signed in. Sign in and try again."),
    "not_allowed": _("You may read this chat but not write in it. Start a chat of your own."),
    "not_found": _("Not found, or you do not have access. Go back to your chats."),
    "empty_text": _("The message is empty. Write something first."),
    "text_too_long": _(
        "The message is longer than %(limit)s characters. Shorten it or send it in parts."
    ),
    "bad_text": _(
        "The message has a character that cannot be stored. Remove it and send the message again."
    ),
    "unknown_type": _("The message has an unknown type. Reload the page."),
    "unknown_field": _("The message has an unknown field. Reload the page."),
    "bad_json": _("The server could not read the message. Reload the page and try again."),
    "model_unavailable": _(
        "This model is not available to you. Nothing was sent. Choose another model."
    ),
    "bad_setting": _(
        "The model does not have this setting. Nothing was sent. Choose another value."
    ),
    "bad_file": _("This file cannot be attached. Attach another one."),
    "file_too_large": _("The file is too large. Attach a smaller one."),
    "file_missing": _("A file of this message is no longer stored. Attach it again."),
    "storage_full": _("Your files use all of your space. Delete some in the settings."),
    "no_vision": _("This model cannot see images. Nothing was sent. Choose a model with vision."),
    "insufficient_credits": _("Your credits do not cover this message. Buy credits, or send less."),
    "price_changed": _("The price has changed meanwhile. Nothing was bought. Look at it again."),
    "too_many": _("These are too many at a time. Select fewer."),
    "moderated": _(
        "Your message breaks a rule of this site. It was not sent. Change it, then send it again."
    ),
    "already_sent": _("This message was sent or removed meanwhile. Nothing was changed."),
    "already_decided": _("This was answered already, or the reply has ended. Nothing was changed."),
    "run_active": _("A reply is still being written. Wait for it, or stop it first."),
    "busy": _("Too many messages are queued right now. Try again in a moment."),
    "rate_limited": _(
        "Too many of your messages are queued. Let some replies finish, then try again."
    ),
    "still_trying": _(
        "This takes longer than usual. Your request is still being tried, please wait."
    ),
    "unavailable": _(
        "The service is unavailable right now. Nothing was lost. Try again in a moment."
    ),
    "provider_error": _("The model could not answer. Try again."),
    "empty_reply": _("The model returned nothing. Try again."),
    "provider_timeout": _("The model did not answer in time. Try again."),
    "limit_reached": _("The reply reached its time limit. The text so far is saved."),
    "internal": _("Something went wrong on our side. It has been logged. Try again."),
}


# The text of `unavailable` when all workers that began a reply ended before it was finished.
INTERRUPTED = _("The reply was interrupted on our side. The text so far is saved. Try again.")

# The text of `empty_reply` for a model that ended after its reasoning.
ONLY_THOUGHTS = _("The model ended after thinking, without an answer. Try again.")

# The same for a model that added nothing to the reply that it was to continue.
NOTHING_ADDED = _("The model added nothing to the reply. Nothing was lost. Try again.")

# The text of `provider_error` when the provider's filter stopped a reply before its first word.
FILTERED = _(
    "The model provider's content filter blocked this reply. Rephrase your message, or try again."
)

# The same when a message was queued for so long that its hold was released.
HOLD_EXPIRED = _("The message was queued for too long. Nothing was charged. Try again.")


def sentence(code: str) -> str:
    """Return the text of a code of ERRORS in the active language."""
    text = gettext(ERRORS[code])
    if code != "text_too_long":
        return text
    return text % {"limit": languages.number(settings.TEXT_MAX_CHARACTERS)}


class Missing(Struct, frozen=True):
    """The credits that a message requires, the available ones and the difference, in micro-credits."""

    required: int
    available: int
    missing: int


class ChatError(Exception):
    """An error that the user may see: `code` is one of ERRORS, `message` its text in the active language.

    `credits` are the figures of `insufficient_credits`. After `retry_after` seconds a further try may
    succeed. `general` replaces a message with figures of the account, for a key that may not read these.
    """

    def __init__(
        self,
        code: str,
        message: str | Promise = "",
        *,
        credits: Missing | None = None,
        retry_after: float | None = None,
        general: str | Promise = "",
    ) -> None:
        self.code = code
        self.message = str(message) or sentence(code)
        self.general = str(general) or self.message
        self.credits = credits
        self.retry_after = retry_after
        super().__init__(f"{code}: {self.message}")
