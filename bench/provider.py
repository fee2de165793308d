"""A model provider for load: OpenAI's streaming chat completions for almost no CPU.

    python -m bench.provider [--port 0]        prints its base URL as the first line

It shares the machine with what is measured, so everything that can be made before is made before:
a token costs it two table look-ups, one join and one write. Unlike `bench.stub_llm` it cannot
misbehave. The last user message says what is wanted, in any order, all optional::

    [[tokens=600 rate=20 first=0.5 at_once=100 key=any-word gate=another]]

- `tokens` (16) of the reply, cut to the request's `max_tokens`;
- `rate` (20) of them a second; 0: all at once;
- `first` (0): seconds from the request to the first token;
- `at_once` (0): so many tokens come together with the first one;
- `key`: the name of this stream in what is told of streams;
- `gate`: `POST /bench/gates/NAME?over=5` ends the streams with this gate in the order of their
  beginning, one after another within so many seconds, and `GET /bench/gates/NAME` tells how many
  tokens each has sent: so replies can be as long as a measurement takes.

`GET /bench/state` tells counts, and which streams were left by their client and when.

A token's text is `" 0n3x9k.17;"`: the microsecond of its emission in base 36 (the last six digits)
and its number from 0, so that whoever gets it knows what is lost, doubled or late (`emitted`). The
first one has no leading space. Tokens of all streams are emitted evenly spread over time, not in
bursts: streams differ by phase, which is left out of the first token, so that it comes at `first`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import re
import socket
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec
import uvloop

# --- What a token says ------------------------------------------------------------------------

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
STAMP_DIGITS = 6
SPAN: int = 36**STAMP_DIGITS  # microseconds after which the stamps begin anew: 36 minutes
HALF: int = 36 ** (STAMP_DIGITS // 2)
END = ";"  # of a token


def emitted(token: str) -> tuple[int, int]:
    """The number of a token and the `time.time_ns()` at which it was emitted, for a recent one.

    Raises ValueError for what is no token.
    """
    stamp, dot, number = token.strip().rstrip(END).partition(".")
    if len(stamp) != STAMP_DIGITS or not dot:
        raise ValueError(f"{token!r} is no token of the provider")
    now = time.time_ns() // 1000
    return int(number), (now - delay(int(stamp, 36), now)) * 1000


def delay(stamp: int, now: int) -> int:
    """Microseconds from a stamp to the time `now` (microseconds since 1970)."""
    passed = (now - stamp) % SPAN
    # The clock may be set back by a little between two readings.
    return passed if passed < SPAN - 10_000_000 else passed - SPAN


# --- What a request asks ----------------------------------------------------------------------

DIRECTIVES = re.compile(r"\[\[([^\[\]]*)\]\]")
MOST_TOKENS = 200_000


class Message(msgspec.Struct):
    role: str
    content: Any = ""


class Request(msgspec.Struct):
    """The fields of OpenAI's request that matter here; others are ignored."""

    messages: list[Message]
    model: str = "bench"
    stream: bool = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    tokens: int = 16
    rate: float = 20.0
    first: float = 0.0
    at_once: int = 0
    key: str = ""
    gate: str = ""


def wanted(request: Request) -> Wanted:
    """What a request's last user message asks for. Raises ValueError for a word that is none."""
    texts = [message.content for message in request.messages if message.role == "user"]
    last = texts[-1] if texts else ""
    if isinstance(last, list):  # content in parts
        last = "".join(part.get("text", "") for part in last)
    words = [word for found in DIRECTIVES.findall(last) for word in found.split()]
    found = msgspec.convert(dict(word.split("=", 1) for word in words), Wanted, strict=False)
    limit = request.max_completion_tokens or request.max_tokens or MOST_TOKENS
    found.tokens = max(1, min(found.tokens, limit, MOST_TOKENS))
    return found


# --- Bytes that are made once -----------------------------------------------------------------


