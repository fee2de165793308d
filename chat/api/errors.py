"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` with a status."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from accounts.api_keys import KeyRefused
from chat.errors import ChatError
from chatproject.lib.rate_limits import RateLimited, Standing

Headers = Sequence[tuple[bytes, bytes]]

TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "requests",
}


class ApiError(Exception):
    """An answer that is an error; `retry_after` are seconds, `standing` the state of the limit that refuses.

    `general` is the message for a key that may not read the figures of the account.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "",
        retry_after: float | None = None,
        standing: Standing | None = None,
        general: str = "",
    ) -> None:
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind or TYPES.get(status, "server_error")
        self.retry_after = retry_after
        self.standing = standing
        self.general = general or message
        super().__init__(message)

    def body(self) -> bytes:
        """Return the answer's body."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that belong to the error."""
        found = []
        if self.retry_after is not None:
            found.append((b"retry-after", b"%d" % max(1, math.ceil(self.retry_after))))
        own = self.standing.headers() if self.standing is not None else {}
        found += [(name.lower().encode(), value.encode()) for name, value in own.items()]
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        return found


QUOTA = "insufficient_quota"

# Status, type and code by the code of a ChatError; all others are 400.
OF_CHAT: dict[str, tuple[int, str, str]] = {
    "insufficient_credits": (429, QUOTA, QUOTA),
    "limit_reached": (429, QUOTA, QUOTA),
    "not_allowed": (403, "permission_error", "not_allowed"),
    "model_unavailable": (404, "", "model_not_found"),
    "rate_limited": (429, "requests", "rate_limit_exceeded"),
    "busy": (503, "", "busy"),
    "unavailable": (503, "", "unavailable"),
    "moderated": (400, "", "content_policy_violation"),
    "text_too_long": (400, "", "context_length_exceeded"),
    "provider_error": (502, "", "provider_error"),
    "provider_timeout": (504, "", "provider_timeout"),
    "empty_reply": (502, "", "empty_reply"),
    "internal": (500, "", "internal"),
}
# The same by the cause of a failed run, where that says more.
OF_CAUSE: dict[str, tuple[int, str, str]] = {
    "context": (400, "", "context_length_exceeded"),
    "content": (400, "", "content_policy_violation"),
    "refused": (400, "", "provider_refused"),
}


def of_chat(error: ChatError) -> ApiError:
    """Return a ChatError as an answer."""
    status, kind, code = OF_CHAT.get(error.code, (400, "", error.code))
    return ApiError(
        status,
        error.message,
        code=code,
        kind=kind,
        retry_after=error.retry_after,
        general=error.general,
    )


def of_run(code: str, cause: str, message: str) -> ApiError:
    """Return the failure of a run as an answer."""
    status, kind, name = OF_CAUSE.get(cause) or OF_CHAT.get(code, (500, "", code))
    if code == "limit_reached":  # of time or length, not of money
        status, kind, name = 504, "", code
    return ApiError(status, message, code=name, kind=kind)


def of_key(error: KeyRefused) -> ApiError:
    """Return the refusal of a key as an answer."""
    return ApiError(error.status, error.message, code=error.code)


def of_limit(error: RateLimited) -> ApiError:
    """Return a limit that was reached as an answer."""
    return ApiError(
        429,
        f"The rate limit of this API key is reached. Try again in {error.retry_after} s.",
        code="rate_limit_exceeded",
        retry_after=error.retry_after,
        standing=Standing(error.amount, 0, error.retry_after),
    )


def stopped() -> ApiError:
    """Return the answer for a run that was stopped by its user, or by staff."""
    return ApiError(500, "The reply was stopped before its end.", code="stopped")


def restarting() -> ApiError:
    """Return the answer of a process that ends before the reply."""
    return ApiError(
        503,
        "The server is being restarted. Send the request again.",
        code="unavailable",
        retry_after=2,
    )


UNKNOWN_PATH = "There is no such address in this API. Its base URL ends with /v1."
