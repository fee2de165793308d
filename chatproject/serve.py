"""The web server: `python -m chatproject.serve`.

Serves the ASGI application with Daphne under the limits of `chatproject.lib.server.limits`, and logs
a line when it listens. SIGTERM or SIGINT stops it in order: it closes the listening socket, closes
every WebSocket with 1012, gives requests in flight `WEB_DRAIN_SECONDS` to finish, and exits with 0;
a second signal ends it at once. If it cannot start, it prints one line and exits with 1.

Variables: HOST, PORT, TRUST_PROXY, and the four of `Limits.from_environment`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import logging
import socket
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import uvloop
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from chatproject.lib import env, loop_monitor, metrics
from chatproject.lib.log_scrubbing import scrub_path
from chatproject.lib.metrics import shared as shared_metrics
from chatproject.lib.server.asgi_types import Application, Message, Receive, Scope, Send
from chatproject.lib.server.identity_header import take_identity
from chatproject.lib.server.limits import BACKLOG, KERNEL_BUFFER_BYTES, Limits
from chatproject.lib.server.proxies import trust_proxies, warn_of_proxies

logger = logging.getLogger("chatproject.serve")  # __name__ is __main__ here
access = logging.getLogger("chatproject.access")

# It chose between two servers. Read only for a warning, so .env.example no longer names it.
REMOVED_VARIABLE = "WEB_SERVER"

# The addresses that take files or images, and the size of such a request with the form around them: an import
# (IMPORT_MAX_BYTES), an attachment (up to 100 MB by ATTACHMENT_MAX_MB), documents (up to 200 MB by DOCUMENT_MAX_MB),
# and a message with its files from a page without JavaScript.
UPLOADS = (
    (rb"/chats/import/", 101_000_000),
    (rb"/attachments/", 106_000_000),
    (rb"/documents/|/api/v1/documents", 206_000_000),
    (rb"/c/new/|/c/[0-9a-f-]{36}/(send|compare)/|/messages/[0-9a-f-]{36}/edit/", 101_000_000),
)

# The addresses that check the key of a request before they read its body: chat/api/bodies.py.
STREAMED = (rb"/v1/.*",)

# Paths of requests that may follow a reply until its end.
FOLLOWING = ("/v1/", "/api/v1/runs/")

SLOW_REQUEST = 2.0  # seconds after which a request's line is a warning

# The parts of the site that metrics have, by the first part of a path; all other paths are of chat.
AREAS = {b"accounts", b"admin", b"api", b"billing", b"health", b"metrics", b"static", b"v1"}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        # Before the environment is read: an application may load a file into it.
        application = load(options.application)
        limits = Limits.from_environment(UPLOADS, STREAMED)
        host = options.host or env.text("HOST", "127.0.0.1")
        port = env.integer("PORT", 8000, most=65_535) if options.port is None else options.port
        if not 0 <= port <= 65_535:
            raise ImproperlyConfigured(f"--port {port}: write a number up to 65535.")
        hops = env.hops("TRUST_PROXY")
        trusted_header = env.header("TRUSTED_HEADER")
        trusted_peers = env.networks("TRUSTED_HEADER_PROXIES")
    except ImproperlyConfigured as error:
        fail(str(error))
    listener = bind(host, port, limits, reuse_port=options.reuse_port)
    configure_logging(quiet=options.quiet)
    if env.text(REMOVED_VARIABLE) not in ("", "daphne"):
        logger.warning("%s has no effect: Daphne serves. Remove the variable.", REMOVED_VARIABLE)
    application = log_access(application)
    application = trust_proxies(application, hops) if hops else warn_of_proxies(application)
    if trusted_header:
        # Before `trust_proxies` replaces the address of the peer.
        application = take_identity(application, trusted_header, trusted_peers)
    serve(application, listener, limits)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chatproject.serve")
    parser.add_argument("--host", help="address to listen on (HOST, else 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (PORT, else 8000)")
    parser.add_argument(
        "--reuse-port",
        action="store_true",
        help="share the port with other processes (SO_REUSEPORT): the kernel spreads connections",
    )
    parser.add_argument(
        "--application",
        default="chatproject.asgi:application",
        help="module:attribute of the ASGI application (%(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no access log")
    return parser.parse_args(arguments)


def load(path: str) -> Application:
    """Import an application from `module:attribute`."""
    module, _, attribute = path.partition(":")
    application: Application = getattr(importlib.import_module(module), attribute)
    return application


def fail(reason: str) -> NoReturn:
    print(f"serve: {reason}", file=sys.stderr)  # noqa: T201  logging may not be set up yet
    sys.exit(1)


def bind(host: str, port: int, limits: Limits, *, reuse_port: bool = False) -> socket.socket:
    """Return a listening socket whose connections are dropped when a client stops reading."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        # Connections left behind by a server that has just ended would keep the port taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "this is no address"
        fail(f"cannot listen on {host}, port {port}: {reason}. Change HOST or PORT.")
    # Connections inherit both options. Only Linux has the first; on other systems only pings detect
    # such clients.
    stall = getattr(socket, "TCP_USER_TIMEOUT", None)
    if stall is not None:
        listener.setsockopt(socket.IPPROTO_TCP, stall, limits.stall_seconds * 1000)
    lowat = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if lowat is not None:
        listener.setsockopt(socket.IPPROTO_TCP, lowat, KERNEL_BUFFER_BYTES)
    return listener


