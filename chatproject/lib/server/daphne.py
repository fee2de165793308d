"""Daphne with limits on input, backpressure on output, and an orderly shutdown.

Plain Daphne buffers without bound for a client that reads slowly and for an application that does,
drops connections where the protocol has a close code for the reason, and closes its sockets without
a close frame on SIGTERM. The classes here extend it in these points:

* `WriteGate` blocks an application's `send` while its connection's write buffer is full;
* `Inbox` pauses reading from a socket whose application falls behind, and `BodyStream` from a request;
* `Channel` and `Request` are a connection's HTTP side, `Socket` its WebSocket side;
* `Server` owns them and shuts them down.

The private names of Daphne, Twisted and autobahn that this relies on are checked by
tests/lib/server/test_contract.py. Import this module only after uvloop's event loop policy is set:
importing Daphne creates the event loop.
"""

# ruff: noqa: N802, N803, N815 - Twisted's own names are overridden here
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from types import FrameType
from typing import Any

import daphne.server
from autobahn.websocket.types import ConnectionDeny
from daphne import http_protocol, ws_protocol
from twisted.internet import reactor as untyped_reactor
from twisted.internet import tcp
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone
from twisted.logger import LogEvent, LogLevel, STDLibLogObserver, globalLogBeginner
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web import http

from chatproject.lib.server.asgi_types import TEXT_FRAMES, Application, Message, Scope
from chatproject.lib.server.limits import (
    AT_ONCE,
    BODY_BYTES,
    CANCEL_SECONDS,
    CLOSE_TIMEOUT,
    INBOX_MESSAGES,
    KEEP_ALIVE_SECONDS,
    LINGER_SECONDS,
    MAX_FRAGMENTS,
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    PING_INTERVAL,
    PING_TIMEOUT,
    SAME_STOP_SECONDS,
    Limits,
)

logger = logging.getLogger(__name__)
reactor: Any = untyped_reactor
twisted_errors: Any = STDLibLogObserver(__name__)

RESTARTING = 1012  # close code after which clients connect again

# Twisted has no phrases of newer codes such as 422 and 429: status lines would have "Unknown Status".
for one in HTTPStatus:
    http.RESPONSES.setdefault(one.value, one.phrase.encode())


class WriteGate:
    """Blocks a connection's senders while its transport is full, as an IPushProducer of Twisted's.

    The transport closes the gate when more than 64 KiB wait to be written, and opens it when
    nothing does.
    """

    def __init__(self) -> None:
        self.closed = False
        self._open = asyncio.Event()
        self._open.set()

    def pauseProducing(self) -> None:
        self.closed = True
        self._open.clear()

    def resumeProducing(self) -> None:
        self.closed = False
        self._open.set()

    def stopProducing(self) -> None:
        self.resumeProducing()

    async def wait(self) -> None:
        """Return when the connection takes more data, or is lost."""
        await self._open.wait()


class Inbox(asyncio.Queue[Message]):
    """Messages for one socket's application; reading from the socket pauses while too many wait."""

    def __init__(self, transport: Any) -> None:
        super().__init__()
        self.transport = transport
        self.paused = False

    def put_nowait(self, item: Message) -> None:
        super().put_nowait(item)
        if not self.paused and self.qsize() >= INBOX_MESSAGES:
            self.paused = True
            self.transport.pauseProducing()

    async def get(self) -> Message:
        message = await super().get()
        if self.paused and self.empty():
            self.paused = False
            self.transport.resumeProducing()
        return message


class BodyStream(asyncio.Queue[Message]):
    """A request's body as it arrives; reading from the connection pauses while much of it waits."""

    def __init__(self, transport: Any) -> None:
        super().__init__()
        self.transport = transport
        self.waiting = 0  # bytes
        self.paused = False
        self.is_complete = False

    def put_nowait(self, item: Message) -> None:
        if item["type"] != "http.request":  # Daphne puts the body that it has stored: none
            super().put_nowait(item)

    def feed(self, data: bytes, *, more: bool) -> None:
        """Add a part of the body, or its end."""
        self.is_complete = not more
        self.waiting += len(data)
        super().put_nowait({"type": "http.request", "body": data, "more_body": more})
        if not self.paused and self.waiting >= BODY_BYTES:
            self.paused = True
            self.transport.pauseProducing()

    async def get(self) -> Message:
        message = await super().get()
        self.waiting -= len(message.get("body", b""))
        if self.paused and not self.waiting:
            self.paused = False
            self.transport.resumeProducing()
        return message


