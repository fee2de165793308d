"""The ASGI application: pages over HTTP, the chat over WebSocket."""

from __future__ import annotations

import os

from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django import setup
from django.urls import get_resolver

from chatproject.lib.pages import PagesHandler

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatproject.settings")
# Before what needs the app registry is imported.
setup(set_prefix=False)

from accounts.sockets import with_user  # noqa: E402
from chat.web.routing import websocket_urlpatterns  # noqa: E402

# All that the pages import, now: in the first visitor's request it would hold up the event loop.
get_resolver().url_patterns  # noqa: B018

application = ProtocolTypeRouter(
    {
        "http": PagesHandler(),
        # A page of another site must not open a socket with our visitor's cookie.
        "websocket": AllowedHostsOriginValidator(
            with_user(URLRouter(websocket_urlpatterns))  # type: ignore[arg-type] # see chat.web.routing
        ),
    }
)
