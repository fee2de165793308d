"""An ASGI application for tests of `chatproject.serve`: a path's last word names its function.

`GET /state` returns its counts, and the client as the scope describes it. The environment's
PING_INTERVAL and PING_TIMEOUT replace the server's constants of these names, which the server imports
after this module.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any
from urllib.parse import parse_qs

from chatproject.lib.server import limits
from chatproject.lib.server.asgi_types import TEXT_FRAMES, Receive, Scope, Send, TextFrames

limits.PING_INTERVAL = float(os.environ.get("PING_INTERVAL", limits.PING_INTERVAL))  # type: ignore[assignment]
limits.PING_TIMEOUT = float(os.environ.get("PING_TIMEOUT", limits.PING_TIMEOUT))  # type: ignore[assignment]

counts: dict[str, Any] = {"requests": 0, "sent": 0, "codes": []}
socket_ended = asyncio.Event()
woken = asyncio.Event()
background: set[asyncio.Task[None]] = set()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    query = parse_qs(scope["query_string"].decode())
    scope["options"] = {name: values[0] for name, values in query.items()}
    await PAGES.get(scope["path"].rpartition("/")[2], missing)(scope, receive, send)


async def answer(send: Send, body: bytes, status: int = 200) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def begin(send: Send, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def accept(receive: Receive, send: Send, **fields: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", **fields})


def note_end(message: Any) -> None:
    counts["codes"].append(message["code"])
    print("the application received the end:", message["code"], flush=True)  # noqa: T201
    socket_ended.set()


def part(number: int, scope: Scope) -> str:
    return f"{number} ".ljust(int(scope["options"]["size"]), "x")


# --- Pages ----------------------------------------------------------------------------------------


async def missing(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"not found", int(scope["options"].get("status", "404")))


async def health(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"ok")


async def state(scope: Scope, receive: Receive, send: Send) -> None:
    client = {name: scope[name] for name in ("client", "scheme", "root_path")}
    await answer(send, json.dumps(counts | client).encode())


async def count(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the number of bytes in the request's body."""
    counts["requests"] += 1
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message.get("more_body", False)
    await answer(send, b"%d" % size)


async def download(scope: Scope, receive: Receive, send: Send) -> None:
    """Send a response of `count` numbered parts of `size` bytes."""
    await begin(send, b"")
    for number in range(int(scope["options"]["count"])):
        body = part(number, scope).encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        counts["sent"] += 1
    await send({"type": "http.response.body", "body": b""})


async def hold(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer once a socket has ended; leave a task in the background."""
    background.add(asyncio.create_task(run_for_ever()))
    await begin(send, b"begun ")
    await socket_ended.wait()
    await send({"type": "http.response.body", "body": b"finished"})


async def run_for_ever() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        print("the background task was cancelled", flush=True)  # noqa: T201


async def hang(scope: Scope, receive: Receive, send: Send) -> None:
    """Never end, not even after the connection."""
    await begin(send, b"begun ")
    await asyncio.to_thread(time.sleep, 600)


async def fail(scope: Scope, receive: Receive, send: Send) -> None:
    """Fail before the response begins, or with `begin` in the middle of it."""
    begins = "begin" in scope["options"]
    if scope["type"] == "websocket" and begins:
        await accept(receive, send, subprotocol=scope["options"].get("protocol"))
        await send({"type": "websocket.send", "text": "begun"})
    elif begins:
        await begin(send, b"begun")
    raise RuntimeError("a mistake in the application")


async def wake(scope: Scope, receive: Receive, send: Send) -> None:
    woken.set()
    await answer(send, b"awake")


# --- Sockets --------------------------------------------------------------------------------------


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Send each message back; a text of digits closes the socket with that code."""
    await accept(receive, send)
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        if text and text.isdigit():
            await send({"type": "websocket.close", "code": int(text)})
        else:
            await send({**message, "type": "websocket.send"})
    note_end(message)


async def flood(scope: Scope, receive: Receive, send: Send) -> None:
    """Send `count` numbered messages of `size` characters as fast as `send` accepts them.

    With `encoded` in the query, through the server's extension for encoded text.
    """
    frames: TextFrames = scope["extensions"][TEXT_FRAMES]
    await accept(receive, send)
    for number in range(int(scope["options"]["count"])):
        text = part(number, scope)
        if "encoded" in scope["options"]:
            frames.write([text.encode()])
            if frames.is_full:
                await frames.drain()
        else:
            await send({"type": "websocket.send", "text": text})
        counts["sent"] += 1
    note_end(await receive())


# In bytes, around the sizes at which the head of a frame grows; even, as an "ü" takes two.
SIZES = (0, 2, 124, 126, 65_534, 65_536, 100_000)


async def sizes(scope: Scope, receive: Receive, send: Send) -> None:
    """Send encoded texts of SIZES, together and one by one, and close; then write once more."""
    frames: TextFrames = scope["extensions"][TEXT_FRAMES]
    texts = [("ü" * (size // 2)).encode() for size in SIZES]
    frames.write([b"before the socket is accepted"])
    await accept(receive, send)
    frames.write(texts)
    for text in texts:
        frames.write([text])
        await frames.drain()
    await send({"type": "websocket.send", "text": "the last"})
    await send({"type": "websocket.close", "code": 4000})
    frames.write([b"after the end"])
    note_end(await receive())
    frames.write([b"after the end"])


async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
    """Receive nothing until `GET /wake`; answer `last` with the number received and their order."""
    await accept(receive, send)
    await woken.wait()
    received: list[int] = []
    while (message := await receive())["text"] != "last":
        received.append(int(message["text"].split()[0]))
    in_order = received == sorted(received)
    await send({"type": "websocket.send", "text": f"{len(received)} {in_order}"})
    note_end(await receive())


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 4403})


SOCKETS = (echo, flood, sizes, deaf, refuse)
PAGES: dict[str, Any] = {
    page.__name__: page
    for page in (*SOCKETS, health, state, count, download, hold, hang, fail, wake)
}
