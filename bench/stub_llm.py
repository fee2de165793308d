"""A deterministic model provider on loopback: the counterpart of tests and load runs.

It speaks OpenAI's `/v1/chat/completions` (streamed or whole) and `/v1/models`.  What a reply
looks like, how fast it comes and how it goes wrong is written as directives into the last user
message, so that a test needs no second channel to say what it wants::

    [[tokens=200 rate=50 first=0.3]] tell me a story

`Directives` lists them all.  The text of a reply depends on nothing but its length and the
message (`reply_text`), so whoever sent the message knows what must arrive.  Like a real
provider, the stub stops working on a reply as soon as its client hangs up, and counts it.

When the last message of a request is the assistant's, and the beginning of the reply to the user
message before it, the stub goes on after it, as providers do that can continue.

The paths under `/stub` are for the test that started it (see `tests/stub.py`): `state`
(what was asked, how many streams are open, finished, aborted), `calls` (what became of each
call), `wait`, `release`, `reset`; `cut` breaks all connections, `away` is a restart.

Run it with `python -m bench.stub_llm --port 8099`; with port 0 it takes a free one.  It prints
its base URL as the first line.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
from collections import Counter, defaultdict, deque
from email.utils import formatdate
from time import time
from typing import Any

import msgspec
import uvloop
from aiohttp import web

# Words as a tokenizer cuts them: with their leading space.  The odd ones are there on purpose:
# two, three and four byte characters, a joined emoji, line breaks, and what JSON, HTML and
# Markdown must escape.
PIECES = (
    " a", " the", " of", " to", " river", " quietly", " measured", " between", " lighthouse",
    " afternoon", " paper", " boats", " remembered", " because", " seventeen", " and", " then",
    " it", " was", " extraordinarily", " small", " windows", " north", " harbour", " I", " we",
    " counted", " slowly", " again", ",", ".", ";", "!", "?", " naïve", " größer", " café",
    " Привет", " 日本語", " 你好", " 🙂", " 👩‍🔬", " €5", ".\n\nThen", ":\n-", "\n", " \"so\"",
    " back\\slash", " <b>", " a&b", " it's", " 3.14", "\tTab",
)  # fmt: skip
ENCODED = {piece: msgspec.json.encode(piece) for piece in PIECES}

REQUESTS_KEPT = 2000  # the newest; a load run sends many more
CALLS_KEPT = 20_000
DIRECTIVES = re.compile(r"\[\[([^\[\]]*)\]\]")


def reply_pieces(tokens: int, seed: str) -> list[str]:
    """The reply of `tokens` tokens to the user message `seed` (its whole text, directives too).

    The same in every process and on every machine.
    """
    chosen = random.Random(seed).choices(PIECES, k=tokens)
    if chosen:
        # No white space at either end, so that code which strips a reply is not what is tested.
        chosen[0] = chosen[0].lstrip() or "Well"
        chosen[-1] = chosen[-1].rstrip() or "."
    return chosen


def reply_text(tokens: int, seed: str) -> str:
    """`reply_pieces` as the one text that a client must end up with."""
    return "".join(reply_pieces(tokens, seed))


def reasoning_text(tokens: int, seed: str) -> str:
    """The reasoning that comes before the reply when `reasoning=N` was asked for."""
    return reply_text(tokens, seed + "\nreasoning")


class Directives(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a message may ask of the stub; times in seconds, counts in tokens of the reply.

    The faults that carry a count happen after that many tokens of the reply, of which a request may
    have brought some along.
    """

    # the reply
    tokens: int = 24  # cut to the request's max_tokens, which then ends with finish "length"
    reasoning: int = 0  # reasoning tokens sent first
    finish: str = "stop"  # finish_reason
    nousage: bool = False  # no usage, even though the client asked for it
    # its pace
    headers: float = 0.0  # wait before the response headers
    first: float = 0.0  # wait before the first token, headers sent
    rate: float = 50.0  # tokens per second; 0: as fast as it can
    ping: float = 0.0  # while waiting for the first token, a keep-alive comment this often
    chunk: int = 0  # split what is sent into network writes of this many bytes
    # refusing
    status: int = 0  # answer with this HTTP status instead
    code: str = ""  # error.code of that answer
    retry_after: float = -1.0  # its Retry-After header in seconds
    retry_date: float = -1.0  # the same as a date, so many seconds from now
    echo: bool = False  # quote the message and the Authorization header in that answer
    reset: bool = False  # break the connection before the first byte instead
    fail: int = -1  # only the first so many requests with the same key fail or break; -1: all
    key: str = ""  # what counts as the same for `fail` and `hold`; by default the message
    # breaking
    cut: int = -1  # drop the connection
    short: int = -1  # end the body properly, but without finish_reason and [DONE]
    silent: int = -1  # keep the connection open and send nothing more
    hold: int = -1  # wait for /stub/release of the key, then go on
    garbage: int = -1  # send something that is not JSON
    error: int = -1  # send an error object and end


