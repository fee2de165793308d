"""Sockets: opened by pages of this site alone, for the user of the session, and for as long as it lasts.

A socket outlives the request that opened it, so its session is checked again and again: every
RECHECK seconds, all sessions of the process in one statement; at once after `access_changed`; and
before each command that stores something (`while_signed_in`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, parse_cookie
from django.utils import timezone
from django.utils.http import is_same_domain

from accounts import sessions as user_sessions
from accounts.mfa import factors
from chatproject.lib import db, log_context
from chatproject.lib.db import prepared
from chatproject.lib.http import network_of
from chatproject.lib.origins import report_refusal
from chatproject.lib.rate_limits import Windows

if TYPE_CHECKING:
    from accounts.models import User
    from chatproject.lib.server.asgi_types import Application, Receive, Scope, Send

logger = logging.getLogger(__name__)

TRY_AGAIN_LATER = 1013  # the close code after which clients connect again

# Seconds that a socket waits for its user while the database is unreachable. Longer waits leave the
# queue for a database thread, so that sockets that connect after the outage find it empty.
PATIENCE = 5.0

# Seconds between two checks of the sessions of all open sockets. Access must end within 5 s.
RECHECK = 2.0

# The form of a session's key. Postgres is not asked for anything else.
SESSION_KEY = re.compile(r"[a-z0-9]{8,40}")

DEFAULT_PORTS = {"http": 80, "https": 443}

T = TypeVar("T")

_store: Any = import_module(settings.SESSION_ENGINE).SessionStore


# --- The page that opens a socket --------------------------------------------------------------


def from_own_pages(sockets: Application) -> Application:
    """Refuse sockets that a page of another site opens, with the visitor's cookie for this site.

    The `Origin` must have the scheme, host and port of the request, or be one of
    CSRF_TRUSTED_ORIGINS, as Django requires it of forms. A socket without an `Origin`, which every
    browser sends, is refused.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if is_own_origin(scope):
            await sockets(scope, receive, send)
        else:
            origins = [
                value.decode("latin1") for name, value in scope["headers"] if name == b"origin"
            ]
            report_refusal(_handshake(scope), ", ".join(origins))
            await send({"type": "websocket.close"})  # before it is accepted: a 403

    return application


def is_own_origin(scope: Scope) -> bool:
    """Return whether the `Origin` of a socket's handshake is this site, or a trusted one."""
    origins = [value.decode("latin1") for name, value in scope["headers"] if name == b"origin"]
    origin = _origin(origins[0]) if len(origins) == 1 else None
    if origin is None:
        return False
    request = _handshake(scope)
    with suppress(DisallowedHost):
        if origin == _origin(f"{request.scheme}://{request.get_host()}"):
            return True
    return any(_is_trusted(origin, urlsplit(trusted)) for trusted in settings.CSRF_TRUSTED_ORIGINS)


def _handshake(scope: Scope) -> ASGIRequest:
    """Return the handshake as a request, which applies the settings about hosts and proxies."""
    scheme = "https" if scope.get("scheme") == "wss" else "http"
    # Without the Content-Type, whose parameters it would decode.
    headers = [header for header in scope["headers"] if header[0] != b"content-type"]
    return ASGIRequest({**scope, "method": "GET", "scheme": scheme, "headers": headers}, BytesIO())


Origin = tuple[str, str, int | None]
"""Scheme, host and port."""


def _origin(text: str) -> Origin | None:
    """Return the parts of an origin, or None for `null` and for anything else."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    is_origin = text.lower() == f"{parts.scheme}://{parts.netloc}".lower() and "@" not in text
    if not (is_origin and parts.scheme in DEFAULT_PORTS and parts.hostname):
        return None
    return parts.scheme, parts.hostname, port or DEFAULT_PORTS[parts.scheme]


def _is_trusted(origin: Origin, trusted: SplitResult) -> bool:
    scheme, host, port = origin
    pattern = (trusted.hostname or "").removeprefix("*")
    return (
        scheme == trusted.scheme
        and port == (trusted.port or DEFAULT_PORTS.get(scheme))
        and is_same_domain(host, pattern)
    )


# --- The user of a socket ----------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class SocketSession:
    """The session that a socket was opened with, and its user, as they were last found valid.

    `data` and `password` are digests of the session's data and of the user's password hash: while both
    stay the same, the session has not expired and the user is active, nothing that Django checks has
    changed.
    """

    key: str
    user: User
    data: bytes
    password: bytes
    has_ended: bool = False


class SessionEnded(Exception):
    """The session of an open socket is no longer valid, or no longer its user's."""