def chunk(data: bytes) -> bytes:
    """As HTTP's chunked transfer encoding sends it."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(choices: str, more: str = "") -> bytes:
    head = '{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"bench",'
    return f'data: {head}"choices":[{choices}]{more}}}\n\n'.encode()


def choice(delta: str, finish: str = "null") -> str:
    return f'{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}'


HEADERS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
BEGIN = HEADERS + chunk(event(choice('{"role":"assistant","content":""}')))
LAST = b"0\r\n\r\n"

STAMPS = [f"{a}{b}{c}".encode() for a in DIGITS for b in DIGITS for c in DIGITS]


class Pieces(list[tuple[bytes, bytes]]):
    """For each number of a token what is sent before and after its stamp; grows when asked for more."""

    def reach(self, count: int) -> None:
        for number in range(len(self), count):
            space = "" if number == 0 else " "
            whole = event(choice(f'{{"content":"{space}{"?" * STAMP_DIGITS}.{number}{END}"}}'))
            head, _, tail = chunk(whole).partition(b"?" * STAMP_DIGITS)
            self.append((head, tail))


PIECES = Pieces()
PIECES.reach(1000)


def ending(tokens: int, prompt_tokens: int) -> bytes:
    """What comes after the last token."""
    usage = (
        f',"usage":{{"prompt_tokens":{prompt_tokens},"completion_tokens":{tokens},'
        f'"total_tokens":{prompt_tokens + tokens}}}'
    )
    done = event(choice("{}", '"stop"'))
    return chunk(done) + chunk(event("", usage)) + chunk(b"data: [DONE]\n\n") + LAST


# --- Time -------------------------------------------------------------------------------------

SLOT = 0.002  # seconds
SLOTS = 1024  # of the wheel; what is due later than it reaches waits in a timer of its own


class Wheel:
    """One timer for all streams, so that a token costs no timer of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: list[list[Stream]] = [[] for _ in range(SLOTS)]
        self._turned = 0  # the last slot that was served
        self._next = 0  # the slot for which the timer is set
        self._waiting = 0  # streams in the wheel
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: Stream, due: float) -> None:
        """Call `stream.emit()` at this time of the loop's clock."""
        if self._timer is None:
            self._turned = int(self._loop.time() / SLOT)
        slot = max(int(due / SLOT), self._turned + 1)
        if slot >= self._turned + SLOTS:
            self._loop.call_at(due, stream.emit)
            return
        self._slots[slot % SLOTS].append(stream)
        self._waiting += 1
        if self._timer is None or slot < self._next:
            self._set(slot)

    def _set(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = slot
        self._timer = self._loop.call_at(slot * SLOT, self._turn)

    def _turn(self) -> None:
        now = max(self._next, int(self._loop.time() / SLOT))
        # Streams that are served come back further on, which must not set the timer again and again.
        self._next = self._turned
        while self._turned < now:
            self._turned += 1
            due = self._slots[self._turned % SLOTS]
            if due:
                self._slots[self._turned % SLOTS] = []
                self._waiting -= len(due)
                for stream in due:
                    stream.emit()
        self._timer = None
        if self._waiting:
            slot = self._turned + 1
            while not self._slots[slot % SLOTS]:
                slot += 1
            self._set(slot)


class Stream:
    """One reply under way."""

    GOLDEN = 0.6180339887498949  # its multiples spread evenly, however many there are
    made = 0

    def __init__(self, connection: Connection, asked: Wanted, prompt_tokens: int) -> None:
        Stream.made += 1
        self.key = asked.key
        self._connection = connection
        self._period = 1 / asked.rate if asked.rate else 0.0
        # Those that do not wait for the wheel.
        self._at_once = asked.at_once if asked.rate else asked.tokens
        self._phase = (Stream.made * self.GOLDEN) % 1.0
        self._next = 0
        self._prompt_tokens = prompt_tokens
        self._due = connection.loop.time() + asked.first
        self._gate = GATES.setdefault(asked.gate, Gate()) if asked.gate else None
        if self._gate is not None:
            self._gate.streams.append(self)
        self.end_at(asked.tokens)
        PIECES.reach(asked.tokens)

    def end_at(self, tokens: int) -> None:
        """Let the reply have so many tokens."""
        self._tokens = tokens
        self._end = ending(tokens, self._prompt_tokens)

    def end_in(self, seconds: float) -> None:
        """Let the reply end at the first token after so many seconds, if it does not end before."""
        if self._period:
            self.end_at(min(self._tokens, self._next + 1 + int(seconds / self._period)))

    def count(self) -> None:
        """Tell the gate how many tokens there were."""
        if self._gate is not None:
            self._gate.sent[self.key] = self._next

    def begin(self) -> None:
        """Send the headers, and the first token when its time has come."""
        self._connection.write(BEGIN)
        if self._due > self._connection.loop.time():
            self._connection.wheel.add(self, self._due)
        else:
            self.emit()

    def emit(self) -> None:
        """Send the next token, or all that are due when they come at once."""
        connection = self._connection
        if connection.stream is not self:
            return  # the client has left
        number = self._next
        if number < self._at_once:
            self._emit_slice()
            return
        high, low = divmod((time.time_ns() // 1000) % SPAN, HALF)
        head, tail = PIECES[number]
        self._next = number = number + 1
        connection.emitted += 1
        if number == self._tokens:
            connection.write(b"".join((head, STAMPS[high], STAMPS[low], tail, self._end)))
            connection.ended()
            return
        connection.write(b"".join((head, STAMPS[high], STAMPS[low], tail)))
        # From the second one on a stream has its own phase; its mean rate is the asked one.
        self._due += self._period * (0.5 + self._phase if number == 1 else 1.0)
        connection.wheel.add(self, self._due)

    def _emit_slice(self) -> None:
        """A part of a reply that is wanted at once: others must not wait for all of it."""
        connection = self._connection
        high, low = divmod((time.time_ns() // 1000) % SPAN, HALF)
        stamp = STAMPS[high] + STAMPS[low]
        until = min(self._next + 100, self._at_once, self._tokens)
        connection.write(b"".join([stamp.join(PIECES[i]) for i in range(self._next, until)]))
        connection.emitted += until - self._next
        self._next = until
        if until == self._tokens:
            connection.write(self._end)
            connection.ended()
        elif until == self._at_once:
            self._due = connection.loop.time() + self._period * (0.5 + self._phase)
            connection.wheel.add(self, self._due)
        elif connection.paused:
            connection.resume = self.emit
        else:
            connection.loop.call_soon(self.emit)


# --- HTTP -------------------------------------------------------------------------------------


LEAVINGS_KEPT = 1000


class Ledger(msgspec.Struct):
    """What `GET /bench/state` tells: counts, and the newest streams that were left before their end."""

    begun: int = 0
    finished: int = 0
    left: int = 0
    tokens: int = 0
    leavings: list[tuple[str, int]] = []  # key and time.time_ns() of each


LEDGER = Ledger()


class Gate:
    """Streams that end together; `sent` has the number of tokens by key of those that have ended."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.sent: dict[str, int] = {}

    def open(self, over: float) -> None:
        """End the streams, spread over so many seconds."""
        for place, stream in enumerate(self.streams):
            stream.end_in(over * place / len(self.streams))
        self.streams = []


GATES: dict[str, Gate] = {}


class Connection(asyncio.Protocol):
    """One client's connection, kept alive; one request at a time."""

    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop, wheel: Wheel) -> None:
        self.loop = loop
        self.wheel = wheel
        self.stream: Stream | None = None
        self.emitted = 0
        self.paused = False
        self.resume: Callable[[], None] | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.write = self.transport.write

    def connection_lost(self, error: Exception | None) -> None:
        if self.stream is not None:
            LEDGER.left += 1
            LEDGER.leavings.append((self.stream.key, time.time_ns()))
            del LEDGER.leavings[:-LEAVINGS_KEPT]
            self._count()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        resume, self.resume = self.resume, None
        if resume is not None:
            self.loop.call_soon(resume)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._take_request()

    def ended(self) -> None:
        """The reply is complete; the next request may have come already."""
        LEDGER.finished += 1
        self._count()
        if self._received:
            self.loop.call_soon(self._take_request)

    def _count(self) -> None:
        assert self.stream is not None
        self.stream.count()
        LEDGER.tokens += self.emitted
        self.emitted = 0
        self.stream = None

    def _take_request(self) -> None:
        if self.stream is not None:
            return
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        line, *headers = head.decode("latin-1").split("\r\n")
        fields = {
            name.lower(): value.strip() for name, _, value in (h.partition(":") for h in headers)
        }
        if "transfer-encoding" in fields:
            self._refuse("411 Length Required", "Send the body with a Content-Length.")
            return
        length = int(fields.get("content-length", 0))
        if len(body) < length:
            if fields.get("expect") == "100-continue":
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        self._received = body[length:]
        self._answer(line, body[:length])

    def _answer(self, line: str, body: bytes) -> None:
        method, path, _ = line.split(" ", 2)
        if method == "POST" and path.endswith("/chat/completions"):
            self._complete(body)
        elif method == "GET" and path.endswith("/models"):
            model = {"id": "bench", "object": "model", "created": 1, "owned_by": "bench"}
            self._send("200 OK", {"object": "list", "data": [model]})
        elif method == "GET" and path == "/bench/state":
            self._send("200 OK", LEDGER)
        elif path.startswith("/bench/gates/"):
            name, _, over = path.removeprefix("/bench/gates/").partition("?over=")
            gate = GATES.setdefault(name, Gate())
            if method == "POST":
                gate.open(float(over or 0))
            self._send("200 OK", gate.sent)
        else:
            self._refuse("404 Not Found", f"There is no {method} {path} here.")

    def _complete(self, body: bytes) -> None:
        try:
            request = msgspec.json.decode(body, type=Request)
            asked = wanted(request)
        except (ValueError, TypeError, AttributeError) as error:
            self._refuse("400 Bad Request", str(error))
            return
        if not request.stream:
            self._refuse("400 Bad Request", "This provider only streams: send stream=true.")
            return
        LEDGER.begun += 1
        self.stream = Stream(self, asked, len(body) // 4)
        self.stream.begin()

    def _send(self, status: str, answer: object) -> None:
        body = msgspec.json.encode(answer)
        self.write(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def _refuse(self, status: str, message: str) -> None:
        self._send(status, {"error": {"message": message, "type": "invalid_request_error"}})
        self.transport.close()


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop)
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    server = await loop.create_server(lambda: Connection(loop, wheel), sock=listener)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
    gc.freeze()
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
