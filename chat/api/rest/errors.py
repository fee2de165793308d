"""Errors of the REST API: `{code, message, request_id}` with a status, and `fields` for a refused request."""

from __future__ import annotations

import math
from typing import Any

from accounts.api_keys import KeyRefused
from chat.errors import ChatError
from chat.web.responses import STATUS
from chatproject.lib import log_context
from chatproject.lib.rate_limits import RateLimited

# Codes beside those of chat.errors and of keys, in English alone: programs read them.
SENTENCES = {
    "invalid_request": (422, "The request is not valid. `fields` names what to change."),
    "unknown_parameter": (
        422,
        "The address does not have this parameter. `fields` names it: correct its name, or leave it out.",
    ),
    "invalid_json": (400, "The body is not valid JSON in UTF-8."),
    "invalid_form": (400, "The body is not a valid form of the type multipart/form-data."),
    "invalid_cursor": (422, "The cursor is not one that this address has returned. Leave it out."),
    "idempotency_conflict": (
        422,
        "This Idempotency-Key was used for another request. Use a new key for a new request.",
    ),
    "csrf_failed": (
        403,
        "A request by session cookie needs the header X-CSRFToken, and must come from this site.",
    ),
    "unknown_url": (404, "There is no such address in this API."),
    "method_not_allowed": (405, "This address does not have the method. See the header Allow."),
    "body_too_large": (413, "The body of the request is too large."),
}


class Problem(Exception):
    """An answer that is an error; `retry_after` are seconds, `fields` name the parts of a refused request."""

    def __init__(
        self,
        code: str,
        *,
        status: int = 0,
        message: str = "",
        retry_after: float | None = None,
        fields: list[dict[str, str]] | None = None,
    ) -> None:
        known_status, known = SENTENCES.get(code, (400, ""))
        self.code = code
        self.status = status or known_status
        self.message = message or known
        self.retry_after = retry_after
        self.fields = fields
        super().__init__(f"{code}: {self.message}")

    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        found: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "request_id": str(log_context.ids().get("request_id", "")),
        }
        if self.fields is not None:
            found["fields"] = self.fields
        return found

    def headers(self) -> dict[str, str]:
        """Return the headers of the answer."""
        found = {}
        if self.retry_after is not None:
            found["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return found


def of_chat(error: ChatError) -> Problem:
    """Return a ChatError as an answer."""
    return Problem(
        error.code,
        status=STATUS.get(error.code, 400),
        message=error.message,
        retry_after=error.retry_after,
    )


def of_key(error: KeyRefused) -> Problem:
    """Return the refusal of a key as an answer."""
    return Problem(error.code, status=error.status, message=error.message)


def of_limit(error: RateLimited) -> Problem:
    """Return a limit that was reached as an answer."""
    message = f"Too many requests. Try again in {error.retry_after} s."
    return Problem("rate_limited", status=429, message=message, retry_after=error.retry_after)


def of_fields(errors: list[dict[str, Any]]) -> Problem:
    """Return the errors of pydantic about a request as an answer."""
    fields = [
        {
            # Without `body` and the name of the parameter that holds the whole body.
            "field": ".".join(str(part) for part in one["loc"] if part not in ("body", "sent")),
            "message": str(one["msg"]),
        }
        for one in errors
    ]
    return Problem("invalid_request", fields=fields)