FAULTLESS: dict[str, Any] = {"status": 0, "reset": False} | dict.fromkeys(
    ("cut", "short", "silent", "garbage", "error"), -1
)


def parse_directives(text: str) -> Directives:
    """Raises ValueError (msgspec's) for a word that is no directive: a typo fails its test."""
    words = [word for found in DIRECTIVES.findall(text) for word in found.split()]
    pairs = dict(word.partition("=")[::2] for word in words)
    return msgspec.convert(pairs, Directives, strict=False)


class Call(msgspec.Struct):
    """What became of one request for a completion."""

    message: str  # the last of the user
    prefix: int = 0  # characters of the reply that the request brought along, to be continued
    sent: int = 0  # tokens of the reply
    reasoned: int = 0  # tokens of reasoning
    # active; finished (the whole reply); refused; broken (by a directive, `cut` or `away`); aborted
    # (by its client)
    ended: str = "active"
    usage: dict[str, Any] | None = None  # that was told


class State:
    """What the stub did since its start or the last `/stub/reset`."""

    def __init__(self) -> None:
        self.active = 0  # streams being sent now
        self.finished = 0  # ended as their directives say
        self.aborted = 0  # the client hung up first
        self.failed = 0  # requests answered with a status or a reset
        self.requests: deque[dict[str, Any]] = deque(maxlen=REQUESTS_KEPT)
        self.calls: deque[Call] = deque(maxlen=CALLS_KEPT)
        self.attempts: Counter[str] = Counter()
        self.holds: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.held = 0  # streams that wait for a release
        self.changed = asyncio.Event()

    def counts(self) -> dict[str, int]:
        return {
            "active": self.active,
            "finished": self.finished,
            "aborted": self.aborted,
            "failed": self.failed,
            "held": self.held,
        }

    def add(self, **changes: int) -> None:
        for name, change in changes.items():
            setattr(self, name, getattr(self, name) + change)
        self.changed.set()
        self.changed = asyncio.Event()


class Door:
    """Where requests come in: may be shut, which ends what is inside, and opened again."""

    def __init__(self) -> None:
        self.runner: web.AppRunner
        self._site: web.TCPSite

    async def open(self, port: int) -> int:
        """Listen on this port, or with 0 on a free one; tells which."""
        self._site = web.TCPSite(self.runner, "127.0.0.1", port, shutdown_timeout=0.1, backlog=2048)
        await self._site.start()
        return int(self.runner.addresses[-1][1])

    async def shut(self) -> None:
        await self._site.stop()

    def break_connections(self, but: web.Request) -> None:
        """Break all connections, except that of one request."""
        assert self.runner.server is not None
        for connection in self.runner.server.connections:
            transport = connection.transport
            if transport is not None and transport is not but.transport:
                transport.abort()


