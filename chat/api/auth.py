"""The sender of a request: its key, and the state of its rate limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from accounts import api_keys
from accounts.models import ApiKey, Scope, User
from chat.api.errors import ApiError, of_key, of_limit
from chatproject.lib.rate_limits import RateLimited, Standing

if TYPE_CHECKING:
    from chat.api.requests import Request

AUTHORIZATION = b"authorization"


@dataclass(frozen=True, slots=True)
class Caller:
    """The key of a request, and its rate limit after the request was counted."""

    key: ApiKey
    standing: Standing

    @property
    def user(self) -> User:
        return self.key.user

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers about the rate limit: those of all answers, and the ones that OpenAI's clients read."""
        if self.standing.amount is None:
            return []
        own = self.standing.headers()
        return [
            *((name.lower().encode(), value.encode()) for name, value in own.items()),
            (b"x-ratelimit-limit-requests", b"%d" % self.standing.amount),
            (b"x-ratelimit-remaining-requests", b"%d" % self.standing.remaining),
            (b"x-ratelimit-reset-requests", f"{self.standing.reset:.3f}s".encode()),
        ]


def check_key(asked: Request) -> Caller:
    """Return the caller of a request, which is counted once. Raises ApiError.

    A second call, after a body that took its time, reads the key again: it may have been revoked meanwhile.
    """
    try:
        key = api_keys.authenticate(asked.authorization, Scope.MODELS)
        if asked.caller is None:
            asked.caller = Caller(key, api_keys.count_request(key))
    except api_keys.KeyRefused as error:
        raise of_key(error) from None
    except RateLimited as error:
        raise of_limit(error) from None
    asked.headers = asked.caller.headers()
    return asked.caller


def authorization_of(headers: list[tuple[bytes, bytes]]) -> str:
    """Return the header Authorization of a request. Raises ApiError if it was sent twice."""
    found = [value for name, value in headers if name == AUTHORIZATION]
    if len(found) > 1:
        raise ApiError(400, "The header Authorization was sent twice.", code="invalid_api_key")
    return found[0].decode("latin-1") if found else ""