REFUSED = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The file or text is larger than this server accepts.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "The address or a cookie is longer than this server accepts.",
}
REFUSAL_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{phrase}</title>
<h1>{phrase}</h1>
<p>{what} Nothing was stored. Go back and try a smaller one.</p>
<p><a href="/">Go to the first page</a></p>
<p>Error {code}</p>
"""


class BodyTooLargeError(Exception):
    """A request's body exceeded the limit while it was read."""


class Channel(http.HTTPChannel):
    """A connection's HTTP side."""

    transport: Any
    maxHeaders = MAX_HEADERS
    totalHeadersSize = MAX_HEADER_BYTES
    MAX_LENGTH = MAX_HEADER_BYTES

    receiving = False  # between a request's first byte and its last
    refused = False  # answered before its request was read to the end

    def connectionMade(self) -> None:
        super().connectionMade()
        self.gate = WriteGate()
        self.registerProducer(self.gate, True)
        self.server: Server = self.factory.server
        self.server.open.add(self)

    def dataReceived(self, data: bytes) -> None:
        if self.refused:
            return
        if not self.receiving and not self._handlingRequest:
            self.receiving = True
            self.setTimeout(self.server.limits.request_seconds)
        # Not HTTPChannel's own method, which restarts the timeout with every byte.
        LineReceiver.dataReceived(self, data)

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(HTTPStatus.BAD_REQUEST)

    def allHeadersReceived(self) -> None:
        limits = self.server.limits
        target: Any = self._path  # bytes until the whole request has arrived
        request = self.requests[-1]
        is_upgrade = request.requestHeaders.hasHeader(b"Upgrade")
        if self.length != 0 and limits.is_streamed(target) and not is_upgrade:
            self.setTimeout(limits.upload_seconds)
            request.stream = BodyStream(self.transport)
            super().allHeadersReceived()
            request.begin(self._command, target, self._version)
            return
        upload_bytes = limits.upload_bytes(target)
        most = limits.max_body_bytes if upload_bytes is None else upload_bytes
        if self.length is not None and self.length > most:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            if upload_bytes is not None:
                self.setTimeout(limits.upload_seconds)
                request.max_body_bytes = upload_bytes
            super().allHeadersReceived()

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        return super().checkPersistence(request, version) and not self.server.stopping

    def rawDataReceived(self, data: bytes) -> None:
        if self.refused:
            return
        try:
            super().rawDataReceived(data)
        except BodyTooLargeError:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def allContentReceived(self) -> None:
        self.receiving = False
        # Twisted saves this value as the idle time after the response.
        self.setTimeout(KEEP_ALIVE_SECONDS)
        super().allContentReceived()

    def refuse(self, status: HTTPStatus) -> None:
        """Answer a request that is not read to the end, and discard its rest for a while.

        Closing at once would reset the connection while the client is still sending, and the
        client would see the reset instead of the response.
        """
        logger.info("refused a request: %d %s", status, status.phrase)
        self.transport.write(refusal(status))
        self.linger()

    def linger(self) -> None:
        """Discard all that the client still sends, for a while."""
        self.refused = True
        self.clearLineBuffer()
        self.transport.resumeProducing()
        self.transport.loseWriteConnection()
        self.setTimeout(LINGER_SECONDS)

    def requestDone(self, request: Any) -> None:
        if request.is_partial:
            self.requests.remove(request)
            self.linger()
        else:
            super().requestDone(request)

    def go_away(self) -> None:
        """Close the connection, after the response to a request that is being handled."""
        if not self.requests:
            self.loseConnection()
            return
        self.persistent = False
        for request in self.requests:
            if not request.startedWriting:
                request.responseHeaders.setRawHeaders(b"Connection", [b"close"])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.server.open.discard(self)
        self.gate.stopProducing()
        super().connectionLost(reason)


def refusal(status: HTTPStatus) -> bytes:
    """The whole response to a request that does not reach an application: a page without a style sheet."""
    what = REFUSED.get(status, "The browser sent a request that cannot be read.")
    body = REFUSAL_PAGE.format(phrase=status.phrase, what=what, code=status.value).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "Content-Type: text/html; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


