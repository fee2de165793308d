"""Daphne, with limits on what comes in, backpressure on what goes out, and an orderly end.

Daphne itself buffers without bound for a client that reads slowly or an application that does,
drops a connection where the protocol has a close code for the reason, and leaves its clients
without a word on SIGTERM. Its classes are extended here in those points:

* `WriteGate` makes `send` of an application wait while a connection's write buffer is full;
* `Inbox` stops reading from a socket whose application is behind;
* `Channel` and `Request` are a connection's HTTP side, `Socket` its WebSocket side;
* `Server` holds them and stops.

Import it only after uvloop's event loop policy is set: importing Daphne makes the event loop.
"""

# ruff: noqa: N802, N803, N815 - Twisted's own names are overridden here
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
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

from chatproject.lib import web
from chatproject.lib.web import Application, Limits, Message, Scope

logger = logging.getLogger(__name__)
reactor: Any = untyped_reactor
twisted_errors: Any = STDLibLogObserver(__name__)

INBOX_MESSAGES = 16  # waiting for the application, before its socket is not read any more
CANCEL_SECONDS = 2  # for cancelled applications to clean up at the end


def run(
    application: Application, listener: socket.socket, limits: Limits, ready: Callable[[], None]
) -> None:
    """Serve the application on a bound socket until SIGTERM or SIGINT; `ready` is called once."""
    Server(application, limits).serve(listener, ready)


class WriteGate:
    """Stands for a connection's senders towards its transport, as an IPushProducer of Twisted's.

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
    """Messages for the application of one socket, which is not read while too many wait."""

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


class BodyTooLargeError(Exception):
    """A request's body grew over the limit while it was read."""


class Channel(http.HTTPChannel):
    """One connection while it speaks HTTP."""

    transport: Any
    maxHeaders = web.MAX_HEADERS
    totalHeadersSize = web.MAX_HEADER_BYTES
    MAX_LENGTH = web.MAX_HEADER_BYTES

    receiving = False  # between a request's first byte and its last
    refused = False  # answered before it was read to its end

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
        # Not HTTPChannel's own method, which grants the time again with every byte that comes.
        LineReceiver.dataReceived(self, data)

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(HTTPStatus.BAD_REQUEST)

    def allHeadersReceived(self) -> None:
        if self.length is not None and self.length > self.server.limits.max_body_bytes:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
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
        # What Twisted saves here is the time that the connection may idle after the response.
        self.setTimeout(web.KEEP_ALIVE_SECONDS)
        super().allContentReceived()

    def refuse(self, status: HTTPStatus) -> None:
        """Answer a request that is not read to its end, and read past the rest of it for a while.

        Closing at once would reset the connection while the client is still sending, and the
        client would see that instead of the answer.
        """
        logger.info("refused a request: %d %s", status, status.phrase)
        self.refused = True
        self.clearLineBuffer()
        self.transport.write(web.refusal(status))
        self.transport.loseWriteConnection()
        self.setTimeout(web.LINGER_SECONDS)

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


class Request(http_protocol.WebRequest):
    """One HTTP request, with a bounded body; or the opening handshake of a WebSocket."""

    transport: Any

    def __init__(self, channel: Channel, queued: bool) -> None:
        # Twisted's own form parser would read the whole body a second time for nothing.
        super().__init__(channel, queued, parsePOSTFormSubmission=False)
        self.gate = channel.gate
        self.body_bytes = 0

    def handleContentChunk(self, data: bytes) -> None:
        self.body_bytes += len(data)
        if self.body_bytes > self.server.limits.max_body_bytes:
            raise BodyTooLargeError
        super().handleContentChunk(data)

    def process(self) -> Any:
        # Daphne takes the root path of the application from this header, whoever sends it.
        self.requestHeaders.removeHeader(b"Daphne-Root-Path")
        deferred = super().process()
        if self.transport is None:  # a Socket has it now
            self.server.open.discard(self.channel)
        return deferred

    def handle_exception(self, exception: BaseException) -> None:
        # Daphne's own method raises when a response has begun, which ends the loop that calls it,
        # and with that all reaping of applications.
        if self._response_started:
            self.transport.abortConnection()
        else:
            super().handle_exception(exception)