def configure_logging(*, quiet: bool) -> None:
    """Log to stderr, unless the application has set up logging itself."""
    logging.basicConfig(
        level=logging.INFO, format="{asctime} {levelname} {name}: {message}", style="{"
    )
    access.disabled = quiet


def log_access(application: Application) -> Application:
    """Log one line for each request, and for each socket when it ends; count and measure requests.

    The line has method (`WS` for a socket), path, status or close code, and milliseconds; no query
    string, header or address, and no key of a mailed link.
    """

    async def logged(scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        status: int | str = "-"

        async def noting_receive() -> Message:
            nonlocal status
            message = await receive()
            if message["type"] == "websocket.disconnect":
                status = message["code"]
            return message

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if scope["type"] == "websocket":
                await application(scope, noting_receive, send)
            else:
                await application(scope, receive, noting_send)
        finally:
            seconds = time.perf_counter() - began
            if scope["type"] == "http":
                first = scope["raw_path"].split(b"/", 2)[1:2]
                area = first[0].decode() if first and first[0] in AREAS else "chat"
                metrics.HTTP_REQUESTS.labels(area, status).inc()
                metrics.HTTP_SECONDS.labels(area).observe(seconds)
            method = scope.get("method", "WS")
            # The raw path: a decoded one could bring line breaks into the log.
            path = scrub_path(scope["raw_path"].decode("latin-1"))
            line, level = "%s %s %s %.0f ms", logging.INFO
            log = access
            # A call of the API lasts as long as its reply.
            is_slow = seconds > SLOW_REQUEST and not path.startswith(FOLLOWING)
            if scope["type"] == "http" and is_slow:
                line, level, log = f"slow request: {line}", logging.WARNING, logger
            fields = {
                "method": method,
                "path": path,
                "status": status,
                "milliseconds": round(seconds * 1000),
            }
            log.log(
                level, line, method, path, status, seconds * 1000, extra={"json_fields": fields}
            )

    return logged


def serve(application: Application, listener: socket.socket, limits: Limits) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def ready() -> None:
        # Exempts the objects of the start from garbage collection: traversing those of a Django
        # project blocks the event loop for a tenth of a second each time.
        gc.collect()
        gc.freeze()
        if settings.configured:  # a bare ASGI application has no Redis to report to
            loop_monitor.start("web")
            shared_metrics.start("web")
            from chatproject.ops import doctor, start_report

            start_report.start(doctor.AT_WEB_START)
        logger.info("listening on %s", url)

    # Importing Daphne creates the event loop, which must be uvloop's.
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    from chatproject.lib.server import daphne

    daphne.Server(application, limits).serve(listener, ready)


if __name__ == "__main__":
    main()
