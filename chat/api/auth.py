"""The sender of a request: its key, and the state of its rate limit."""

from __future__ import annotations

from dataclasses import dataclass

from accounts.models import ApiKey, User
from chat.api.errors import ApiError
from chatproject.lib.rate_limits import Standing

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


def authorization_of(headers: list[tuple[bytes, bytes]]) -> str:
    """Return the header Authorization of a request. Raises ApiError if it was sent twice."""
    found = [value for name, value in headers if name == AUTHORIZATION]
    if len(found) > 1:
        raise ApiError(400, "The header Authorization was sent twice.", code="invalid_api_key")
    return found[0].decode("latin-1") if found else ""
