"""Uvicorn with the limits of `chatproject.lib.web`, and the same behaviour as our Daphne.

Uvicorn waits where a client reads slowly, answers 1012 on SIGTERM, and pings. It bounds neither
headers nor bodies nor the time that a request may take to arrive, and closes a connection while
the client is still sending, so that the client may never see why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, NoReturn

import uvicorn
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame
from websockets.protocol import State

from chatproject.lib import web
from chatproject.lib.web import Application, Limits

logger = logging.getLogger(__name__)


def run(
    application: Application, listener: socket.socket, limits: Limits, ready: Callable[[], None]
) -> None:
    """Serve the application on a bound socket until SIGTERM or SIGINT; `ready` is called once."""
    # It logs paths with their query strings.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    Server(Config(application, limits), ready).run([listener])


class Config(uvicorn.Config):
    def __init__(self, application: Application, limits: Limits) -> None:
        super().__init__(
            application,
            http=Http,
            ws=Socket,
            loop="uvloop",
            lifespan="off",  # Daphne has none either
            interface="asgi3",
            log_config=None,
            access_log=False,  # chatproject.serve writes it
            server_header=False,
            proxy_headers=False,  # chatproject.serve reads them
            ws_max_size=web.MAX_FRAME_BYTES,
            ws_ping_interval=web.PING_INTERVAL,
            ws_ping_timeout=web.PING_TIMEOUT,
            ws_per_message_deflate=False,
            backlog=web.BACKLOG,
            timeout_keep_alive=web.KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=limits.drain_seconds,
        )
        self.limits = limits


class Server(uvicorn.Server):
    def __init__(self, config: Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.limits = config.limits
        self.ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on the first signal. Uvicorn's own method raises it again at the end."""

        def stop() -> None:
            self.should_exit = True

        web.on_stop_signal(asyncio.get_running_loop(), self.limits, stop)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As Uvicorn's, which asks all connections to go in one turn of the loop."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        for number, connection in enumerate(tuple(self.server_state.connections), start=1):
            connection.shutdown()
            if number % web.AT_ONCE == 0:
                await asyncio.sleep(0)
        await super().shutdown(sockets)


class Lingering(asyncio.Protocol):
    """Closes a connection to a client that may still be sending, without resetting it."""

    transport: asyncio.Transport
    lingering = False  # what still comes is not looked at
    close_timer: asyncio.TimerHandle | None = None

    def linger(self, last_words: bytes) -> None:
        """Send the last words, and read past what comes until the client has closed, for a while."""
        self.lingering = True
        self.transport.resume_reading()
        self.transport.write(last_words)
        self.transport.write_eof()
        self.close_timer = asyncio.get_running_loop().call_later(
            web.LINGER_SECONDS, self.transport.abort
        )


class RefusedError(Exception):
    """Ends the parsing of a request, which is answered with a status of our own."""