class _Session(dict[str, Any]):
    """The values of a session. A socket cannot set cookies, and so must not change the session.

    The next page does: it deletes sessions that are no longer valid, and signs those of an old
    secret again.
    """

    def flush(self) -> None:
        """Do nothing."""

    def cycle_key(self) -> None:
        """Do nothing."""


def with_user(sockets: Application) -> Application:
    """Put the SocketSession into `scope["socket_session"]` of a socket, and its user into `scope["user"]`.

    Without a valid session they are None and an AnonymousUser. While the database is unreachable the
    socket is closed with 1013, after which clients connect again. Channels' own stack would query
    through one thread for all sockets of the process, one after the other.

    Sockets that are opened too often have the seconds after which they may be opened again in
    `scope["socket_wait"]`; the database is not asked for their session.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        header = b"; ".join(value for name, value in scope["headers"] if name == b"cookie")
        key = parse_cookie(header.decode("latin1")).get(settings.SESSION_COOKIE_NAME, "")
        network = network_of(str((scope.get("client") or [""])[0]))
        # A session that this process has found before has a limit of its own, whatever else comes from
        # the same address.
        counted = key if key in _handshakes else network
        if wait := _handshakes.wait(counted):
            scope = {**scope, "user": AnonymousUser(), "socket_session": None, "socket_wait": wait}
            await sockets(scope, receive, send)
            return
        try:
            async with asyncio.timeout(PATIENCE):
                session = await db.run(find_session, key) if SESSION_KEY.fullmatch(key) else None
        except (TimeoutError, *db.UNREACHABLE) as error:
            logger.warning("a socket was closed with %d: %r", TRY_AGAIN_LATER, error)
            await send({"type": "websocket.accept"})  # without it a close is a 403, which is final
            await send({"type": "websocket.close", "code": TRY_AGAIN_LATER})
            return
        _handshakes.hit(counted if session is None else key)
        user = AnonymousUser() if session is None else session.user
        if session is not None:
            log_context.bind(user_id=session.user.pk)
        await sockets({**scope, "user": user, "socket_session": session}, receive, send)

    return application


# By session, and by address for sockets without a valid one; used in one event loop only.
_handshakes = Windows("handshakes")


def find_session(key: str) -> SocketSession | None:
    """Return the session with this key; None when it does not exist or is not a valid one.

    A member of staff without the second factor that is required has none, either.
    """
    stored = (
        _store.get_model_class()
        .objects.filter(session_key=key, expire_date__gt=timezone.now())
        .first()
    )
    if stored is None:
        return None
    request = HttpRequest()
    request.session = _Session(_store().decode(stored.session_data))  # type: ignore[assignment] # all that get_user uses
    user: User | AnonymousUser = get_user(request)
    if user.is_anonymous or factors.is_missing(user):
        return None
    return SocketSession(
        key=key,
        user=user,
        data=hashlib.sha256(stored.session_data.encode()).digest(),
        password=hashlib.sha256(user.password.encode()).digest(),
    )


# --- The end of a session ----------------------------------------------------------------------

# Each row is found by its key: with LIMIT the planner cannot join all sessions with all users first,
# which it does while the statistics of a growing table are old.
CHANGED = """
SELECT open.number, session.data IS NOT NULL AND owner.password IS NOT NULL
FROM unnest(%s::int[], %s::text[], %s::bigint[], %s::bytea[], %s::bytea[], %s::bigint[])
  AS open(number, key, user_id, data, password, plan_id)
LEFT JOIN LATERAL (
  SELECT sha256(convert_to(session_data, 'UTF8')) AS data FROM django_session
  WHERE session_key = open.key AND expire_date > now() LIMIT 1
) AS session ON true
LEFT JOIN LATERAL (
  SELECT sha256(convert_to(password, 'UTF8')) AS password, plan_id FROM accounts_user
  WHERE id = open.user_id AND is_active LIMIT 1
) AS owner ON true
WHERE (session.data, owner.password, owner.plan_id)
  IS DISTINCT FROM (open.data, open.password, open.plan_id)
