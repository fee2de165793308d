"""Parley under load: its processes as operators run them, and a client that acts as a browser's tab.

Each start is a new installation: an empty Postgres and Valkey of its own with their default settings
(each COMMIT waits for the disk), migrated, with signed-in users.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec

from bench import loop_report, processes, websocket
from bench.database import INSTALLATION
from bench.systems import Client, System, WrongReply
from chatproject.local.run import documented_variables
from chatproject.local.servers import PostgresServer, ValkeyServer, free_port
from chatproject.local.spawn import spawn
from chatproject.local.supervisor import read_procfile
from tests.support.programs import is_healthy

PROJECT = Path(__file__).resolve().parent.parent

ENVIRONMENT = {
    **INSTALLATION,
    "DEFAULT_MODEL": "bench",
    "SIGNUP_CREDITS": "1000000",
    "LOG_LEVEL": "WARNING",
    # A bench has few users for the load of thousands; the target `fairness` sets the real limits.
    "USER_CONCURRENCY": "1000",
    "USER_QUEUE_LIMIT": "10000",
    "LIMIT_MESSAGES": "off",
    "LIMIT_API_REQUESTS": "off",
    "LIMIT_ESTIMATES": "off",
    "LIMIT_FRAMES": "off",
    "LIMIT_RESUMES": "off",
    "LIMIT_HANDSHAKES": "off",
    "LIMIT_SOCKETS": "off",
}

POSTGRES_SETTINGS = {"shared_buffers": "256MB", "max_connections": "200"}

START_SECONDS = 60.0
STOP_SECONDS = 15.0
LOG_CHARACTERS = 4000  # of the end, shown when a process does not start
END = {"run.done", "run.stopped", "run.failed"}


class Parley(System):
    """`webs` web processes, a worker and a clock.

    `variables` are set as an operator would set them (None: not at all), `postgres_settings` as the
    database's administrator would.
    """

    name = "parley"
    webs: ClassVar[int] = 1

    def __init__(
        self,
        *,
        provider_url: str,
        folder: Path,
        users: int,
        variables: Mapping[str, str | None] = {},
        postgres_settings: Mapping[str, str] = {},
    ) -> None:
        super().__init__(provider_url=provider_url, folder=folder, users=users)
        self._variables = variables
        self.ports = [free_port() for _ in range(self.webs)]
        self.sessions: list[str] = []
        folder.chmod(0o711)  # Postgres runs as another user when we are root
        self.postgres = PostgresServer(
            folder / "postgres",
            settings={**POSTGRES_SETTINGS, **postgres_settings},
            log_path=folder / "logs" / "postgres.log",
        )
        self._valkey = ValkeyServer(folder / "valkey")
        self._commands = read_procfile(PROJECT / "Procfile")
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self) -> None:
        self.postgres.start()
        self._valkey.start()
        self._run("manage.py", "migrate", "--verbosity", "0")
        self._run("manage.py", "create_catalogue")
        self.sessions = self._run("-m", "bench.users", str(self.users)).split()
        self._spawn("worker", 0)
        self._spawn("clock", 0)
        for number, port in enumerate(self.ports):
            self._spawn("web", number, PORT=str(port))
        for number, port in enumerate(self.ports):
            self._wait_for_web(number, port)

    def stop(self) -> None:
        processes.end([process for _, process in self._processes], STOP_SECONDS)
        self._processes.clear()
        self._valkey.stop()
        self.postgres.stop()

    def roles(self) -> Mapping[str, Sequence[int]]:
        found: dict[str, list[int]] = {}
        for role, process in self._processes:
            found.setdefault(role, []).append(process.pid)
        return {**found, "redis": [self._valkey.pid], "postgres": [self.postgres.pid]}

    async def loop_blocks(self, since: float, until: float) -> Mapping[str, Sequence[float]]:
        # Each process reports at this interval.
        await asyncio.sleep(max(0.0, until + loop_report.EVERY - time.time()))
        return await asyncio.to_thread(loop_report.blocks, self._valkey.url, since, until)

    async def connect(self, user: int) -> Tab:
        tab = Tab()
        await tab.open(self.ports[user % len(self.ports)], self.sessions[user])
        return tab

    def _environment(self, role: str, **more: str) -> dict[str, str]:
        ours = set(documented_variables())
        wanted: dict[str, str | None] = {
            **{name: value for name, value in os.environ.items() if name not in ours},
            **ENVIRONMENT,
            **self._variables,
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self._valkey.url,
            "OPENAI_BASE_URL": self.provider_url,
            "PGAPPNAME": role,
            **more,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=PROJECT,
            env=self._environment("setup"),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-LOG_CHARACTERS:]}")
        return done.stdout

    def _spawn(self, role: str, number: int, **more: str) -> None:
        with self._log_path(role, number).open("ab") as log:
            process = spawn(
                [sys.executable, *self._commands[role][1:]],  # without the word python
                cwd=PROJECT,
                env=self._environment(role, **more),
                output=log,
            )
        self._processes.append((role, process))

    def _log_path(self, role: str, number: int) -> Path:
        (self.folder / "logs").mkdir(exist_ok=True)
        return self.folder / "logs" / f"{role}-{number}.log"

    def _wait_for_web(self, number: int, port: int) -> None:
        give_up_at = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up_at:
            if is_healthy(port):
                return
            time.sleep(0.05)
        log = self._log_path("web", number).read_text(errors="replace")[-LOG_CHARACTERS:]
        raise RuntimeError(f"a web process does not answer. Its log ends with:\n{log}")


class ParleyTwoWebs(Parley):
    """The same with a second web process, to measure how the web side scales."""

    name = "parley-two-webs"
    webs = 2


class Frame(msgspec.Struct):
    """The fields of all frames of docs/protocol.md that a follower needs."""

    type: str
    run: str = ""
    seq: int = 0
    attempt: int = 0
    text: str = ""
    client_id: str = ""
    conversation: str = ""
    position: int = 0
    code: str = ""
    message: str = ""
    ref: str = ""


DECODER = msgspec.json.Decoder(Frame)


class Tab(Client):
    """A browser's tab: one socket, and one run at a time that it follows as docs/protocol.md says.

    Violations of the protocol are collected and raised as WrongReply after the reply has ended, so
    that all of its pieces are counted. `run`, `conversation` and `end` belong to the run that was
    sent or resumed last.
    """

    made = 0

    def __init__(self) -> None:
        self.conversation = ""
        self.ended_at = 0  # time.time_ns() of the frame that ended the run
        self._begin()
        self._woken: asyncio.Future[None] | None = None
        self._code: int | None = None
        self._ready = asyncio.Event()

    async def open(self, port: int, session: str) -> None:
        """Connect. Raises ConnectionError, also when the server refuses."""
        headers = {"Cookie": f"sessionid={session}", "Origin": f"http://127.0.0.1:{port}"}
        self._socket = await websocket.connect(
            port, "/ws/v1/", headers, self._on_text, self._on_close
        )
        await self._ready.wait()
        if self._code is not None:
            raise ConnectionError(f"the socket was closed with {self._code} before `ready`")

    async def send(self, prompt: str) -> AsyncIterator[str]:
        """As Client.send; the first message begins a conversation, which the others continue."""
        Tab.made += 1
        frame = {"type": "chat.send", "client_id": f"bench-{Tab.made}", "text": prompt}
        if self.conversation:
            frame["conversation"] = self.conversation
        self._begin(client_id=frame["client_id"])
        self._socket.send(msgspec.json.encode(frame))
        async for piece in self._follow():
            yield piece

    async def resume(self, run: str, after: int = 0) -> AsyncIterator[str]:
        """Follow a run from the event after `after` to its end."""
        self._begin(run=run, after=after)
        self._socket.send(msgspec.json.encode({"type": "resume", "run": run, "after": after}))
        async for piece in self._follow():
            yield piece

    def stop(self) -> None:
        """Ask for the run to be stopped; its followers receive the end."""
        self._socket.send(msgspec.json.encode({"type": "run.stop", "run": self.run}))

    async def close(self) -> None:
        self._socket.close()

    def _begin(self, *, run: str = "", client_id: str = "", after: int = 0) -> None:
        self.run = run
        self.end: Frame | None = None
        self._is_whole = after == 0
        self._faults: list[str] = []
        self._client_id = client_id
        self._last = after
        self._texts: list[str] = []
        self._waiting: deque[str] = deque()

    async def _follow(self) -> AsyncIterator[str]:
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self.end is not None:
                break
            if self._code is not None:
                raise ConnectionError(f"the socket was closed with {self._code}")
            self._woken = asyncio.get_running_loop().create_future()
            await self._woken
            self._woken = None
        text = "".join(self._texts)
        if self.end.type in ("error", "run.failed"):
            self._faults.append(f"{self.end.type} {self.end.code}: {self.end.message}")
        elif not (self.end.text == text if self._is_whole else self.end.text.endswith(text)):
            self._faults.append(f"the text of {self.end.type} differs from that of the deltas")
        if self._faults:
            raise WrongReply("; ".join(self._faults[:3]))

    # --- Input ----------------------------------------------------------------------------------

    def _on_text(self, data: bytes) -> None:
        frame = DECODER.decode(data)
        if frame.type == "text.delta" and frame.run == self.run:
            if frame.seq != self._last + 1:
                self._faults.append(f"event {frame.seq} came after {self._last}")
            self._last = frame.seq
            self._texts.append(frame.text)
            self._waiting.append(frame.text)
        else:
            self._take(frame)
        self._wake()

    def _take(self, frame: Frame) -> None:
        if frame.type == "ready":
            self._ready.set()
        elif frame.type == "run.queued" and self._client_id and frame.client_id == self._client_id:
            self.run = frame.run
            self.conversation = frame.conversation
        elif frame.type == "error" and frame.ref in ("", self._client_id, self.run):
            self._finish(frame)
        elif frame.run == self.run and frame.type in END:
            if frame.seq != self._last + 1:
                self._faults.append(f"the end {frame.seq} came after {self._last}")
            self._finish(frame)
        elif frame.run == self.run and frame.seq:
            is_known = frame.type in ("run.started", "reply.blocks")
            if not is_known or frame.seq != self._last + 1:
                self._faults.append(f"{frame.type} {frame.seq} came after {self._last}")
            self._last = frame.seq

    def _finish(self, frame: Frame) -> None:
        self.end = frame
        self.ended_at = time.time_ns()

    def _on_close(self, code: int) -> None:
        self._code = code
        self._ready.set()
        self._wake()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
