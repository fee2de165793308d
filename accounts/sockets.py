"""Who opened a socket: the user of the session that its cookie names."""

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

TRY_AGAIN_LATER = 1013

# Seconds that a socket waits for its user while the database is away. Who waits longer goes out of
# the line for a thread, so that those who come after the outage find none.
PATIENCE = 5.0

# What a session's key looks like. Postgres is not asked for anything else.
SESSION_KEY = re.compile(r"[a-z0-9]{8,40}")

_session_store: Any = import_module(settings.SESSION_ENGINE).SessionStore


class _Session(dict[str, Any]):
    """What a session holds. A socket can set no cookie, and so must not change the session itself.

    The next page does: it takes away what is not valid any more, and signs what has an old secret.
    """

    def flush(self) -> None:
        """Leave it as it is."""

    def cycle_key(self) -> None:
        """Leave it as it is."""


def with_user(sockets: Application) -> Application:
    """Put who is signed in, or an AnonymousUser, into `scope["user"]` of a socket.

    While the database, which knows, is away the socket is closed with 1013, after which clients try
    again. Channels' own stack would ask through one thread for all sockets of the process, in which
    each waits for the database after the other.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                user = await _user(scope)
        except (TimeoutError, *db.UNREACHABLE) as error:
            logger.warning("a socket was turned away: %r", error)
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
    return await db.run(_user_of, key)


def _user_of(session_key: str) -> User | AnonymousUser:
    request = HttpRequest()
    request.session = _Session(_session_store(session_key).load())  # type: ignore[assignment] # all that get_user asks for
    user: User | AnonymousUser = get_user(request)
    return user