STATE = web.AppKey("state", State)
DOOR = web.AppKey("door", Door)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    state = request.app[STATE]
    body: dict[str, Any] = msgspec.json.decode(await request.read())
    peer = request.transport and request.transport.get_extra_info("peername")
    state.requests.append({"body": body, "headers": dict(request.headers), "peer": peer})
    message = last_user_text(body)
    call = Call(message, ended="refused")
    state.calls.append(call)
    try:
        directives = parse_directives(message)
    except msgspec.ValidationError as error:
        return refusal(400, f"the stub does not know this directive: {error}", "bad_directive")
    key = directives.key or message
    state.attempts[key] += 1
    if 0 <= directives.fail < state.attempts[key]:
        directives = msgspec.structs.replace(directives, **FAULTLESS)
    if directives.reset:
        state.add(failed=1)
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)  # goes nowhere
    if directives.status:
        state.add(failed=1)
        said = f": {message} {request.headers.get('Authorization')}" if directives.echo else ""
        return refusal_by(directives, said)
    try:
        reply = Reply(body, directives, message)
    except ValueError as error:
        return refusal(400, str(error), "bad_prefix")
    call.prefix = len(reply.prefix)
    if body.get("stream"):
        return await stream_counted(request, reply, key, call)
    call.sent, call.usage, call.ended = reply.tokens, reply.usage, "finished"
    return web.json_response(body=reply.whole())


def last_user_text(body: dict[str, Any]) -> str:
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content
            return "".join(part["text"] for part in content if part["type"] == "text")
    return ""


def refusal_by(directives: Directives, said: str) -> web.Response:
    message = f"the stub was told to refuse{said}"
    response = refusal(directives.status, message, directives.code or None)
    if directives.retry_after >= 0:
        response.headers["Retry-After"] = f"{directives.retry_after:g}"
    if directives.retry_date >= 0:
        response.headers["Retry-After"] = formatdate(time() + directives.retry_date, usegmt=True)
    return response


