"""API keys: creating, checking and revoking them, their rate and their spending.

A key is 256 random bits, of which only the SHA-256 is stored; looking that up is the comparison, and takes the
same time for any wrong key. A request sends its key as `Authorization: Bearer sk-parley-…`. `authenticate` and
`count_request` are synchronous: an event loop calls them in a database thread.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, ClassVar

from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext_lazy

from accounts.models import ApiKey, Scope, User, all_scopes
from accounts.signals import key_revoked
from billing.metering import plan_limits
from chatproject.lib import db, log_context, rate_limits
from chatproject.lib.db import prepared
from chatproject.lib.env import Limit
from chatproject.lib.log_events import log_event
from chatproject.lib.rate_limits import Standing

logger = logging.getLogger(__name__)

START = "sk-parley-"
FORM = re.compile(r"sk-parley-[\w-]{43}", re.ASCII)
BEARER = re.compile(r"bearer +([^\s]+) *", re.ASCII | re.IGNORECASE)
SHOWN = len(START) + 4  # characters that lists show
MOST = 50  # usable keys of a user
USE_NOTED_EVERY = timedelta(minutes=1)


class KeyRefused(Exception):
    """A request whose key does not permit it: `code` and sentence for its sender.

    Codes: `missing_api_key`, `invalid_api_key` (also of a revoked key), `expired_api_key`, `account_inactive`;
    `missing_scope`, for which the status is 403 instead of 401.
    """

    SENTENCES: ClassVar[dict[str, Any]] = {
        "missing_api_key": gettext_lazy(
            "You did not provide an API key. Send it in the header “Authorization: Bearer KEY”."
        ),
        "invalid_api_key": gettext_lazy(
            "The API key is not valid. Create one in your settings, under API keys."
        ),
        "expired_api_key": gettext_lazy(
            "The API key has expired. Create one in your settings, under API keys."
        ),
        "account_inactive": gettext_lazy("The account of this API key is not active."),
        "missing_scope": gettext_lazy("The API key lacks the permission “{scope}”."),
    }

    def __init__(self, code: str, scope: str = "") -> None:
        self.code = code
        self.message = str(self.SENTENCES[code]).format(scope=scope)
        self.status = 403 if code == "missing_scope" else 401
        super().__init__(self.message)


class TooManyKeys(Exception):
    """A user has MOST usable keys."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The rights and limits of a new key; amounts are micro-credits, None is no limit."""

    name: str
    scopes: Collection[str] = ()  # those of `all_scopes`
    expires_at: datetime | None = None
    rate: int | None = None
    limit_month: int | None = None
    limit_total: int | None = None


# --- The keys of a user -----------------------------------------------------------------------


def create(user: User, terms: Terms) -> tuple[ApiKey, str]:
    """Create a key; return its row, and the key itself, which cannot be shown again.

    Raises TooManyKeys.
    """
    if usable(user).count() >= MOST:
        raise TooManyKeys
    secret = START + secrets.token_urlsafe(32)
    key = ApiKey.objects.create(
        user=user,
        name=terms.name,
        prefix=secret[:SHOWN],
        hash=hash_of(secret),
        scopes=[scope for scope in Scope.values if scope in (terms.scopes or all_scopes())],
        expires_at=terms.expires_at,
        rate=terms.rate,
        limit_month=terms.limit_month,
        limit_total=terms.limit_total,
    )
    log_event("api_key_created", user_id=user.pk, key_id=key.pk)
    return key, secret


def usable(user: User) -> QuerySet[ApiKey]:
    """Return the keys of a user that are neither revoked nor expired, newest first."""
    in_time = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    return ApiKey.objects.filter(in_time, user=user, revoked_at=None)


def revoke(key: ApiKey, *, by: User) -> bool:
    """Revoke a key for good, at once, and have its calls stopped; return False if it was revoked before."""
    changed = ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now())
    if changed:
        log_event("api_key_revoked", user_id=key.user_id, key_id=key.pk, by=by.pk)
        db.after_commit(key_revoked.send, sender=ApiKey, key=key)
    return bool(changed)