class Socket(ws_protocol.WebSocketProtocol):
    """One connection while it speaks WebSocket."""

    transport: Any

    # Empty, as autobahn puts all of them into words for each socket, for a log that nobody reads.
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
        # Sockets that came together, after a restart, are not to be pinged together for ever.
        self.last_ping -= random.uniform(0, web.PING_INTERVAL)  # noqa: S311  not a secret
        return handshake

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        # Without the reason in the status line, which autobahn makes from what the client sent.
        headers = [("Content-Length", "0"), ("Connection", "close"), *(responseHeaders or ())]
        super().failHandshake(HTTPStatus(code).phrase, code, headers)

    def onMessageFrameBegin(self, length: int) -> None:
        super().onMessageFrameBegin(length)
        if len(self.message_data) >= web.MAX_FRAGMENTS and not self.failedByMe:
            self._max_message_size_exceeded(length, web.MAX_FRAME_BYTES, "too many fragments")

    def onPing(self, payload: bytes) -> None:
        # A client that pings and does not read must not fill the memory with pongs.
        if not self.gate.closed:
            super().onPing(payload)

    # --- web.TextFrames -----------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        return self.gate.closed

    def write(self, texts: Sequence[bytes]) -> None:
        # Not sendFrame(), which costs as much as the rest of the way.
        if self.state == self.STATE_OPEN:
            self.sendData(b"".join(map(web.text_frame, texts)))

    async def drain(self) -> None:
        await self.gate.wait()

    # --- Daphne's and autobahn's own ----------------------------------------------------------

    def serverSend(self, content: str | bytes, binary: bool = False) -> None:
        # Not sendMessage(), which raises when the client has just left, where the application will
        # be told by its next message, and which holds the limit for incoming messages against ours.
        if self.state == self.STATE_OPEN:
            payload = content if isinstance(content, bytes) else content.encode()
            self.sendFrame(opcode=2 if binary else 1, payload=payload)

    def serverClose(self, code: int | None = None) -> None:
        # Not sendClose(), which refuses the codes between 1001 and 2999.
        self.sendCloseFrame(code=code or 1000)

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Write to the network at once where nothing waits, which saves a turn of the loop."""
        transport = self.transport
        if transport.connected and not transport.dataBuffer and not transport._tempDataLen:
            sent = transport.writeSomeData(data)
            if sent == len(data):
                return
            if isinstance(sent, int):
                data = data[sent:]
        # Also after an error, which the transport meets again and handles.
        transport.write(data)

    def handle_exception(self, exception: BaseException) -> None:
        # Not Daphne's own method, which may raise too: after a subprotocol that was not offered.
        if self.state == self.STATE_CONNECTING:
            self.failHandshake("", HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            self.sendCloseFrame(code=self.CLOSE_STATUS_CODE_INTERNAL_ERROR)

    def go_away(self) -> None:
        """Ask the client to connect again, to whatever process then listens."""
        if self.state == self.STATE_CONNECTING:
            self.failHandshake("", HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            self.sendCloseFrame(code=web.RESTARTING)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        # A connection whose handshake was not valid is not known to Daphne's server.
        if self in self.server.connections:
            # RFC 6455, 7.1.5: 1005 stands for a close frame without a code.
            super().onClose(wasClean, 1005 if code is None else code, reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.server.open.discard(self)
        self.gate.stopProducing()
        super().connectionLost(reason)


class HTTPFactory(http_protocol.HTTPFactory):
    protocol = Channel  # type: ignore[assignment]  # in place of a wrapper that also speaks HTTP/2

    def buildProtocol(self, addr: IAddress | None) -> Any:
        protocol = super().buildProtocol(addr)
        protocol.requestFactory = Request
        return protocol

    def log(self, request: Any) -> None:
        """Nothing: chatproject.serve writes the access log."""


class SocketFactory(ws_protocol.WebSocketFactory):
    protocol = Socket


class Port(tcp.Port):
    """A listening socket that accepts a few connections in a turn of the loop."""

    @property
    def numberAccepts(self) -> int:
        return web.AT_ONCE

    @numberAccepts.setter
    def numberAccepts(self, number: int) -> None:
        """Twisted's own guess, up to hundreds."""


