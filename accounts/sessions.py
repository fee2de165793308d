"""The sessions of users: their list, their end, and the removal of expired ones.

A row of allauth's `UserSession` belongs to a signed-in session: browser, address, last use. It is written after the
response, at most every SEEN_SECONDS by each process, so a page costs no statement more than before.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from allauth.account.internal.flows.login import AUTHENTICATION_METHODS_SESSION_KEY
from allauth.usersessions.models import UserSession
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.models import Session
from django.db import connection
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.utils.translation import gettext_lazy

from accounts.models import User
from accounts.session_store import SessionStore, announce
from accounts.signals import session_renewed
from accounts.sso import providers
from chatproject.lib import db
from chatproject.lib.http import client_address

BATCH = 1_000
SEEN_SECONDS = 300
UNKNOWN_ADDRESS = "0.0.0.0"  # noqa: S104 # of a request without an address
MOST = 200  # sessions of one user that the page lists
KEPT = 10_000  # sessions whose last use a process remembers

# Nothing while the row is new enough, or the session has ended meanwhile.
SEEN = """
INSERT INTO usersessions_usersession
  (session_key, user_id, ip, user_agent, data, created_at, last_seen_at)
SELECT %(key)s, %(user)s, %(ip)s, %(agent)s, '{}', now(), now()
WHERE EXISTS (SELECT FROM django_session WHERE session_key = %(key)s)
ON CONFLICT (session_key) DO UPDATE
SET last_seen_at = now(), ip = excluded.ip, user_agent = excluded.user_agent
WHERE usersessions_usersession.last_seen_at < now() - %(pause)s * interval '1 second'
"""

# By the method in a session's record.
WAYS = {
    "password": gettext_lazy("Password"),
    "mfa": gettext_lazy("Passkey"),  # alone; after a password that is the way
    "trusted_header": gettext_lazy("Single sign-on"),
    "link": gettext_lazy("Link of the operator"),
}

_seen: OrderedDict[str, float] = OrderedDict()  # by session: time.monotonic() of its last write


@dataclass(frozen=True)
class Listed:
    """A session as the page lists it."""

    pk: int
    key: str
    device: str
    ip: str
    created_at: datetime
    last_seen_at: datetime
    way: str  # of the sign-in, in words; empty for one of an earlier release


def note_seen(request: HttpRequest) -> None:
    """Store after the response that the session of a request was used, unless that was stored lately."""
    key = request.session.session_key
    now = time.monotonic()
    user_id = request.user.pk
    if key is None or user_id is None or now - _seen.get(key, -SEEN_SECONDS) < SEEN_SECONDS:
        return
    _seen[key] = now
    _seen.move_to_end(key)
    if len(_seen) > KEPT:
        _seen.popitem(last=False)
    db.after_response(_write, key, *_client_of(request), user_id, SEEN_SECONDS)


@receiver(user_logged_in, dispatch_uid="accounts.sessions")
def note_sign_in(request: HttpRequest, user: User, **kwargs: Any) -> None:
    """Store a new session at once, so that its list is complete when the user reads the notice."""
    key = request.session.session_key
    if key is not None:
        _seen[key] = time.monotonic()
        _write(key, *_client_of(request), user.pk, 0)


def _client_of(request: HttpRequest) -> tuple[str, str]:
    agent = " ".join(request.META.get("HTTP_USER_AGENT", "").replace("\0", "").split())
    length = UserSession._meta.get_field("user_agent").max_length
    try:
        ip = str(ipaddress.ip_address(client_address(request)))
    except ValueError:
        ip = UNKNOWN_ADDRESS
    return ip, agent[:length]


def _write(key: str, ip: str, agent: str, user_id: int, pause: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            SEEN, {"key": key, "ip": ip, "agent": agent, "user": user_id, "pause": pause}
        )


def note_open(keys: Collection[str]) -> None:
    """Store that sessions are in use by open sockets, all by one statement."""
    UserSession.objects.filter(session_key__in=keys).update(last_seen_at=timezone.now())


@receiver(session_renewed, dispatch_uid="accounts.sessions")
def renewed(*, old: str, new: str, **kwargs: Any) -> None:
    """Move the row of a session that goes on with another key."""
    UserSession.objects.filter(session_key=old).update(session_key=new)


def listed(user: User) -> list[Listed]:
    """Return the valid sessions of a user, the latest used first, by two statements.

    A session that another password has ended is valid no longer, although its row exists until it expires.
    """
    rows = list(UserSession.objects.filter(user=user).order_by("-last_seen_at", "-pk")[:MOST])
    stored = Session.objects.filter(
        session_key__in=[row.session_key for row in rows], expire_date__gt=timezone.now()
    )
    store = SessionStore()
    hashes = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    ways: dict[str, str] = {}  # of the valid ones
    for session in stored:
        data = store.decode(session.session_data)
        own = data.get(SESSION_KEY) == str(user.pk)
        given = data.get(HASH_SESSION_KEY, "")
        if own and any(constant_time_compare(given, one) for one in hashes):
            ways[session.session_key] = _way_of(data)
    return [
        Listed(
            pk=row.pk,
            key=row.session_key,
            device=device(row.user_agent),
            ip="" if row.ip == UNKNOWN_ADDRESS else row.ip,
            created_at=row.created_at,
            last_seen_at=row.last_seen_at,
            way=ways[row.session_key],
        )
        for row in rows
        if row.session_key in ways
    ]


def _way_of(data: dict[str, Any]) -> str:
    """Return the way of the sign-in from a session's record of it, without later confirmations."""
    for record in data.get(AUTHENTICATION_METHODS_SESSION_KEY) or ():
        if record.get("reauthenticated"):
            continue
        if record.get("method") == "socialaccount":
            provider = providers.find(record.get("provider", ""))
            return provider.name if provider else str(record.get("provider", ""))
        if record.get("method") in WAYS:
            return str(WAYS[record["method"]])
    return ""


