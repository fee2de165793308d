"""Errors of a model provider, with a message for the user and a detail for the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from django.utils.translation import gettext_noop as _

# The reason for which a provider refuses a request:
# context    the prompt is longer than the model's context window
# too_large  the prompt alone exceeds the tokens that the provider accepts in a minute
# cap        the reply's cap is higher than the server allows
# parameter  the server does not support a parameter, or requires another one
# key, quota, model, content
# address    the base URL is not that of an API of chat completions
# request    any other
Reason: TypeAlias = Literal[
    "context",
    "too_large",
    "cap",
    "parameter",
    "key",
    "quota",
    "model",
    "content",
    "address",
    "request",
]

# The kinds of failure that operators distinguish: Run.error_cause, and a label of metrics.
Cause: TypeAlias = Literal[
    "address",
    "key",
    "quota",
    "model",
    "context",
    "content",
    "refused",
    "busy",
    "unreachable",
    "timeout",
    "cut",
    "malformed",
    "reported",
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A provider's refusal: the same request will not be answered later either.

    `parameter` is the field of the request that the server does not support or, if `is_missing`,
    requires; "system" is the role of that name. `allowed` is the highest cap, in tokens, that the
    server accepts, if it names one; `is_longest` if that is the model's longest reply, whatever the
    prompt. `window` is the stated limit of a prompt that is too long, in tokens, 0 without one.
    """

    reason: Reason
    parameter: str = ""
    is_missing: bool = False
    allowed: int | None = None
    is_longest: bool = False
    window: int = 0


REFUSALS: dict[Reason, str] = {
    "context": _("The conversation is too long for this model. Start a new chat."),
    "too_large": _(
        "The conversation is too long for the limits of the model provider. Start a new chat."
    ),
    "cap": _(
        "The model provider refused this request: the reply's limit is too high. Contact the site administrator."
    ),
    "parameter": "The model provider refused this request. Try again; if it happens again, contact the site administrator.",
    "key": "The model provider rejected this site's API key. Contact the site administrator; trying again will not help.",
    "quota": _(
        "This site's quota with the model provider is used up. Contact the site administrator."
    ),
    "model": _("The model provider has no such model. Contact the site administrator."),
    "content": _(
        "The model provider refused this message because of its content policy. Rephrase it."
    ),
    "address": "This site's connection to the model provider is not set up correctly. Contact the site administrator; trying again will not help.",
    "request": "The model provider refused this request. Try again; if it happens again, contact the site administrator.",
}

CAUSES: dict[Reason, Cause] = {
    "context": "context",
    "too_large": "context",
    "cap": "context",
    "parameter": "refused",
    "key": "key",
    "quota": "quota",
    "model": "model",
    "content": "content",
    "address": "address",
    "request": "refused",
}


class ProviderError(Exception):
    """The reason why a reply is missing or incomplete.

    ProviderError
    ├── ProviderUnreachable   no connection: refused, reset, unknown host, TLS, connect timeout
    ├── ProviderTimeout       connected, but silent for longer than the limits of `Provider`
    ├── ProviderBusy          429 or 5xx: not now
    ├── ProviderRefused       the request will not be answered (`refusal`)
    │   └── MessageTooLong    a prompt that cannot be shortened
    ├── ProviderCut           the stream broke off in the middle
    ├── ProviderMalformed     the response is not a stream of chat completions
    └── ProviderReported      an error object in the stream (`refusal`, if it is one)

    `code` is the wire protocol's error code. `message` is for the user: the problem, then a remedy.
    `detail` is for the log: status and the provider's message, shortened; `Provider.stream` removes
    the key and the prompt from it. `cause` is for operators. `retryable`: the same request may well
    succeed later, after `retry_after` seconds if the provider sent them. `learned` are the quirks that
    earlier refusals of the same request have shown (llm/request.py).
    """

    code = "provider_error"
    message = _("The model provider failed. Try again in a moment.")
    cause: Cause
    retryable = True
    refusal: Refusal | None = None
    retry_after: float | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(self.message)
        self.detail = detail
        self.learned: dict[str, str] = {}

    @property
    def reason(self) -> Reason | None:
        """The reason of a refusal; None for any other error."""
        return None if self.refusal is None else self.refusal.reason

    def _refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        self.message = REFUSALS[refusal.reason]
        self.cause = CAUSES[refusal.reason]
        self.retryable = False


class ProviderUnreachable(ProviderError):
    message = _("The model provider cannot be reached right now. Try again in a few minutes.")
    cause: Cause = "unreachable"

    def __init__(self, detail: str, *, dropped: bool) -> None:
        super().__init__(detail)
        self.dropped = dropped  # the server closed an established connection


class ProviderTimeout(ProviderError):
    code = "provider_timeout"
    message = _("The model provider took too long to answer. Try again.")
    cause: Cause = "timeout"


class ProviderBusy(ProviderError):
    message = _("The model provider cannot answer right now. Try again in a minute.")
    cause: Cause = "busy"

    def __init__(self, detail: str, *, status: int, retry_after: float | None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after = retry_after


class ProviderRefused(ProviderError):
    def __init__(self, detail: str, refusal: Refusal) -> None:
        self._refuse(refusal)
        super().__init__(detail)


class MessageTooLong(ProviderRefused):
    """The message to be answered is too long for the model even alone."""

    def __init__(self, detail: str, refusal: Refusal) -> None:
        super().__init__(detail, refusal)
        self.message = _("The message is too long for this model. Shorten it, or send it in parts.")


class ProviderCut(ProviderError):
    message = _("The connection to the model provider was lost. Try again.")
    cause: Cause = "cut"


class ProviderMalformed(ProviderError):
    """`is_of_address`: such as servers answer at a wrong base URL, a page of HTML or another API's events."""

    message = "The model provider sent an invalid response. Try again; if it happens again, contact the site administrator."
    cause: Cause = "malformed"
    retryable = False

    def __init__(self, detail: str, *, is_of_address: bool = False) -> None:
        if is_of_address:
            self.message, self.cause = REFUSALS["address"], "address"
        super().__init__(detail)


class ProviderReported(ProviderError):
    message = _("The model provider reported an error while answering. Try again.")
    cause: Cause = "reported"

    def __init__(
        self, detail: str, refusal: Refusal | None = None, *, retry_after: float | None = None
    ) -> None:
        if refusal is not None:
            self._refuse(refusal)
        super().__init__(detail)
        self.retry_after = retry_after