class Request(http_protocol.WebRequest):
    """One HTTP request, with a bounded body; or the opening handshake of a WebSocket."""

    transport: Any
    stream: BodyStream | None = None  # of an application that reads the body itself

    def __init__(self, channel: Channel, queued: bool) -> None:
        # Without Twisted's form parser, which reads the whole body a second time for nothing.
        super().__init__(channel, queued, parsePOSTFormSubmission=False)
        self.gate = channel.gate
        self.body_bytes = 0
        self.max_body_bytes = channel.server.limits.max_body_bytes

    @property
    def is_partial(self) -> bool:
        """Whether the application was called, and the body has not arrived as a whole."""
        return self.stream is not None and not self.stream.is_complete

    def begin(self, command: bytes, path: bytes, version: bytes) -> None:
        """Call the application before the body has arrived."""
        super().requestReceived(command, path, version)

    def gotLength(self, length: int | None) -> None:
        # A longer one is stored in a file.
        super().gotLength(0 if self.stream is not None else length)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self.stream is None:
            super().requestReceived(command, path, version)
        else:
            self.stream.feed(b"", more=False)

    def handleContentChunk(self, data: bytes) -> None:
        if self.stream is not None:
            self.stream.feed(data, more=True)
            return
        self.body_bytes += len(data)
        if self.body_bytes > self.max_body_bytes:
            raise BodyTooLargeError
        super().handleContentChunk(data)

    def process(self) -> Any:
        # Daphne trusts this header as the application's root path, also from any client.
        self.requestHeaders.removeHeader(b"Daphne-Root-Path")
        deferred = super().process()
        if self.transport is None:  # it was handed to a Socket
            self.server.open.discard(self.channel)
        return deferred

    def handle_reply(self, message: Message) -> None:
        if (
            message["type"] == "http.response.start"
            and self.is_partial
            and self.channel is not None
        ):
            # The rest of the body is discarded, and no other request can follow it.
            self.channel.persistent = False
            self.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        super().handle_reply(message)

    def handle_exception(self, exception: BaseException) -> None:
        # Daphne's own method raises when a response has begun, which ends its caller: the periodic
        # check that reaps all finished applications.
        if self._response_started:
            self.transport.abortConnection()
        else:
            super().handle_exception(exception)


