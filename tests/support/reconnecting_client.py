"""A client over real sockets that reconnects with its cursor, as docs/protocol.md requires."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from typing import Any

import websockets
from websockets.typing import Origin

from tests.support.stack import Stack

END = {"run.done", "run.stopped", "run.failed"}
FIRST_SEQS = 10_000_000  # distance between the first numbers of two attempts

RESTARTING = 1012
TEMPORARY = {"unavailable", "busy", "rate_limited"}  # errors after which a client tries again

# Seconds.
FIRST_PAUSE = 0.1  # before the second try to connect; then twice as long each time
LONGEST_PAUSE = 2.0
RETRY = 1.0  # after a temporary error without retry_after
PING_AFTER = 25.0


class GaveUp(Exception):
    """The server refused something permanently."""


class LiveTab:
    """Sends one message and follows its reply, over as many connections as it takes.

    `text` and `reasoning` are the reply so far, built from the events; `events` are all events
    received, `connections` is the number of connections, `close_codes` are the codes of lost
    connections (except by `drop`), `refusals` the times at which the message was refused. An event
    that contradicts the protocol fails the test, through `wrong`. With several web processes each
    connection goes to the next one.
    """

    def __init__(
        self, stack: Stack, session: str, *, webs: Sequence[str] = ("web",), chance: Any = random
    ) -> None:
        self.text = ""
        self.reasoning = ""
        self.events: list[dict[str, Any]] = []
        self.connections = 0
        self.close_codes: list[int | None] = []
        self.refusals: list[float] = []
        self.delivered: set[int] = set()
        """The attempts that sent text or reasoning."""
        self.restarts: list[tuple[str, str]] = []
        """The text before and after each `run.restarted`."""
        self.run = ""
        self.attempt = 0
        self._bases = [stack.address(web) for web in webs]
        self._session = session
        self._chance = chance
        self._seq = 0
        self._frame: dict[str, Any] | None = None
        self._is_followed = False
        self._may_repeat = False
        self._wants_stop = False
        self._ends_with = ""
        self._is_here = asyncio.Event()
        self._is_here.set()
        self._failures = 0
        self._socket: websockets.ClientConnection | None = None
        self._changed = asyncio.Event()

    @property
    def _address(self) -> str:
        return f"{self._bases[0].replace('http', 'ws')}/ws/v1/"

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "origin": Origin(self._bases[0]),
            "additional_headers": {"Cookie": f"sessionid={self._session}"},
            "open_timeout": 60,
            "ping_interval": None,  # a browser sends none
            "compression": None,
            "max_size": None,
        }

    async def chat(
        self, text: str | None = None, *, client_id: str = "a", **fields: Any
    ) -> dict[str, Any]:
        """Send a message, or another frame of the `type` that begins a run; return the event that ended it.

        Of several runs (`chat.compare`) the first one is followed.
        """
        words = {} if text is None else {"text": text}
        self._frame = {"type": "chat.send", "client_id": client_id, **words, **fields}
        return await self._until_the_end()

    async def queue_next(self, text: str, *, client_id: str, **fields: Any) -> dict[str, Any]:
        """Queue the next message and return `next.updated`; of one that is sent at once the end of its run."""
        self._frame = {"type": "next.queue", "client_id": client_id, "text": text, **fields}
        self._ends_with = "next.updated"
        end = await self._until_the_end()
        self._ends_with = ""
        return end

    async def watch(self, run: str) -> dict[str, Any]:
        """Follow a run of another client and return the event that ended it."""
        self.run = run
        return await self._until_the_end()

    async def stop(self) -> None:
        """Request that the run be stopped, now and after each reconnection."""
        self._wants_stop = True
        await self._send_stop()

    def drop(self) -> None:
        """Lose the connection, as when the network fails."""
        if self._socket is not None:
            self._socket.transport.abort()

    def leave(self) -> None:
        """Lose the connection until `come_back`, as when the tab is closed."""
        self._is_here.clear()
        self.drop()

    def come_back(self) -> None:
        self._is_here.set()

    async def until(self, type: str, **fields: Any) -> dict[str, Any]:
        """Wait until an event with these fields has been received, and return it."""
        while True:
            for event in self.events:
                if event["type"] == type and fields.items() <= event.items():
                    return event
            self._changed.clear()
            await self._changed.wait()

    def wrong(self, kind: str, detail: str) -> None:
        """Report a contradiction of the protocol."""
        raise AssertionError(f"{kind}: {detail}")

    async def _until_the_end(self) -> dict[str, Any]:
        while True:
            code = None
            await self._is_here.wait()
            try:
                async with websockets.connect(self._address, **self._options) as socket:
                    self.connections += 1
                    self._socket = socket
                    self._is_followed = self._may_repeat = False
                    end = await self._converse(socket)
                    if end is not None:
                        return end
                    code = socket.close_code
            except websockets.InvalidStatus as error:
                if error.response.status_code < 500:
                    self.wrong("handshake", f"refused with {error.response.status_code}")
                    raise GaveUp from error
            except (OSError, websockets.WebSocketException):
                code = None  # try again
            finally:
                self._socket = None
            await asyncio.sleep(self._pause(code))
            self._bases.append(self._bases.pop(0))

    def _pause(self, code: int | None) -> float:
        """Return the seconds until the next try: random up to 1 after a restart, else growing."""
        self._failures += 1
        if code == RESTARTING and self._failures == 1:
            return float(self._chance.random())
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._failures)
        return float(self._chance.uniform(longest / 2, longest))

    async def _converse(self, socket: websockets.ClientConnection) -> dict[str, Any] | None:
        """Send and receive; return the event that ended the run, None if the connection was lost."""
        while True:
            try:
                async with asyncio.timeout(PING_AFTER):
                    message = await socket.recv()
            except TimeoutError:
                await socket.send('{"type": "ping"}')
                continue
            except websockets.ConnectionClosed:
                self.close_codes.append(socket.close_code)
                return None
            event: dict[str, Any] = json.loads(message)
            self._note(event)
            if event["type"] == "ready":
                await self._send_request(socket)
            elif event["type"] == "error":
                await self._on_error(event, socket)
            elif event.get("run") and event["run"] == self.run:
                self.take(event)
            if event["type"] in END and event["run"] == self.run:
                return event
            if event["type"] == self._ends_with and self._is_answer(event):
                return event

    def _note(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self._changed.set()
        if event["type"] == "run.queued" and self._is_answer(event):
            if self.run not in {"", event["run"]}:
                self.wrong("second run", f"{event['run']} beside {self.run}")
            self.run = event["run"]
            self._is_followed = True
            self._failures = 0

    def _is_answer(self, event: dict[str, Any]) -> bool:
        return self._frame is not None and event.get("client_id") == self._frame["client_id"]

    async def _send_request(self, socket: websockets.ClientConnection) -> None:
        """Send the message, or `resume` once its run is known."""
        if self.run:
            self._may_repeat = self._is_followed
            self._is_followed = True
            frame = {"type": "resume", "run": self.run, "after": self._seq}
        else:
            assert self._frame is not None
            frame = self._frame
        await socket.send(json.dumps(frame))
        if self._wants_stop:
            await self._send_stop()

    async def _send_stop(self) -> None:
        if self._socket is not None and self.run:
            try:
                await self._socket.send(json.dumps({"type": "run.stop", "run": self.run}))
            except websockets.ConnectionClosed:
                return  # it is sent again on the next connection

    async def _on_error(self, event: dict[str, Any], socket: websockets.ClientConnection) -> None:
        if event["code"] not in TEMPORARY:
            self.wrong("error", f"{event['code']}: {event['message']}")
            raise GaveUp
        if event.get("ref") is None:
            return  # the connection is about to be closed
        if self._frame is not None and event["ref"] == self._frame["client_id"]:
            self.refusals.append(time.time())
            if self.run:
                self.wrong("refused", f"{event['code']} after the message was accepted")
        await asyncio.sleep(event.get("retry_after") or RETRY)
        await self._send_request(socket)

    def take(self, event: dict[str, Any]) -> None:
        """Apply an event of the run by the rules of the protocol."""
        if event["type"] in END:
            self._take_end(event)
        elif "seq" in event:
            self._take_numbered(event)

    def _take_numbered(self, event: dict[str, Any]) -> None:
        seq, attempt = event["seq"], event["attempt"]
        if attempt < self.attempt or seq <= self._seq:
            if attempt == self.attempt and not self._may_repeat:
                self.wrong("doubled", f"seq {seq} after {self._seq}")
            return
        begins = seq == (attempt - 1) * FIRST_SEQS + 1
        if seq != self._seq + 1 and not (attempt > self.attempt and begins):
            self.wrong("gap", f"seq {seq} of attempt {attempt} after {self._seq}")
        goes_on = self._frame is not None and self._frame["type"] == "run.continue"
        if begins and (event["type"] == "run.restarted") != (attempt > 1 or goes_on):
            self.wrong("beginning", f"attempt {attempt} begins with {event['type']}")
        self._seq, self.attempt = seq, attempt
        if event["type"] == "run.restarted":
            self.restarts.append((self.text, event.get("text", "")))
            self.text, self.reasoning = event.get("text", ""), event.get("reasoning", "")
        elif event["type"] == "text.delta":
            self.text += event["text"]
            self.delivered.add(attempt)
        elif event["type"] == "reasoning.delta":
            self.reasoning += event["text"]
            self.delivered.add(attempt)

    def _take_end(self, event: dict[str, Any]) -> None:
        """Apply the last event, which has the whole text for clients that missed a part."""
        whole, last = event["text"], (event["attempt"], event["seq"])
        if last <= (self.attempt, self._seq):
            self.wrong("end", f"attempt and seq {last} after {(self.attempt, self._seq)}")
        elif last == (self.attempt, self._seq + 1) and whole != self.text:
            self.wrong("text", f"the deltas make {self.text!r}, the end has {whole!r}")
        elif event["attempt"] == self.attempt and not whole.startswith(self.text):
            self.wrong("shrunk", f"the deltas make {self.text!r}, the end has {whole!r}")
        self.text = whole