def refusal(status: int, message: str, code: str | None) -> web.Response:
    error = {"message": message, "type": "stub_error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status)


class Reply:
    """The bytes of one reply, in OpenAI's format.

    Raises ValueError when the request brings a beginning along that is not this reply's.
    """

    def __init__(self, body: dict[str, Any], directives: Directives, message: str) -> None:
        cap = body.get("max_completion_tokens") or body.get("max_tokens") or sys.maxsize
        self.directives = directives
        last = body["messages"][-1]
        self.prefix: str = last["content"] if last["role"] == "assistant" else ""
        whole = reply_pieces(directives.tokens, message)
        pieces = pieces_after(self.prefix, whole)
        self.skipped = len(whole) - len(pieces)  # tokens that are in the prefix
        self.tokens = min(len(pieces), cap)
        # A reply that was capped is the start of the full one.
        self.pieces = pieces[: self.tokens]
        self.finish = "length" if self.tokens < len(pieces) else directives.finish
        thoughts = 0 if self.prefix else directives.reasoning
        self.reasoning = reply_pieces(thoughts, message + "\nreasoning")
        self.wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        prompt = sum(len(str(message["content"]).split()) for message in body["messages"])
        self.usage = {
            "prompt_tokens": prompt,
            "completion_tokens": self.tokens + thoughts,
            "total_tokens": prompt + self.tokens + thoughts,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": thoughts},
        }
        self.identity = {"id": "chatcmpl-stub", "created": 0, "model": str(body["model"])}
        self.head = b"data: " + msgspec.json.encode(
            self.identity | {"object": "chat.completion.chunk"}
        ).removesuffix(b"}")

    def role(self) -> bytes:
        return self._chunk(b'"role":"assistant","content":""')

    def token(self, piece: str) -> bytes:
        return self._chunk(b'"content":' + (ENCODED.get(piece) or msgspec.json.encode(piece)))

    def reasoning_token(self, piece: str) -> bytes:
        return self._chunk(b'"reasoning_content":' + msgspec.json.encode(piece))

    def _chunk(self, delta: bytes, finish: bytes = b"null") -> bytes:
        return b'%b,"choices":[{"index":0,"delta":{%b},"finish_reason":%b}]}\n\n' % (
            self.head,
            delta,
            finish,
        )

    @property
    def told_usage(self) -> dict[str, Any] | None:
        return self.usage if self.wants_usage and not self.directives.nousage else None

    def ending(self) -> bytes:
        parts = [self._chunk(b"", msgspec.json.encode(self.finish))]
        if self.told_usage is not None:
            usage = msgspec.json.encode(self.told_usage)
            parts.append(b'%b,"choices":[],"usage":%b}\n\n' % (self.head, usage))
        parts.append(b"data: [DONE]\n\n")
        return b"".join(parts)

    def whole(self) -> bytes:
        message = {"role": "assistant", "content": "".join(self.pieces)}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        return msgspec.json.encode(
            self.identity | {"object": "chat.completion", "choices": [choice], "usage": self.usage}
        )


def pieces_after(prefix: str, pieces: list[str]) -> list[str]:
    """What is left of a reply after its beginning, which may end in the middle of a piece."""
    left = len(prefix)
    if not "".join(pieces).startswith(prefix):
        raise ValueError("the last message is the assistant's, but not the beginning of this reply")
    for index, piece in enumerate(pieces):
        if left < len(piece):
            return [piece[left:], *pieces[index + 1 :]]
        left -= len(piece)
    return []


async def stream_counted(
    request: web.Request, reply: Reply, key: str, call: Call
) -> web.StreamResponse:
    state = request.app[STATE]
    state.add(active=1)
    call.ended = "active"
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    try:
        await stream(request, response, reply, key, call)
    except (asyncio.CancelledError, ConnectionError) as error:
        # handler_cancellation cancels this at once when the client goes away; a write that was
        # under way fails instead.
        state.add(active=-1, aborted=1)
        if call.ended == "active":
            call.ended = "aborted"
        if isinstance(error, ConnectionError):
            return response  # there is nobody to be told
        raise
    state.add(active=-1, finished=1)
    if call.ended == "active":
        call.ended = "broken"
    return response


async def stream(
    request: web.Request, response: web.StreamResponse, reply: Reply, key: str, call: Call
) -> None:
    directives = reply.directives
    await asyncio.sleep(directives.headers)
    await response.prepare(request)
    send = Writer(response, directives.chunk).write
    await first_wait(directives, send)
    await send(reply.role())
    pace = Pace(directives.rate)
    for piece in reply.reasoning:
        await pace.next()
        await send(reply.reasoning_token(piece))
        call.reasoned += 1
    # One turn more than there are tokens: a fault may come after the last one.
    for sent in range(reply.skipped, reply.skipped + reply.tokens + 1):
        if sent == directives.silent:
            await asyncio.Event().wait()
        elif sent == directives.hold:
            await held(request.app[STATE], key)
            pace.restart()
        elif sent == directives.garbage:
            await send(b'data: {"choices": [{"delta": {"content": \x00<html>\xff\n\n')
        elif sent == directives.error:
            error = b'{"error":{"message":"the stub broke","type":"server_error","code":500}}'
            return await send(b"data: " + error + b"\n\n")
        elif sent == directives.short:
            return None
        elif sent == directives.cut:
            if request.transport is not None:
                request.transport.close()
            return None
        if call.sent < reply.tokens:
            await pace.next()
            await send(reply.token(reply.pieces[call.sent]))
            call.sent += 1
    # Before it is sent: once somebody has read it, the record must say so.
    call.ended, call.usage = "finished", reply.told_usage
    return await send(reply.ending())


class Writer:
    """Sends bytes, in pieces of `size` if one is given."""

    def __init__(self, response: web.StreamResponse, size: int) -> None:
        self._response = response
        self._size = size

    async def write(self, data: bytes) -> None:
        if not self._size:
            return await self._response.write(data)
        for start in range(0, len(data), self._size):
            await self._response.write(data[start : start + self._size])
            await asyncio.sleep(0)  # lets the client read it on its own
        return None


async def first_wait(directives: Directives, send: Any) -> None:
    left = directives.first
    while directives.ping and left > directives.ping:
        await asyncio.sleep(directives.ping)
        await send(b": keep-alive\n\n")
        left -= directives.ping
    await asyncio.sleep(left)


class Pace:
    """Waits until the next token is due, by a schedule that does not drift."""

    def __init__(self, rate: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._interval = 1 / rate if rate else 0.0
        self._due = self._loop.time()
        self._sent = 0

    async def next(self) -> None:
        delay = self._due - self._loop.time()
        self._due += self._interval
        self._sent += 1
        if self._interval and delay > 0:
            await asyncio.sleep(delay)
        elif self._sent % 16 == 0:
            await asyncio.sleep(0)  # a fast reply must not keep the others waiting

    def restart(self) -> None:
        self._due = self._loop.time()


async def held(state: State, key: str) -> None:
    state.add(held=1)
    try:
        await state.holds[key].wait()
    finally:
        state.add(held=-1)


async def models(request: web.Request) -> web.Response:
    return web.json_response(
        {"object": "list", "data": [{"id": "stub", "object": "model", "owned_by": "bench"}]}
    )


async def show_state(request: web.Request) -> web.Response:
    state = request.app[STATE]
    return web.json_response({**state.counts(), "requests": list(state.requests)})


async def show_calls(request: web.Request) -> web.Response:
    return web.json_response(body=msgspec.json.encode(list(request.app[STATE].calls)))


async def cut(request: web.Request) -> web.Response:
    """Breaks all connections, and with them what is being sent."""
    break_off(request)
    return web.json_response({})


async def away(request: web.Request) -> web.Response:
    """A restart that takes `seconds`, after which the record is still there; answers at its end."""
    door = request.app[DOOR]
    port = door.runner.addresses[-1][1]
    await door.shut()
    break_off(request)
    await asyncio.sleep(float(request.query["seconds"]))
    await door.open(port)
    return web.json_response({})


def break_off(request: web.Request) -> None:
    for call in request.app[STATE].calls:
        if call.ended == "active":
            call.ended = "broken"
    request.app[DOOR].break_connections(but=request)


async def wait(request: web.Request) -> web.Response:
    """Answers when the counters are as the query says (`?active=0&aborted=1`)."""
    state = request.app[STATE]
    wanted = {name: int(value) for name, value in request.query.items()}
    while not wanted.items() <= state.counts().items():
        await state.changed.wait()
    return web.json_response(state.counts())


async def release(request: web.Request) -> web.Response:
    """Lets the streams go on that `hold` under this key, now or later."""
    request.app[STATE].holds[request.query["key"]].set()
    return web.json_response({})


async def reset(request: web.Request) -> web.Response:
    """Forgets requests, calls, attempts, holds and counters; streams that run stay counted as active."""
    state = request.app[STATE]
    state.finished = state.aborted = state.failed = 0
    state.requests.clear()
    state.calls.clear()
    state.attempts.clear()
    state.holds.clear()
    return web.json_response({})


def application() -> web.Application:
    app = web.Application(client_max_size=64 * 1024**2)
    app[STATE] = State()
    app[DOOR] = Door()
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/stub/state", show_state)
    app.router.add_get("/stub/calls", show_calls)
    app.router.add_get("/stub/wait", wait)
    app.router.add_post("/stub/release", release)
    app.router.add_post("/stub/reset", reset)
    app.router.add_post("/stub/cut", cut)
    app.router.add_post("/stub/away", away)
    return app


async def serve(port: int, *, until_stdin_ends: bool) -> None:
    app = application()
    runner = app[DOOR].runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        port = await app[DOOR].open(port)
        print(f"http://127.0.0.1:{port}/v1", flush=True)
        if until_stdin_ends:
            await asyncio.to_thread(sys.stdin.read)
        else:
            await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description="A deterministic OpenAI-compatible server.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--until-stdin-ends",
        action="store_true",
        help="stop when the standard input ends: with the process that started it",
    )
    options = parser.parse_args()
    try:
        uvloop.run(serve(options.port, until_stdin_ends=options.until_stdin_ends))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)


if __name__ == "__main__":
    main()
