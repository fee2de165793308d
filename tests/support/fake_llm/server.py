"""The fake provider's HTTP server, and the paths under /control by which a test steers it."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Mapping
from email.utils import formatdate
from time import time
from typing import cast
from urllib.parse import parse_qsl

import msgspec

from tests.support.fake_llm import embeddings
from tests.support.fake_llm.directives import FAULTLESS, Directives, Request, parse_directives
from tests.support.fake_llm.model_lists import LISTS, REFUSALS
from tests.support.fake_llm.record import Call, Record
from tests.support.fake_llm.replies import Reply, StampedReply
from tests.support.fake_llm.streams import Stream, Wheel

BACKLOG = 2048
# As OpenAI words them: gateways replace the code, and classify by the message.
WORDINGS = {
    "content_filter": "The response was filtered due to the prompt triggering the content management"
    " policy. Please modify your prompt and retry.",
    "insufficient_quota": "You exceeded your current quota, please check your plan and billing details.",
}
SHORTEST_AWAY = 0.05  # seconds in which the listening socket is surely closed


class Server:
    """The provider: its connections and its record."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.wheel = Wheel(loop)
        self.record = Record()
        self.connections: set[Connection] = set()
        self.models = ("openai", 0.0)  # the list of models, and the seconds before it is sent
        self._listener: asyncio.Server

    async def listen(self, port: int) -> int:
        """Accept connections on this port, or with 0 on a free one; returns the port."""
        self._listener = await self.loop.create_server(
            lambda: Connection(self), "127.0.0.1", port, backlog=BACKLOG
        )
        return int(self._listener.sockets[0].getsockname()[1])

    def streams(self) -> list[Stream]:
        """The streams under way, in the order in which they began."""
        found = (connection.stream for connection in self.connections)
        return sorted(filter(None, found), key=lambda stream: stream.number)

    # --- Completions ----------------------------------------------------------------------------

    def complete(self, connection: Connection, headers: dict[str, str], body: bytes) -> None:
        """Answer a request for a completion, as its last user message wants it."""
        try:
            request = msgspec.json.decode(body, type=Request)
        except ValueError as error:
            connection.refuse(400, str(error))
            return
        message, prefix = request.asked()
        peer = connection.transport.get_extra_info("peername")
        self.record.requests.append({"body": msgspec.Raw(body), "headers": headers, "peer": peer})
        call = Call(message, key=message)
        self.record.calls.append(call)
        try:
            asked = parse_directives(message)
            call.key, call.group = asked.key or message, asked.group
            self.record.attempts[call.key] += 1
            is_other = asked.only not in ("", request.model)
            if is_other or 0 <= asked.fail < self.record.attempts[call.key]:
                asked = msgspec.structs.replace(asked, **FAULTLESS)
            if asked.reset or asked.status:
                self._fail(connection, asked, f"{message} {headers.get('Authorization')}")
                return
            reply = (StampedReply if asked.stamps else Reply)(request, asked, message, prefix)
        except ValueError as error:
            connection.refuse(400, str(error))
            return
        call.prefix = len(reply.prefix)
        if request.stream:
            connection.stream = Stream(connection, reply, asked, call)
            connection.stream.begin()
        else:
            call.sent, call.usage, call.ended = reply.size, reply.usage(reply.size), "finished"
            connection.send("200 OK", reply.whole())

    def embed(self, connection: Connection, headers: dict[str, str], body: bytes) -> None:
        """Answer a request for embeddings, as the directives of its first text want it."""
        peer = connection.transport.get_extra_info("peername")
        try:
            request = msgspec.json.decode(body, type=embeddings.EmbeddingsRequest)
            self.record.requests.append(
                {"body": msgspec.Raw(body), "headers": headers, "peer": peer}
            )
            asked = parse_directives(request.first)
        except ValueError as error:
            connection.refuse(400, str(error))
            return
        key = asked.key or request.first
        self.record.attempts[key] += 1
        if (asked.reset or asked.status) and not 0 <= asked.fail < self.record.attempts[key]:
            self._fail(connection, asked, f"{request.first} {headers.get('Authorization')}")
            return
        made = embeddings.answer(request, nousage=asked.nousage)
        if asked.garbage >= 0:
            made["data"] = made["data"][: asked.garbage]
        self.record.add(active=1)

        def send() -> None:
            connection.embedding = None
            self.record.add(active=-1, finished=1)
            connection.send("200 OK", made)

        connection.embedding = self.loop.call_later(asked.headers, send)

    def _fail(self, connection: Connection, asked: Directives, quoted: str) -> None:
        self.record.add(failed=1)
        if asked.reset:
            connection.transport.abort()
            return
        headers = {}
        if asked.retry_after >= 0:
            headers["Retry-After"] = f"{asked.retry_after:g}"
        if asked.retry_date >= 0:
            headers["Retry-After"] = formatdate(time() + asked.retry_date, usegmt=True)
        message = WORDINGS.get(asked.code, "the fake provider was told to refuse")
        message += f": {quoted}" if asked.echo else ""
        connection.refuse(asked.status, message, asked.code or None, **headers)

    def list_models(self, connection: Connection) -> None:
        """Answer with the list of models, or refuse, as the test chose."""
        kind, delay = self.models
        if kind in REFUSALS:
            self.loop.call_later(delay, connection.refuse, *REFUSALS[kind])
        else:
            self.loop.call_later(delay, connection.send, "200 OK", LISTS[kind])

    # --- Control --------------------------------------------------------------------------------

    def control(self, connection: Connection, name: str, asked: Mapping[str, str]) -> None:
        """Do what the test asks for; see the methods of `FakeLLM`."""
        answer: object = {}
        match name:
            case "state":
                record = self.record
                answer = {
                    "counts": record.counts,
                    "peak": record.peak,
                    "requests": list(record.requests),
                }
            case "calls":
                for stream in self.streams():
                    stream.note()
                answer = list(self.record.calls)
            case "wait":
                counts = {name: int(value) for name, value in asked.items()}
                self.record.wait(counts, lambda: connection.send("200 OK", {}))
                return
            case "release":
                self.record.released.add(asked["key"])
                for stream in self.streams():
                    if stream.is_held and stream.call.key == asked["key"]:
                        stream.release()
            case "end":
                streams = [one for one in self.streams() if one.call.group == asked["group"]]
                for number, stream in enumerate(streams):
                    stream.end_in(float(asked["over"]) * number / len(streams))
            case "models":
                self.models = (asked["kind"], float(asked["delay"]))
            case "reset":
                self.record.reset()
                self.models = ("openai", 0.0)
            case "cut":
                self._cut(connection)
            case "away":
                self.loop.create_task(self._go_away(connection, float(asked["seconds"])))
                return
        connection.send("200 OK", answer)

    def _cut(self, but: Connection) -> None:
        """Break all connections, except one."""
        for stream in self.streams():
            stream.note("broken")
        for connection in self.connections - {but}:
            connection.transport.abort()

    async def _go_away(self, connection: Connection, seconds: float) -> None:
        port = self._listener.sockets[0].getsockname()[1]
        self._listener.close()
        self._cut(connection)
        await asyncio.sleep(max(seconds, SHORTEST_AWAY))
        await self.listen(port)
        connection.send("200 OK", {})


