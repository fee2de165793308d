"""Codes and sentences of the errors that a user can see."""

from __future__ import annotations

from django.conf import settings
from msgspec import Struct

# Each text says what happened and what to do.
ERRORS: dict[str, str] = {
    "not_signed_in": "You are not signed in. Sign in and try again.",
    "not_allowed": "You may read this chat but not write in it. Start a chat of your own.",
    "not_found": "Not found, or you do not have access. Go back to your chats.",
    "empty_text": "The message is empty. Write something first.",
    "text_too_long": f"The message is longer than {settings.TEXT_MAX_CHARACTERS:,} characters. Shorten it or send it in parts.",
    "bad_text": "The message has a character that cannot be stored. Remove it and send the message again.",
    "unknown_type": "The message has an unknown type. Reload the page.",
    "unknown_field": "The message has an unknown field. Reload the page.",
    "bad_json": "The server could not read the message. Reload the page and try again.",
    "model_unavailable": "This model is not available to you. Nothing was sent. Choose another model.",
    "bad_setting": "The model does not have this setting. Nothing was sent. Choose another value.",
    "insufficient_credits": "Your credits do not cover this message. Buy credits, or send less.",
    "too_many": "These are too many at a time. Select fewer.",
    "run_active": "A reply is still being written. Wait for it, or stop it first.",
    "busy": "Too many messages are queued right now. Try again in a moment.",
    "rate_limited": "Too many of your messages are queued. Let some replies finish, then try again.",
    "still_trying": "This takes longer than usual. Your request is still being tried, please wait.",
    "unavailable": "The service is unavailable right now. Nothing was lost. Try again in a moment.",
    "provider_error": "The model could not answer. Try again.",
    "empty_reply": "The model returned nothing. Try again.",
    "provider_timeout": "The model did not answer in time. Try again.",
    "limit_reached": "The reply reached its time limit. The text so far is saved.",
    "internal": "Something went wrong on our side. It has been logged. Try again.",
}


# The text of `unavailable` when all workers that began a reply ended before it was finished.
INTERRUPTED = "The reply was interrupted on our side. The text so far is saved. Try again."

# The text of `empty_reply` for a model that ended after its reasoning.
ONLY_THOUGHTS = "The model ended after thinking, without an answer. Try again."

# The same for a model that added nothing to the reply that it was to continue.
NOTHING_ADDED = "The model added nothing to the reply. Nothing was lost. Try again."

# The text of `provider_error` when the provider's filter stopped a reply before its first word.
FILTERED = (
    "The model provider's content filter blocked this reply. Rephrase your message, or try again."
)

# The same when a message was queued for so long that its hold was released.
HOLD_EXPIRED = "The message was queued for too long. Nothing was charged. Try again."


class Missing(Struct, frozen=True):
    """The credits that a message requires, the available ones and the difference, in micro-credits."""

    required: int
    available: int
    missing: int


class ChatError(Exception):
    """An error that the user may see: `code` is one of ERRORS, `message` its text.

    `credits` are the figures of `insufficient_credits`. After `retry_after` seconds a further try may
    succeed.
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