class Socket(ws_protocol.WebSocketProtocol):
    """A connection's WebSocket side, from the upgrade on; it implements `TextFrames`."""

    transport: Any

    # Empty for autobahn, which formats all of them for each socket, for a log that is discarded.
    CONFIG_ATTRS: list[str] = []

    def connectionMade(self) -> None:
        for name in ws_protocol.WebSocketProtocol.CONFIG_ATTRS:
            setattr(self, name, getattr(self.factory, name))
        self.server: Server = self.factory.server_class
        self.gate = WriteGate()
        self.transport.unregisterProducer()  # the Channel's
        self.transport.registerProducer(self.gate, True)
        self.server.open.add(self)
        super().connectionMade()

    def onConnect(self, request: Any) -> Any:
        if self.server.stopping:
            raise ConnectionDeny(HTTPStatus.SERVICE_UNAVAILABLE)
        handshake = super().onConnect(request)
        # Jitter, or sockets that connected together after a restart are pinged together for ever.
        self.last_ping -= random.uniform(0, PING_INTERVAL)  # noqa: S311  not a secret
        return handshake

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        # Without autobahn's reason, which would put text of the client's into the status line.
        headers = [("Content-Length", "0"), ("Connection", "close"), *(responseHeaders or ())]
        super().failHandshake(HTTPStatus(code).phrase, code, headers)

    def onMessageFrameBegin(self, length: int) -> None:
        super().onMessageFrameBegin(length)
        if len(self.message_data) >= MAX_FRAGMENTS and not self.failedByMe:
            self._max_message_size_exceeded(length, MAX_FRAME_BYTES, "too many fragments")

    def onPing(self, payload: bytes) -> None:
        # A client that pings and does not read must not fill the memory with pongs.
        if not self.gate.closed:
            super().onPing(payload)

    # --- TextFrames ---------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        return self.gate.closed

    def write(self, texts: Sequence[bytes]) -> None:
        # Not sendFrame(), which takes as much CPU as everything else between here and the kernel.
        if self.state == self.STATE_OPEN:
            self.sendData(b"".join(map(text_frame, texts)))

    async def drain(self) -> None:
        await self.gate.wait()

    # --- Daphne's and autobahn's own ----------------------------------------------------------

    def serverSend(self, content: str | bytes, binary: bool = False) -> None:
        # Not sendMessage(): it raises when the client has just left, of which the application's
        # next message informs it anyway, and applies the limit for incoming messages to outgoing.
        if self.state == self.STATE_OPEN:
            payload = content if isinstance(content, bytes) else content.encode()
            self.sendFrame(opcode=2 if binary else 1, payload=payload)

    def serverClose(self, code: int | None = None) -> None:
        # Not sendClose(), which refuses the codes between 1001 and 2999.
        self.sendCloseFrame(code=code or 1000)

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Write to the network at once when the buffer is empty, which saves a turn of the loop."""
        transport = self.transport
        if transport.connected and not transport.dataBuffer and not transport._tempDataLen:
            sent = transport.writeSomeData(data)
            if sent == len(data):
                return
            if isinstance(sent, int):
                data = data[sent:]
        # After an error too: the transport runs into it again and handles it.
        transport.write(data)

    def handle_exception(self, exception: BaseException) -> None:
        # Not Daphne's own method, which raises itself after a subprotocol that was not offered.
        if self.state == self.STATE_CONNECTING:
            self.failHandshake("", HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            self.sendCloseFrame(code=self.CLOSE_STATUS_CODE_INTERNAL_ERROR)

    def go_away(self) -> None:
        """Ask the client to connect again, to any process that listens then."""
        if self.state == self.STATE_CONNECTING:
            self.failHandshake("", HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            self.sendCloseFrame(code=RESTARTING)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        # Daphne's server never registered a connection whose handshake was not valid.
        if self in self.server.connections:
            # RFC 6455, 7.1.5: 1005 means a close frame without a code.
            super().onClose(wasClean, 1005 if code is None else code, reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.server.open.discard(self)
        self.gate.stopProducing()
        super().connectionLost(reason)


def text_frame(text: bytes) -> bytes:
    """A text as a server's frame of RFC 6455: whole, not masked, not compressed."""
    size = len(text)
    if size < 126:
        return b"\x81%c%b" % (size, text)
    if size < 1 << 16:
        return struct.pack("!BBH", 0x81, 126, size) + text
    return struct.pack("!BBQ", 0x81, 127, size) + text


class HTTPFactory(http_protocol.HTTPFactory):
    protocol = Channel  # type: ignore[assignment]  # in place of a wrapper that also speaks HTTP/2

    def buildProtocol(self, addr: IAddress | None) -> Any:
        protocol = super().buildProtocol(addr)
        protocol.requestFactory = Request
        return protocol

    def log(self, request: Any) -> None:
        """Do nothing: chatproject.serve writes the access log."""


class SocketFactory(ws_protocol.WebSocketFactory):
    protocol = Socket


class Port(tcp.Port):
    """A listening socket that accepts AT_ONCE connections in a turn of the loop."""

    @property
    def numberAccepts(self) -> int:
        return AT_ONCE

    @numberAccepts.setter
    def numberAccepts(self, number: int) -> None:
        """Ignore Twisted's own estimate, which reaches hundreds."""


