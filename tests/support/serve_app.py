"""A small ASGI application for the tests of `chatproject.serve`.

`GET /state` returns its counts. PING_INTERVAL and PING_TIMEOUT in the environment replace the
server's constants of that name, as the server imports them after this module.
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

state: dict[str, Any] = {"requests": 0, "sent": 0, "codes": []}
socket_ended = asyncio.Event()
woken = asyncio.Event()
background: set[asyncio.Task[None]] = set()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    options = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    page = PAGES.get(scope["path"], not_found)
    scope["options"] = options
    await page(scope, receive, send)


async def answer(send: Send, body: bytes, status: int = 200) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def health(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"ok")


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"not found", 404)


async def send_state(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, json.dumps(state).encode())


async def send_scope(scope: Scope, receive: Receive, send: Send) -> None:
    shown = {name: scope[name] for name in ("client", "scheme", "root_path", "path")}
    await answer(send, json.dumps(shown).encode())


async def count_body(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the number of bytes in the request's body."""
    state["requests"] += 1
    count, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        count += len(message["body"])
        more = message.get("more_body", False)
    await answer(send, b"%d" % count)


async def download(scope: Scope, receive: Receive, send: Send) -> None:
    """Send a response of `count` numbered parts."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(int(scope["options"]["count"])):
        await send_counted(
            send,
            {"type": "http.response.body", "body": part(number, scope).encode(), "more_body": True},
        )
    await send({"type": "http.response.body", "body": b""})


async def hold(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer when the end of a socket has been received; leave a task behind."""
    background.add(asyncio.create_task(run_for_ever()))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
    await socket_ended.wait()
    await send({"type": "http.response.body", "body": b"finished"})


async def fail(scope: Scope, receive: Receive, send: Send) -> None:
    """Fail before the first answer, or after the beginning of one."""
    if scope["type"] == "websocket":
        await receive()
    if "begin" in scope["options"]:
        if scope["type"] == "websocket":
            await send(
                {"type": "websocket.accept", "subprotocol": scope["options"].get("protocol")}
            )
            await send({"type": "websocket.send", "text": "begun"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    raise RuntimeError("a mistake in the application")


async def run_for_ever() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        print("the background task was cancelled", flush=True)  # noqa: T201


async def hang(scope: Scope, receive: Receive, send: Send) -> None:
    """Never end, also when the connection has."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
    await asyncio.to_thread(time.sleep, 600)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Send each message back; a text that is a number closes with it as the code."""
    await accept(receive, send)
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        if text and text.isdigit():
            await send({"type": "websocket.close", "code": int(text)})
        elif text:
            await send({"type": "websocket.send", "text": text})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})
    note_end(message)


async def flood(scope: Scope, receive: Receive, send: Send) -> None:
    """Send `count` numbered messages of `size` characters as fast as `send` accepts them."""
    await accept(receive, send)
    for number in range(int(scope["options"]["count"])):
        await send_counted(send, {"type": "websocket.send", "text": part(number, scope)})
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


async def frames(scope: Scope, receive: Receive, send: Send) -> None:
    """As `flood`, through the server's extension for encoded text."""
    frames: TextFrames = scope["extensions"][TEXT_FRAMES]
    await accept(receive, send)
    for number in range(int(scope["options"]["count"])):
        frames.write([part(number, scope).encode()])
        if frames.is_full:
            await frames.drain()
        state["sent"] += 1
    note_end(await receive())


async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
    """Receive nothing before a request for `/wake`; answer `last` with the number received."""
    await accept(receive, send)
    await woken.wait()
    received: list[int] = []
    while (message := await receive())["type"] == "websocket.receive":
        if message["text"] == "last":
            in_order = received == sorted(received)
            await send({"type": "websocket.send", "text": f"{len(received)} {in_order}"})
        else:
            received.append(int(message["text"].split()[0]))
    note_end(message)


async def wake(scope: Scope, receive: Receive, send: Send) -> None:
    woken.set()
    await answer(send, b"awake")


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 4403})


async def accept(receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})


def note_end(message: Any) -> None:
    state["codes"].append(message["code"])
    print("the application received the end:", message["code"], flush=True)  # noqa: T201
    socket_ended.set()


def part(number: int, scope: Scope) -> str:
    return f"{number} ".ljust(int(scope["options"]["size"]), "x")


async def send_counted(send: Send, message: dict[str, Any]) -> None:
    await send(message)
    state["sent"] += 1


PAGES: dict[str, Any] = {
    "/health": health,
    "/state": send_state,
    "/scope": send_scope,
    "/count": count_body,
    "/download": download,
    "/hold": hold,
    "/hang": hang,
    "/fail": fail,
    "/ws/fail": fail,
    "/wake": wake,
    "/ws/echo": echo,
    "/ws/flood": flood,
    "/ws/frames": frames,
    "/ws/sizes": sizes,
    "/ws/deaf": deaf,
    "/ws/refuse": refuse,
}
