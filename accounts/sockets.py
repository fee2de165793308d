"""Authentication of sockets: the user of the session in the cookie."""

from __future__ import annotations

import asyncio
import logging
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest, parse_cookie

from chatproject.lib import db

if TYPE_CHECKING:
    from accounts.models import User
    from chatproject.lib.server.asgi_types import Application, Receive, Scope, Send

logger = logging.getLogger(__name__)

TRY_AGAIN_LATER = 1013  # the close code after which clients connect again

# Seconds that a socket waits for its user while the database is unreachable. Longer waits leave the
# queue for a database thread, so that sockets that connect after the outage find it empty.
PATIENCE = 5.0

# The form of a session's key. Postgres is not asked for anything else.
SESSION_KEY = re.compile(r"[a-z0-9]{8,40}")

_session_store: Any = import_module(settings.SESSION_ENGINE).SessionStore


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
    """Put the signed-in user, or an AnonymousUser, into `scope["user"]` of a socket.

    While the database is unreachable the socket is closed with 1013, after which clients connect
    again. Channels' own stack would query through one thread for all sockets of the process, one
    after the other.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                user = await _user(scope)
        except (TimeoutError, *db.UNREACHABLE) as error:
            logger.warning("a socket was closed with %d: %r", TRY_AGAIN_LATER, error)
            await send({"type": "websocket.accept"})  # without it a close is a 403, which is final
            await send({"type": "websocket.close", "code": TRY_AGAIN_LATER})
            return
        await sockets({**scope, "user": user}, receive, send)

    return application


async def _user(scope: Scope) -> User | AnonymousUser:
    header = b"; ".join(value for name, value in scope["headers"] if name == b"cookie")
    key = parse_cookie(header.decode("latin1")).get(settings.SESSION_COOKIE_NAME, "")
    if not SESSION_KEY.fullmatch(key):
        return AnonymousUser()
    return await db.run(session_user, key)


def session_user(session_key: str) -> User | AnonymousUser:
    """Return the user of a session; an AnonymousUser when it is not a valid one."""
    request = HttpRequest()
    request.session = _Session(_session_store(session_key).load())  # type: ignore[assignment] # all that get_user uses
    user: User | AnonymousUser = get_user(request)
    return user