class Connection(asyncio.Protocol):
    """One client's connection, kept alive; one request at a time."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server = server
        self.stream: Stream | None = None
        self.embedding: asyncio.TimerHandle | None = None  # an answer that is sent later
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.server.connections.discard(self)
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.left()
        if self.embedding is not None:
            self.embedding.cancel()
            self.server.record.add(active=-1, aborted=1)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._take_request()

    def ended(self) -> None:
        """The reply is complete; the next request may have come already."""
        self.stream = None
        if self._received:
            self.server.loop.call_soon(self._take_request)

    def _take_request(self) -> None:
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or self.stream is not None:
            return
        line, *rest = head.decode("latin-1").split("\r\n")
        fields = (field.partition(":") for field in rest)
        headers = {name.title(): value.strip() for name, _, value in fields}
        length = int(headers.get("Content-Length", 0))
        if len(body) < length:
            return
        self._received = body[length:]
        method, target, _ = line.split(" ", 2)
        path, _, query = target.partition("?")
        if path == "/v1/chat/completions":
            self.server.complete(self, headers, body[:length])
        elif path == "/v1/embeddings":
            self.server.embed(self, headers, body[:length])
        elif (method, path) == ("GET", "/v1/models"):
            self.server.list_models(self)
        elif path.startswith("/control/"):
            self.server.control(self, path.removeprefix("/control/"), dict(parse_qsl(query)))
        else:
            self.refuse(404, f"There is no {method} {path} here.")

    def refuse(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        """Answer with an error in OpenAI's format."""
        error = {"message": message, "type": "fake_error", "param": None, "code": code}
        self.send(f"{status} Refused", {"error": error}, **headers)

    def send(self, status: str, answer: object, **headers: str) -> None:
        """Send an answer of JSON, unless the client has left."""
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(answer)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.transport.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)


async def serve(port: int) -> None:
    """Serve until the standard input ends: with the process that started this one."""
    port = await Server(asyncio.get_running_loop()).listen(port)
    print(f"http://127.0.0.1:{port}/v1", flush=True)  # noqa: T201 # for the process that started it
    gc.freeze()
    await asyncio.to_thread(sys.stdin.read)