# In this order: browsers name others as well, whose pages they imitate.
BROWSERS = [
    (r"\bEdg(e|A|iOS)?/", "Edge"),
    (r"\b(OPR|Opera)/", "Opera"),
    (r"\bSamsungBrowser/", "Samsung"),
    (r"\b(Firefox|FxiOS)/", "Firefox"),
    (r"\bCriOS/|Chrom(e|ium)/", "Chrome"),
    (r"\bSafari/", "Safari"),
]
SYSTEMS = [
    (r"\biPhone\b", "iPhone"),
    (r"\biPad\b", "iPad"),
    (r"\bAndroid\b", "Android"),
    (r"\bCrOS\b", "ChromeOS"),
    (r"\bWindows\b", "Windows"),
    (r"\bMac OS X\b|\bMacintosh\b", "macOS"),
    (r"\bLinux\b|\bX11\b", "Linux"),
]


def device(agent: str) -> str:
    """Return browser and system that a User-Agent names, such as "Firefox · Linux"; else its first word."""
    found = [
        next((name for pattern, name in names if re.search(pattern, agent)), "")
        for names in (BROWSERS, SYSTEMS)
    ]
    return " · ".join(name for name in found if name) or agent.partition(" ")[0][:40]


def end(user: User, pk: int) -> bool:
    """End one session of a user; return False if there is none."""
    return _end(user, UserSession.objects.filter(user=user, pk=pk)) > 0


def end_others(user: User, key: str | None) -> int:
    """End all sessions of a user but the one with this key; return how many."""
    return _end(user, UserSession.objects.filter(user=user).exclude(session_key=key or ""))


def end_all(user: User) -> int:
    """End all sessions of a user; return how many."""
    return _end(user, UserSession.objects.filter(user=user))


def _end(user: User, rows: Any) -> int:
    """End sessions; their sockets are closed at once, in all web processes."""
    keys = list(rows.values_list("session_key", flat=True))
    ended, _tables = Session.objects.filter(session_key__in=keys).delete()
    UserSession.objects.filter(session_key__in=keys).delete()
    announce(user.pk)
    return ended


def clear_expired(now: datetime) -> None:
    """Delete a batch of expired sessions; called by the clock.

    A request that stores its session at the same time has made it valid again, and keeps it.
    """
    expired = Session.objects.filter(expire_date__lt=now)
    batch = list(expired.order_by("expire_date").values_list("pk", flat=True)[:BATCH])
    expired.filter(pk__in=batch).delete()
    left = Session.objects.filter(pk__in=batch).values("pk")
    UserSession.objects.filter(session_key__in=batch).exclude(session_key__in=left).delete()
