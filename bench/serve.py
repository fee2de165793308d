"""CPU time of the web server per message sent to a WebSocket, and its memory per connection.

    python -m bench.serve [--sockets 200] [--rate 20] [--seconds 10] [--size 150]

Runs `chatproject.serve` with both servers, and beside them Daphne and Uvicorn as their own commands
start them, on an application that sends each socket `rate` messages of `size` characters a second.
Every client counts its messages and checks their order; a lost one makes the exit code 1. The last
line shows what `permessage-deflate` costs, which our servers leave off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from aiohttp import ClientSession, ClientWebSocketResponse, TCPConnector

from chatproject.lib.web import Receive, Scope, Send

MODULE = "bench.serve:application"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Send numbered messages at a rate, which the query string tells."""
    if scope["type"] != "websocket":
        raise NotImplementedError(scope["type"])  # lifespan, which nobody needs here
    options = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    await receive()
    await send({"type": "websocket.accept"})
    if (await receive())["type"] == "websocket.disconnect":
        return
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(int(options["count"])):
        await asyncio.sleep(began + number / float(options["rate"]) - loop.time())
        await send({"type": "websocket.send", "text": text(number, int(options["size"]))})
    await receive()


def text(number: int, size: int) -> str:
    """A message as the chat sends them, of about `size` characters."""
    words = "the quick brown fox jumps over a lazy dog and does it again and again " * (
        size // 60 + 1
    )
    head = json.dumps({"type": "text.delta", "run": "019365c2-7a4e-7c00", "seq": number})
    return head[:-1] + ', "text": "' + words[number % 40 :][: max(0, size - len(head) - 12)] + '"}'


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=200)
    parser.add_argument("--rate", type=float, default=20.0, help="messages a second to each")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--size", type=int, default=150)
    options = parser.parse_args()
    ours = ["-m", "chatproject.serve", "--quiet", "--application", MODULE, "--port"]
    uvicorn = ["-m", "uvicorn", "--no-access-log", "--log-level", "warning", MODULE, "--port"]
    commands = [
        ("ours, daphne", ours, {"WEB_SERVER": "daphne"}, 0),
        ("ours, uvicorn", ours, {"WEB_SERVER": "uvicorn"}, 0),
        ("plain daphne", ["-m", "daphne", "-v", "0", MODULE, "--port"], {}, 0),
        ("plain uvicorn", uvicorn, {}, 0),
        ("plain uvicorn, permessage-deflate", uvicorn, {}, 15),
    ]
    lost = 0
    for name, command, variables, window_bits in commands:
        lost += await measure(name, command, variables, window_bits, options)
    sys.exit(1 if lost else 0)


async def measure(
    name: str,
    command: list[str],
    variables: dict[str, str],
    window_bits: int,
    options: argparse.Namespace,
) -> int:
    """Print one line; return the number of messages that were lost."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, str(port), env={**os.environ, **variables}
    )
    try:
        await listening(port)
        async with ClientSession(connector=TCPConnector(limit=0)) as session:
            count = int(options.rate * options.seconds)
            url = f"http://127.0.0.1:{port}/?count={count}&rate={options.rate}&size={options.size}"
            await (await session.ws_connect(url)).close()
            before = memory(process.pid)
            sockets = [
                await session.ws_connect(url, compress=window_bits) for _ in range(options.sockets)
            ]
            each = (memory(process.pid) - before) / options.sockets
            used = cpu_seconds(process.pid)
            received = await asyncio.gather(*(receive_all(one, count) for one in sockets))
            used = cpu_seconds(process.pid) - used
            await asyncio.gather(*(one.close() for one in sockets))
    finally:
        process.terminate()
        await process.wait()
    expected = count * options.sockets
    print(
        f"{name}: {used / expected * 1e6:.1f} µs per message, {each / 1024:.0f} KiB per socket, "
        f"{sum(received)} of {expected} messages"
    )
    lost: int = expected - sum(received)
    return lost


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


async def listening(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                await writer.wait_closed()
                return


def memory(pid: int) -> int:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def receive_all(connection: ClientWebSocketResponse, count: int) -> int:
    """Say that the messages may begin; return how many came in order."""
    await connection.send_str("begin")
    number = 0
    async with asyncio.timeout(120):
        while number < count:
            message: dict[str, Any] = json.loads(await connection.receive_str())
            if message["seq"] != number:
                break
            number += 1
    return number


if __name__ == "__main__":
    asyncio.run(main())
