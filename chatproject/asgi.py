"""The ASGI application: pages over HTTP, the chat over WebSocket."""

from __future__ import annotations

import os
from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter
from django import setup
from django.conf import settings
from django.urls import get_resolver

from chatproject.lib.server.one_thread_handler import OneThreadHandler

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatproject.settings")
# Before the following imports, which need the app registry.
setup(set_prefix=False)

from accounts.sockets import from_own_pages, with_user  # noqa: E402
from chat.api.urls import with_api  # noqa: E402
from chat.web.routing import websocket_urlpatterns  # noqa: E402
from chatproject import checks  # noqa: E402
from chatproject.lib import log_context  # noqa: E402
from chatproject.lib.db import limits  # noqa: E402
from chatproject.ops.health import with_health  # noqa: E402

checks.require()

# Imports all views now: in the first request the import would block the event loop.
get_resolver().url_patterns  # noqa: B018

# Untyped: the stubs of its callers do not agree on the types of ASGI.
application: Any = log_context.with_request_ids(
    ProtocolTypeRouter(
        {
            "http": with_health(with_api(OneThreadHandler(limits.page))),  # type: ignore[arg-type] # typed as mutable
            "websocket": from_own_pages(
                with_user(URLRouter(websocket_urlpatterns))  # type: ignore[arg-type] # see chat.web.routing
            ),
        }
    ),
    trusts_proxy=settings.TRUST_PROXY > 0,
)
