"""The project's ASGI application, which also answers `GET /pool` with the figures of its pool."""

from __future__ import annotations

import json

from django.db import connection

from chatproject.asgi import application as untyped_project
from chatproject.lib.server.asgi_types import Application, Receive, Scope, Send

project: Application = untyped_project


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope.get("path") != "/pool":
        await project(scope, receive, send)
        return
    body = json.dumps(connection.pool.get_stats()).encode()  # type: ignore[attr-defined]
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
