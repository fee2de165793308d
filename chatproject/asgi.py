"""The ASGI application: pages over HTTP, the chat over WebSocket."""

from __future__ import annotations

import logging
import os

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatproject.settings")
# Before what needs the app registry is imported.
pages = get_asgi_application()

from chat.routing import websocket_urlpatterns  # noqa: E402
from chatproject.lib import db  # noqa: E402
from chatproject.lib.web import Application, Receive, Scope, Send  # noqa: E402

logger = logging.getLogger(__name__)

TRY_AGAIN_LATER = 1013


def turn_away(sockets: Application) -> Application:
    """Close a socket with 1013 while the database, which knows its user, is away.

    Clients then try again after a pause; otherwise each try would leave a traceback in the log. Only
    what stands before the consumer raises this: the consumer has answers of its own.
    """

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await sockets(scope, receive, send)
        except db.UNREACHABLE as error:
            logger.warning("a socket was turned away: %s", error)
            await send({"type": "websocket.accept"})  # without it a close is a 403, which is final
            await send({"type": "websocket.close", "code": TRY_AGAIN_LATER})

    return guarded


application = ProtocolTypeRouter(
    {
        "http": pages,
        # A page of another site must not open a socket with our visitor's cookie.
        "websocket": AllowedHostsOriginValidator(
            turn_away(
                AuthMiddlewareStack(URLRouter(websocket_urlpatterns))  # type: ignore[arg-type] # see chat.routing
            )
        ),
    }
)
