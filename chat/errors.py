"""Codes of the errors that a user can see, and their words.

Each sentence says what happened and what to do.
"""

from __future__ import annotations

from django.conf import settings
from msgspec import Struct

# How each error reads. Every sentence says what happened and what to do.
ERRORS: dict[str, str] = {
    "not_signed_in": "You are not signed in. Sign in and try again.",
    "not_allowed": "You may read this conversation but not write in it. Start a chat of your own.",
    "not_found": "This is not there, or not yours. Go back to your chats.",
    "empty_text": "The message is empty. Write something first.",
    "text_too_long": f"The message is longer than {settings.TEXT_MAX_CHARACTERS:,} characters. Shorten it or send it in parts.",
    "unknown_type": "The server does not know this kind of message. Reload the page.",
    "unknown_field": "The message has a field that the server does not know. Reload the page.",
    "bad_json": "The server could not read the message. Reload the page and try again.",
    "insufficient_credits": "Your credits do not cover this message. Buy credits, or send less.",
    "run_active": "A reply is still being written. Wait for it, or stop it first.",
    "busy": "Too many replies are waiting right now. Try again in a moment.",
    "rate_limited": "Too many of your messages are waiting. Let some replies finish, then try again.",
    "unavailable": "The service is not reachable right now. Nothing was lost. Try again in a moment.",
    "provider_error": "The model could not answer. Try again.",
    "provider_timeout": "The model did not answer in time. Try again.",
    "limit_reached": "The reply reached its time limit. What was written is kept.",
    "internal": "Something went wrong on our side. It has been logged. Try again.",
}


# How `unavailable` reads when the workers that began a reply all ended in the middle of it.
INTERRUPTED = "The reply was interrupted on our side. What was written is kept. Try again."

# And when a message waited for so long that the credits held for it were given back.
HOLD_EXPIRED = "The message waited for too long. Nothing was charged. Try again."


class Missing(Struct, frozen=True):
    """What a message needs and what there is, in micro-credits."""

    required: int
    available: int
    missing: int


class ChatError(Exception):
    """Something that a user may see: `code` is one of ERRORS, `message` a sentence.

    `credits` are the figures of `insufficient_credits`; `retry_after` says in how many seconds
    trying again may help.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        credits: Missing | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.code = code
        self.message = message or ERRORS[code]
        self.credits = credits
        self.retry_after = retry_after
        super().__init__(f"{code}: {self.message}")
