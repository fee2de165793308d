"""A client over real sockets, as docs/protocol.md asks clients to be: it reconnects with its cursor."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import websockets
from websockets.typing import Origin

from tests.stack import Stack

END = {"run.done", "run.stopped", "run.failed"}


class LiveTab:
    """Sends one message and follows its reply, over as many connections as it takes.

    `text` is what the deltas said, `events` every event received, `connections` how often it
    connected. An event out of order fails the test.
    """

    def __init__(self, stack: Stack, session: str) -> None:
        self.text = ""
        self.events: list[dict[str, Any]] = []
        self.connections = 0
        self.run = ""
        self._address = f"{stack.base.replace('http', 'ws')}/ws/v1/"
        self._options: dict[str, Any] = {
            "origin": Origin(stack.base),
            "additional_headers": {"Cookie": f"sessionid={session}"},
            "open_timeout": 60,
            "max_size": None,
        }
        self._seq = 0
        self._changed = asyncio.Event()

    async def chat(self, text: str, **fields: Any) -> dict[str, Any]:
        """Send a message and return the event that ended its run."""
        frame = json.dumps({"type": "chat.send", "client_id": "a", "text": text, **fields})
        while True:
            try:
                async with websockets.connect(self._address, **self._options) as socket:
                    self.connections += 1
                    if self.run:
                        frame = json.dumps({"type": "resume", "run": self.run, "after": self._seq})
                    await socket.send(frame)
                    async for message in socket:
                        event: dict[str, Any] = json.loads(message)
                        self._take(event)
                        if event["type"] in END:
                            return event
            except (OSError, websockets.WebSocketException):
                await asyncio.sleep(0.1)

    async def until(self, type: str, **fields: Any) -> dict[str, Any]:
        """Wait until an event with these fields has been received."""
        while True:
            for event in self.events:
                if event["type"] == type and fields.items() <= event.items():
                    return event
            self._changed.clear()
            await self._changed.wait()

    def _take(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self._changed.set()
        if event["type"] == "run.queued":
            self.run = event["run"]
        elif event["type"] in END:
            # It tells the whole text, so that whoever was away misses nothing.
            assert event["text"].startswith(self.text)
        elif "seq" in event:
            assert event["seq"] == self._seq + 1, (self._seq, event)
            self._seq = event["seq"]
            self.text += event["text"] if event["type"] == "text.delta" else ""