class Server(daphne.server.Server):
    """Daphne's server on a socket that is already bound."""

    def __init__(self, application: Application, limits: Limits) -> None:
        super().__init__(
            application,
            endpoints=["unused: serve() is given a socket"],
            ping_interval=PING_INTERVAL,
            websocket_timeout=-1,
            server_name="",
        )
        self.limits = limits
        self.connections: dict[Any, dict[str, Any]] = {}
        self.open: set[Channel | Socket] = set()
        self.stopping = False

    def serve(self, listener: socket.socket, ready: Callable[[], None]) -> None:
        """Serve on a bound socket until SIGTERM or SIGINT; `ready` is called once, listening."""
        self.http_factory = HTTPFactory(self)
        self.http_factory.timeOut = self.limits.request_seconds
        self.ws_factory = SocketFactory(self, server="")
        self.ws_factory.setProtocolOptions(
            autoPingTimeout=PING_TIMEOUT,
            allowNullOrigin=True,  # checking the origin is up to the application
            openHandshakeTimeout=self.websocket_connect_timeout,
            closeHandshakeTimeout=CLOSE_TIMEOUT,
            maxMessagePayloadSize=MAX_FRAME_BYTES,
            maxFramePayloadSize=MAX_FRAME_BYTES,
            failByDrop=False,  # but with the close code for the reason
        )
        log_errors_of_twisted()
        reactor.callLater(1, self.application_checker)
        reactor.callLater(2, self.timeout_checker)
        # As reactor.adoptStreamPort() does, with the class Port of this module.
        self.port = Port._fromListeningDescriptor(
            reactor, listener.fileno(), listener.family, self.http_factory
        )
        self.port.startListening()
        listener.close()
        loop = daphne.server.twisted_loop
        asyncio.set_event_loop(loop)
        on_stop_signal(loop, self.limits, self.stop)
        loop.call_soon(ready)
        reactor.run(installSignalHandlers=False)

    def create_application(self, protocol: Request | Socket, scope: Scope) -> Any:
        """As Daphne's, with a bounded queue for a socket's messages."""
        if protocol not in self.connections:
            return None
        scope.setdefault("asgi", {"version": "3.0"})
        if isinstance(protocol, Socket):
            inbox: asyncio.Queue[Message] = Inbox(protocol.transport)
            scope["extensions"] = {TEXT_FRAMES: protocol}
        else:
            inbox = protocol.stream or asyncio.Queue()

        async def send(message: Message) -> None:
            await self.handle_reply(protocol, message)

        self.connections[protocol]["application_instance"] = asyncio.ensure_future(
            self.application(scope, inbox.get, send)
        )
        return inbox

    async def handle_reply(self, protocol: Request | Socket, message: Message) -> None:
        """Send, and return when the connection takes more; sends to a lost one do nothing."""
        await super().handle_reply(protocol, message)
        if protocol.gate.closed:
            await protocol.gate.wait()

    def stop(self) -> None:
        """Begin to stop; the reactor stops when everything is closed."""
        self.stopping = True
        self.stopper = asyncio.ensure_future(self.close_everything())

    async def close_everything(self) -> None:
        """Close all connections in turn, wait for the applications, cancel the remaining tasks."""
        try:
            self.port.stopListening()
            for number, connection in enumerate(tuple(self.open), start=1):
                if connection in self.open:
                    connection.go_away()
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)
            await self.wait_for_applications()
            await cancel_all_tasks()
        finally:
            reactor.stop()

    async def wait_for_applications(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.limits.drain_seconds
        while self.open or any(
            (task := details.get("application_instance")) is not None and not task.done()
            for details in self.connections.values()
        ):
            if loop.time() > end:
                logger.warning("%d connections did not end in time", len(self.open))
                return
            await asyncio.sleep(0.05)


def log_errors_of_twisted() -> None:
    """Send Twisted's errors to Python's log; its other messages only report what clients do."""
    observers: Any = [observe]
    globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False, discardBuffer=True)


def observe(event: LogEvent) -> None:
    if event["log_level"] >= LogLevel.error:
        twisted_errors(event)


def on_stop_signal(
    loop: asyncio.AbstractEventLoop, limits: Limits, stop: Callable[[], None]
) -> None:
    """Call `stop` in the loop on the first SIGTERM or SIGINT; a second one ends the process at once.

    A view that hangs in its thread, or a loop that is stuck, cannot keep the process alive: some
    seconds after the drain time it is ended with exit code 1.
    """
    signals = (signal.SIGTERM, signal.SIGINT)

    def first(number: signal.Signals) -> None:
        began = time.monotonic()

        def again(number: int, frame: FrameType | None) -> None:
            if time.monotonic() - began > SAME_STOP_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        for each in signals:
            loop.remove_signal_handler(each)
            signal.signal(each, again)
        logger.info("%s: closing connections", number.name)
        last_resort = threading.Timer(limits.drain_seconds + CLOSE_TIMEOUT, end_process)
        last_resort.daemon = True
        last_resort.start()
        stop()

    for number in signals:
        loop.add_signal_handler(number, first, number)


def end_process() -> None:
    """End the process without waiting for anything in it."""
    logger.error("something did not stop in time: leaving without it")
    logging.shutdown()
    os._exit(1)


async def cancel_all_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
