"""The context of log lines: ids of the request, its user and the run, from the page to the worker.

A server binds the id of each request, `carried()` travels in the records of its jobs, and a worker binds
it again. Lines in JSON have the ids that are bound; see lib.log_json.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatproject.lib.server.asgi_types import Application, Message, Receive, Scope, Send

HEADER = b"x-request-id"
REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{7,63}")

META = "log"  # the key in the record of a job

# A request or a job has one dict, which its tasks and threads share: an id that a view binds in its thread
# is in the access log's line.
_ids: ContextVar[dict[str, Any] | None] = ContextVar("ids", default=None)


def begin(**ids: object) -> None:
    """Begin a context with these ids, for the present task or thread and all that it starts."""
    _ids.set(ids)


def bind(**ids: object) -> None:
    """Add ids to the present context; without one, as in a command, they are dropped."""
    bound = _ids.get()
    if bound is not None:
        bound.update(ids)


def ids() -> dict[str, Any]:
    """Return the ids of the present context."""
    return _ids.get() or {}


def with_request_ids(application: Application, *, trusts_proxy: bool) -> Application:
    """Bind an id to each request and socket, and return a request's in the header X-Request-ID.

    It is the one that a trusted proxy sent, if that has a usable form, else a random one.
    """

    async def identified(scope: Scope, receive: Receive, send: Send) -> None:
        request_id = secrets.token_hex(8).encode()
        if trusts_proxy:
            sent = next((value for name, value in scope["headers"] if name == HEADER), b"")
            if REQUEST_ID.fullmatch(sent):
                request_id = sent
        begin(request_id=request_id.decode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (HEADER, request_id)]
                message = {**message, "headers": headers}
            await send(message)

        is_http = scope["type"] == "http"
        await application(scope, receive, send_with_id if is_http else send)

    return identified


def carried() -> dict[str, Any]:
    """Return the `meta` of a job that is enqueued now: the request and the user that caused it."""
    bound = ids()
    found = {name: bound[name] for name in ("request_id", "user_id") if name in bound}
    return {META: found} if found else {}


def begin_job(meta: dict[str, Any]) -> None:
    """Begin the context of a job with the ids that its `meta` carries."""
    begin(**meta.get(META, {}))