class Http(HttpToolsProtocol, Lingering):
    """One connection while it speaks HTTP, with bounded heads and bodies."""

    config: Config
    arriving: asyncio.TimerHandle | None = None  # while a request is expected, or not complete
    wire_bytes = 0  # of the request, without those of its first read
    head_bytes = 0
    body_bytes = 0
    in_head = False
    status = HTTPStatus.BAD_REQUEST  # for a request that cannot be parsed to its end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.expect_request()

    def expect_request(self) -> None:
        """Give a request its time to arrive."""
        self.request_is_here()
        self.arriving = self.loop.call_later(
            self.config.limits.request_seconds, self.timeout_keep_alive_handler
        )

    def request_is_here(self) -> None:
        if self.arriving is not None:
            self.arriving.cancel()
            self.arriving = None

    def data_received(self, data: bytes) -> None:
        if self.lingering:
            return
        arriving = self.arriving
        super().data_received(data)
        if self.arriving is None:
            # Uvicorn gives up its own timer with any byte, also with one that begins no request.
            if self in self.connections and self.is_idle():
                self.expect_request()
        elif self.arriving is arriving:
            self.count_wire(len(data))

    def is_idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def count_wire(self, count: int) -> None:
        """Bound what the parser itself keeps: a header that does not end, a trailer."""
        self.wire_bytes += count
        # The frames of chunks may be as long as what is in them.
        body = 0 if self.in_head else 2 * self.config.limits.max_body_bytes
        if self.wire_bytes > web.MAX_HEADER_BYTES + body and not self.lingering:
            self.refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                if self.in_head
                else HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.expect_request()
        self.in_head = True
        self.wire_bytes = self.head_bytes = self.body_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self.count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self.count_head(len(name) + len(value))

    def count_head(self, count: int) -> None:
        self.head_bytes += count
        if self.head_bytes > web.MAX_HEADER_BYTES or len(self.headers) > web.MAX_HEADERS:
            self.stop_parsing(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        self.in_head = False
        for name, value in self.headers:
            if name == b"content-length" and int(value) > self.config.limits.max_body_bytes:
                self.stop_parsing(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        if self.body_bytes > self.config.limits.max_body_bytes:
            self.stop_parsing(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.request_is_here()
        super().on_message_complete()

    def stop_parsing(self, status: HTTPStatus) -> NoReturn:
        self.status = status
        raise RefusedError

    def send_400_response(self, msg: str) -> None:
        # Called when the parser, or one of the methods above, could not go on.
        self.refuse(self.status)

    def refuse(self, status: HTTPStatus) -> None:
        """Answer a request that is not read to its end, if it is its turn to be answered."""
        logger.info("refused a request: %d %s", status, status.phrase)
        self.request_is_here()
        self.pipeline.clear()
        answer = web.refusal(status)
        if not self.is_idle():
            if self.cycle.response_started or self.cycle.scope is not self.scope:
                answer = b""
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.linger(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.request_is_here()
        super().connection_lost(exc)


class Socket(WebSocketsSansIOProtocol, Lingering):
    """One connection while it speaks WebSocket."""

    def data_received(self, data: bytes) -> None:
        if self.lingering:
            return
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            # Uvicorn would leave the answer unsent and the connection open.
            self.linger(b"".join(self.conn.data_to_send()))

    async def run_asgi(self) -> None:
        """As Uvicorn's, with a close code for a mistake of the application."""
        application = self.app
        extensions: Any = self.scope["extensions"]
        extensions[web.TEXT_FRAMES] = self

        async def closing(scope: Any, receive: Any, send: Any) -> None:
            try:
                await application(scope, receive, send)
            except Exception:
                if self.handshake_complete:
                    await self.send({"type": "websocket.close", "code": CloseCode.INTERNAL_ERROR})
                raise

        self.app = closing
        await super().run_asgi()

    def shutdown(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def handle_cont(self, event: Frame) -> None:
        super().handle_cont(event)
        if len(self.frames) >= web.MAX_FRAGMENTS and not self.lingering:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            self.handle_parser_exception()

    def send_receive_event_to_app(self) -> None:
        if self.lingering:
            return  # it came in one read with what was wrong
        if self.curr_msg_data_type == "text" and not is_utf8(b"".join(self.frames)):
            # Uvicorn would log an error, with a traceback, for what anybody can send.
            self.conn.fail(CloseCode.INVALID_DATA)
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        # A client that pings and does not read must not fill the memory with pongs.
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def handle_parser_exception(self) -> None:
        """Send the close frame that is waiting to be sent, and tell the application its code."""
        assert self.conn.close_sent is not None
        self.stop_keepalive()
        self.frames = []
        if not self.close_sent:
            self.close_sent = True
            code = int(self.conn.close_sent.code)
            self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": ""})
        self.linger(b"".join(self.conn.data_to_send()))

    # --- web.TextFrames -----------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        return not self.writable.is_set()

    def write(self, texts: Sequence[bytes]) -> None:
        # Past the state machine of `websockets`, which is told of no messages: it has no use for
        # them as long as none is fragmented or compressed.
        if self.conn.state is State.OPEN and not self.disconnected:
            self.transport.write(b"".join(map(web.text_frame, texts)))

    async def drain(self) -> None:
        await self.writable.wait()

    # --- Uvicorn's own ------------------------------------------------------------------------

    async def send(self, message: ASGISendEvent) -> None:
        """Send, and return when the connection takes more; sends to a lost one do nothing.

        Uvicorn raises there, which ends a Channels consumer before it can clean up. The consumer
        hears of the end by its next message.
        """
        if self.handshake_complete and (self.disconnected or self.close_sent):
            return
        try:
            await super().send(message)
        except ClientDisconnected:
            return
        if not self.writable.is_set():
            await self.writable.wait()


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