"""


def find_ended(sessions: Iterable[SocketSession]) -> list[SocketSession]:
    """Return the sessions that are no longer valid, by one statement as long as no data changed.

    A session whose data changed, for example because a page stored something in it, is read again and
    judged by Django's own rules; if it is still valid its digests and user are renewed. So is one whose user has
    another password hash (of another password, or of the same one hashed anew) or another plan.
    """
    checked = list(sessions)
    columns = [
        list(range(len(checked))),
        [session.key for session in checked],
        [session.user.pk for session in checked],
        [session.data for session in checked],
        [session.password for session in checked],
        [session.user.plan_id for session in checked],
    ]
    ended = []
    for number, may_be_valid in prepared.all(CHANGED, columns):
        session = checked[number]
        found = find_session(session.key) if may_be_valid else None
        if found is None or found.user.pk != session.user.pk:
            ended.append(session)
        else:
            session.user.plan_id = found.user.plan_id  # of a call that has this user already
            session.user, session.data, session.password = found.user, found.data, found.password
    return ended


def while_signed_in(session: SocketSession, call: Callable[[], T]) -> T:
    """Make a call for the user of a session. Raises SessionEnded, and then nothing was stored.

    Costs one statement, of two primary keys, before the call. An end that the watch finds while the
    call waits for a lock prevents its COMMIT.
    """
    if find_ended([session]):
        raise SessionEnded

    def check() -> None:
        if session.has_ended:
            raise SessionEnded

    with db.before_commit(check):
        return call()


class SessionWatch:
    """Checks the sessions of the open sockets of one event loop, as long as there are any.

    While the database is unreachable nothing is known about a session: its socket stays open.
    """

    def __init__(self) -> None:
        self._watched: dict[SocketSession, Callable[[], None]] = {}
        self._due: set[SocketSession] = set()
        self._is_due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, session: SocketSession, on_end: Callable[[], None]) -> None:
        """Call `on_end` once, in the event loop, when the session has ended; until `remove`."""
        self._watched[session] = on_end
        if self._task is None:
            # Without the context of this socket, since it serves all.
            self._task = asyncio.create_task(self._run(), context=Context())

    def remove(self, session: SocketSession) -> None:
        """Watch a session no longer; without effect when it is not watched."""
        if self._watched.pop(session, None) is not None and not self._watched:
            self._is_due.set()  # ends the task

    def check_soon(self, session: SocketSession) -> None:
        """Check this session before all others: something has changed."""
        self._due.add(session)
        self._is_due.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        next_round = loop.time() + RECHECK
        next_note = loop.time() + user_sessions.SEEN_SECONDS
        while self._watched:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_round):
                    await self._is_due.wait()
            self._is_due.clear()
            due, self._due = self._due & self._watched.keys(), set()
            if loop.time() >= next_round:
                next_round = loop.time() + RECHECK
                due = set(self._watched)
            if due:
                await self._check(due)
            if self._watched and loop.time() >= next_note:
                next_note = loop.time() + user_sessions.SEEN_SECONDS
                await self._note({session.key for session in self._watched})
        self._task = None

    async def _note(self, keys: set[str]) -> None:
        try:
            await db.run(user_sessions.note_open, keys)
        except Exception:
            logger.exception("the use of open sessions was not stored")

    async def _check(self, sessions: set[SocketSession]) -> None:
        try:
            ended = await db.run(find_ended, sessions)
        except db.UNREACHABLE as error:
            logger.warning("the sessions of open sockets were not checked: %s", error)
        except Exception:
            logger.exception("the sessions of open sockets were not checked")
        else:
            for session in ended:
                session.has_ended = True
                on_end = self._watched.pop(session, None)
                if on_end is not None:
                    on_end()


_watches: dict[asyncio.AbstractEventLoop, SessionWatch] = {}


def session_watch() -> SessionWatch:
    """Return the watch that all sockets of the running event loop share."""
    loop = asyncio.get_running_loop()
    if loop not in _watches:
        _watches[loop] = SessionWatch()
    return _watches[loop]
