"""The peers that Parley is compared with, each as one web process, and their clients."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from aiohttp import (
    ClientError,
    ClientSession,
    ClientTimeout,
    ClientWebSocketResponse,
    TCPConnector,
    WSMsgType,
)
from django.conf import settings

from bench import processes
from bench.peers import frames
from bench.systems import Client, NotInstalled, System, WrongReply

# chat.llm marks its sentences for translation, and Django reads its settings to do so: those of no site.
if not settings.configured:
    settings.configure(USE_I18N=False)

from chat.llm.decoder import StreamDecoder, TextDelta
from chat.llm.errors import ProviderError
from chatproject.local.servers import free_port
from chatproject.local.spawn import spawn
from tests.support.programs import is_open

PROJECT = Path(__file__).resolve().parent.parent.parent
CHAINLIT_PYTHON = PROJECT / ".venv-peers" / "bin" / "python"
CHAINLIT_STAMP = ".venv-peers/.bench"

START_SECONDS = 60.0
STOP_SECONDS = 10.0
LOG_CHARACTERS = 2000  # of the end, shown when a program does not start

# Parts of variables that would send loopback traffic through a proxy, or reconfigure Chainlit.
LEFT_OUT = ("_PROXY", "CHAINLIT_", "UVICORN_", "OPENAI_", "LITERAL_")


class Peer(System):
    """A system of one process, which listens on a free port of loopback."""

    def __init__(self, *, provider_url: str, folder: Path, users: int) -> None:
        super().__init__(provider_url=provider_url, folder=folder, users=users)
        self.base = ""  # like http://127.0.0.1:12345, once it has started
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self, port: int) -> Sequence[str | Path]:
        """The program and its arguments. Raises NotInstalled."""

    def environment(self) -> Mapping[str, str]:
        """The program's variables, beside this process's own."""
        return {}

    def start(self) -> None:
        port = free_port()
        command = self.command(port)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not any(part in name.upper() for part in LEFT_OUT)
        }
        with self._log.open("ab") as log:
            environment = {**kept, "PYTHONPATH": "", **self.environment()}
            self._process = spawn(command, cwd=self.folder, env=environment, output=log)
        self._wait_for(port)
        self.base = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        if self._process is not None:
            processes.end([self._process], STOP_SECONDS)
            self._process = None

    def roles(self) -> Mapping[str, Sequence[int]]:
        return {"web": [self._process.pid]} if self._process is not None else {}

    @property
    def _log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def _wait_for(self, port: int) -> None:
        assert self._process is not None
        give_up_at = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < give_up_at:
            if is_open(port):
                return
            time.sleep(0.05)
        self.stop()
        log = self._log.read_text(errors="replace")[-LOG_CHARACTERS:]
        raise RuntimeError(f"{self.name} does not listen. Its log ends with:\n{log}")


# --- The floor --------------------------------------------------------------------------------


class Proxy(Peer):
    """`bench.peers.proxy`: no accounts, no history, no stop, no second reader."""

    name = "proxy"

    def command(self, port: int) -> Sequence[str | Path]:
        arguments = ["--provider", self.provider_url, "--port", str(port)]
        return [sys.executable, "-m", "bench.peers.proxy", *arguments]

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(PROJECT)}

    async def connect(self, user: int) -> ProxyClient:
        client = ProxyClient(self.base)
        await client.open()
        return client


class ProxyClient(Client):
    """One kept-alive HTTP connection."""

    def __init__(self, base: str) -> None:
        self._session = ClientSession(
            base, connector=TCPConnector(limit=1), timeout=ClientTimeout(total=None)
        )

    async def open(self) -> None:
        """Connect ahead of the first message. Raises ConnectionError."""
        try:
            async with self._session.get("/") as answer:
                await answer.read()
        except ClientError as error:
            await self.close()
            raise ConnectionError(str(error)) from error

    async def send(self, prompt: str) -> AsyncGenerator[str]:
        decoder = StreamDecoder()
        try:
            async with self._session.post("/", data=prompt.encode()) as answer:
                if answer.status != 200:
                    raise WrongReply(f"HTTP {answer.status}: {await answer.text()}")
                while chunk := await answer.content.readany():
                    for event in decoder.feed(chunk):
                        if isinstance(event, TextDelta):
                            yield event.text
        except ClientError as error:
            raise ConnectionError(f"the proxy's answer broke off: {error}") from error
        try:
            decoder.close()
        except ProviderError as error:
            raise WrongReply(error.detail) from error

    async def close(self) -> None:
        await self._session.close()


# --- The peer ---------------------------------------------------------------------------------


class Chainlit(Peer):
    """`chainlit run` without a browser, a watcher or debugging, in a folder of its own."""

    name = "chainlit"

    def command(self, port: int) -> Sequence[str | Path]:
        if not (PROJECT / CHAINLIT_STAMP).exists():
            raise NotInstalled(f"Chainlit is not installed. Install it: make {CHAINLIT_STAMP}")
        app = Path(__file__).with_name("chainlit_app.py")
        address = ["--host", "127.0.0.1", "--port", str(port)]
        # The module, not the script: a script's first line cannot contain a path with a space.
        return [CHAINLIT_PYTHON, "-m", "chainlit", "run", app, "--headless", *address]

    def environment(self) -> Mapping[str, str]:
        return {
            "CHAINLIT_APP_ROOT": str(self.folder),
            "OPENAI_BASE_URL": self.provider_url,
            "OPENAI_API_KEY": "none",
        }

    async def connect(self, user: int) -> ChainlitClient:
        client = ChainlitClient()
        await client.open(self.base)
        return client


class ChainlitClient(Client):
    """A WebSocket as Chainlit's page holds it, which offers compression as browsers do."""

    def __init__(self) -> None:
        self._session = ClientSession(timeout=ClientTimeout(total=None))
        self._socket: ClientWebSocketResponse | None = None
        self._reader: asyncio.Task[None] | None = None
        self._events: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()  # None: it is closed

    async def open(self, base: str) -> None:
        """Connect and be greeted. Raises ConnectionError, also when the server refuses."""
        try:
            self._socket = await self._session.ws_connect(
                f"{base}/ws/socket.io/?EIO=4&transport=websocket", compress=15, max_msg_size=0
            )
            user = {"clientType": "webapp", "sessionId": str(uuid4()), "threadId": ""}
            user |= {"userEnv": "{}", "chatProfile": ""}
            await self._expect(frames.OPEN)
            await self._socket.send_str(frames.frame(frames.CONNECT, user))
            await self._expect(frames.CONNECT)
            self._reader = asyncio.create_task(self._read(self._socket))
            await self._socket.send_str(frames.event("connection_successful"))
            await self._socket.send_str(frames.event("fetch_favorites"))
            # Of the greeting, and then of the app's on_chat_start.
            await self._pass_over("clear_call_fn")
            await self._pass_over("task_end")
        except BaseException as error:
            await self.close()
            if isinstance(error, ClientError):
                raise ConnectionError(str(error)) from error
            raise

    async def send(self, prompt: str) -> AsyncGenerator[str]:
        if self._socket is None or self._socket.closed:
            raise ConnectionError("Chainlit closed the connection")
        message = {
            "threadId": "", "id": str(uuid4()), "name": "User", "type": "user_message",
            "output": prompt, "metadata": {"location": "http://127.0.0.1/"},
            "createdAt": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        }  # fmt: skip
        await self._socket.send_str(
            frames.event("client_message", {"message": message, "fileReferences": []})
        )
        pieces: list[str] = []
        reply = whole = failure = None
        while True:
            name, data = await self._next()
            if name == "stream_token":
                pieces.append(data["token"])
                yield data["token"]
            elif name == "stream_start":
                reply = data["id"]
                pieces.append(data["output"])
                yield data["output"]
            elif name in {"new_message", "update_message"}:
                if data["isError"]:
                    failure = data["output"]
                elif data["id"] == reply:
                    whole = data["output"]
            elif name == "task_end":
                break
        if failure is not None:
            raise WrongReply(f"Chainlit failed: {failure}")
        if whole != "".join(pieces):
            raise WrongReply("Chainlit's final message is missing or differs from its pieces")

    async def close(self) -> None:
        if self._socket is not None:
            await self._socket.close()
        if self._reader is not None:
            self._reader.cancel()
            with suppress(asyncio.CancelledError):
                await self._reader
        await self._session.close()

    async def _expect(self, kind: str) -> None:
        assert self._socket is not None
        answer = await self._socket.receive()
        if answer.type is not WSMsgType.TEXT or not answer.data.startswith(kind):
            raise ConnectionError(f"Chainlit answered {answer.data!r}, {kind!r} was expected")

    async def _read(self, connection: ClientWebSocketResponse) -> None:
        """Queue the events, and answer pings, also while no reply is expected."""
        try:
            async for received in connection:
                if received.type is not WSMsgType.TEXT:
                    break
                frame = frames.parse(received.data)
                if frame.kind == frames.EVENT:
                    name, *arguments = frame.data
                    self._events.put_nowait((name, arguments[0] if arguments else None))
                elif frame.kind == frames.PING:
                    await connection.send_str(frames.PONG)
                elif frame.kind == frames.DISCONNECT:
                    break
        except (ConnectionError, ClientError, msgspec.DecodeError):
            await connection.close()  # the None below ends a waiting reader
        finally:
            self._events.put_nowait(None)

    async def _pass_over(self, last: str) -> None:
        while (await self._next())[0] != last:
            pass

    async def _next(self) -> tuple[str, Any]:
        """The next event's name and first argument. Raises ConnectionError when none will come."""
        if (received := await self._events.get()) is None:
            self._events.put_nowait(None)
            raise ConnectionError("Chainlit closed the connection")
        return received