class Server(daphne.server.Server):
    """Daphne's server on a socket that is already bound."""

    def __init__(self, application: Application, limits: Limits) -> None:
        super().__init__(
            application,
            endpoints=["unused: serve() is given a socket"],
            ping_interval=web.PING_INTERVAL,
            websocket_timeout=-1,
            server_name="",
        )
        self.limits = limits
        self.connections: dict[Any, dict[str, Any]] = {}
        self.open: set[Channel | Socket] = set()
        self.stopping = False

    def serve(self, listener: socket.socket, ready: Callable[[], None]) -> None:
        """Serve until a signal; see the module's `run`."""
        self.http_factory = HTTPFactory(self)
        self.http_factory.timeOut = self.limits.request_seconds
        self.ws_factory = SocketFactory(self, server="")
        self.ws_factory.setProtocolOptions(
            autoPingTimeout=web.PING_TIMEOUT,
            allowNullOrigin=True,  # who may connect from where is the application's decision
            openHandshakeTimeout=self.websocket_connect_timeout,
            closeHandshakeTimeout=web.CLOSE_TIMEOUT,
            maxMessagePayloadSize=web.MAX_FRAME_BYTES,
            maxFramePayloadSize=web.MAX_FRAME_BYTES,
            failByDrop=False,  # close with the code that says why
        )
        log_errors_of_twisted()
        reactor.callLater(1, self.application_checker)
        reactor.callLater(2, self.timeout_checker)
        # As reactor.adoptStreamPort() does it, with a class of ours.
        self.port = Port._fromListeningDescriptor(
            reactor, listener.fileno(), listener.family, self.http_factory
        )
        self.port.startListening()
        listener.close()
        loop = daphne.server.twisted_loop
        asyncio.set_event_loop(loop)
        web.on_stop_signal(loop, self.limits, self.stop)
        loop.call_soon(ready)
        reactor.run(installSignalHandlers=False)

    def create_application(self, protocol: Request | Socket, scope: Scope) -> Any:
        """As Daphne's, with a bounded queue for a socket's messages."""
        if protocol not in self.connections:
            return None
        scope.setdefault("asgi", {"version": "3.0"})
        if isinstance(protocol, Socket):
            inbox: asyncio.Queue[Message] = Inbox(protocol.transport)
            scope["extensions"] = {web.TEXT_FRAMES: protocol}
        else:
            inbox = asyncio.Queue()

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
        """Begin to stop; the reactor ends when everything is closed."""
        self.stopping = True
        self.stopper = asyncio.ensure_future(self.close_everything())

    async def close_everything(self) -> None:
        """Close all connections in order, wait for the applications, cancel what is left."""
        try:
            self.port.stopListening()
            for number, connection in enumerate(tuple(self.open), start=1):
                if connection in self.open:
                    connection.go_away()
                if number % web.AT_ONCE == 0:
                    await asyncio.sleep(0)
            await self.wait_for_applications()
            await cancel_all_tasks()
        finally:
            reactor.stop()

    async def wait_for_applications(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.limits.drain_seconds
        while self.open or not all(task.done() for task in self.applications()):
            if loop.time() > end:
                logger.warning("%d connections did not end in time", len(self.open))
                return
            await asyncio.sleep(0.05)

    def applications(self) -> list[asyncio.Future[None]]:
        found = (details.get("application_instance") for details in self.connections.values())
        return [task for task in found if task is not None]


async def cancel_all_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CANCEL_SECONDS)


def log_errors_of_twisted() -> None:
    """Send Twisted's errors to Python's log; its lesser messages tell only what clients do."""
    observers: Any = [observe]
    globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False, discardBuffer=True)


def observe(event: LogEvent) -> None:
    if event["log_level"] >= LogLevel.error:
        twisted_errors(event)