# --- A request with a key ---------------------------------------------------------------------


FIND = f"""
SELECT {prepared.columns(ApiKey, "key")}, {prepared.columns(User, "owner")}
FROM accounts_apikey AS key JOIN accounts_user AS owner ON owner.id = key.user_id
WHERE key.hash = %s
"""  # noqa: S608 # of names alone


def authenticate(authorization: str, scope: Scope) -> ApiKey:
    """Return the key of a header `Authorization`, with its user; for requests that need the scope.

    The use is noted after the answer. Raises KeyRefused.
    """
    if not authorization.strip():
        raise KeyRefused("missing_api_key")
    found = BEARER.fullmatch(authorization)
    if found is None or FORM.fullmatch(found[1]) is None:
        raise KeyRefused("invalid_api_key")
    row = prepared.first(FIND, [hash_of(found[1])], ApiKey, User)
    if row is None:
        raise KeyRefused("invalid_api_key")
    key: ApiKey
    key, key.user = row
    now = timezone.now()
    if key.revoked_at is not None:
        raise KeyRefused("invalid_api_key")
    if key.expires_at is not None and key.expires_at <= now:
        raise KeyRefused("expired_api_key")
    if not key.user.is_active:
        raise KeyRefused("account_inactive")
    if scope not in key.scopes:
        raise KeyRefused("missing_scope", scope.value)
    log_context.bind(user_id=key.user_id)
    if key.last_used_at is None or key.last_used_at <= now - USE_NOTED_EVERY:
        db.after_response(_note_use, key.pk, now)
    return key


def hash_of(secret: str) -> str:
    """Return the stored form of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _note_use(key_id: int, now: datetime) -> None:
    unnoted = Q(last_used_at=None) | Q(last_used_at__lte=now - USE_NOTED_EVERY)
    ApiKey.objects.filter(unnoted, pk=key_id).update(last_used_at=now)


def count_request(key: ApiKey) -> Standing:
    """Count a request by the limit `api_requests` and the key's own rate; return where the key stands.

    Raises rate_limits.RateLimited. While Redis is unreachable, the request is accepted.
    """
    limit = plan_limits.limit_of("api_requests", key.user.plan_id)
    if key.rate is not None and (key.rate, 60) not in limit.rates:
        limit = Limit((*limit.rates, (key.rate, 60)), limit.fails_closed)
    return rate_limits.hit("api_requests", key.pk, limit=limit)


# --- Spending ---------------------------------------------------------------------------------


def month_of(now: datetime) -> date:
    """Return the first day of a time's month in UTC, by which the monthly limits count."""
    return date(now.year, now.month, 1)


def has_limit(key: ApiKey) -> bool:
    """Return whether a key has a spending limit."""
    return key.limit_total is not None or key.limit_month is not None


def may_spend(key: ApiKey, reserved: int, now: datetime) -> bool:
    """Return whether a key may spend `reserved` micro-credits, those of all its calls in flight.

    Call it after the hold, whose lock of the account lets the calls of a user pass one after the other: the
    limits are then exact.
    """
    row = ApiKey.objects.values_list(
        "spent", "spent_in_month", "month", "limit_total", "limit_month"
    ).get(pk=key.pk)
    spent, spent_in_month, month, total, monthly = row
    if month != month_of(now):
        spent_in_month = 0
    return (total is None or spent + reserved <= total) and (
        monthly is None or spent_in_month + reserved <= monthly
    )


SPEND = """
UPDATE accounts_apikey SET spent = spent + %(charged)s, month = %(month)s,
  spent_in_month = %(charged)s + CASE WHEN month = %(month)s THEN spent_in_month ELSE 0 END
WHERE id = %(key)s
"""


def spend(key_id: int, charged: int, now: datetime) -> None:
    """Add a charge to the spending of a key; part of the transaction that charges it, after the account."""
    prepared.change(SPEND, {"key": key_id, "charged": charged, "month": month_of(now)})
