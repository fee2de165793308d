"""The events of one attempt of a run, encoded once, on their way to its log and its followers.

generation/generate.py adds the model's output, ticker.py decides when events are written, and
batch.py writes them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec

from chat import protocol
from chat.rendering.document import Change
from chat.streaming import groups
from chat.streaming import log as run_log
from chat.streaming.leases import accepted_key, lease_key, stop_key
from chat.streaming.live_rendering import LiveRendering, NoRendering
from chatproject.lib.pubsub.layer import get_layer
from chatproject.lib.redis.pipeline import bulk, head

TIMED = 10  # one event in so many carries the time of its writing

Delta = type[protocol.TextDelta | protocol.ReasoningDelta]

_encode_text = msgspec.json.Encoder().encode


def no_interrupt() -> None:
    """The `interrupt` of a run that is not reading from its provider."""


class RunWriter:
    """Collects the events of an attempt and keeps them until the run ends: Redis may lose the log.

    `notify` is called when events are pending; with True if they must not wait for the tick.
    `pause_reading` is the method of that name, which `llm.Provider.stream` takes. `interrupt` is
    called once when generation should stop; `stop_requested` or `lost` (another worker has the
    run, or it has ended) then gives the reason. `renders`: the reply has HTML, for pages.
    """

    def __init__(
        self,
        run_id: UUID,
        attempt: int,
        notify: Callable[[RunWriter, bool], None],
        pause_reading: Callable[[RunWriter, Callable[[], None]], bool],
        *,
        renders: bool = True,
    ) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.stop_requested = False
        self.lost = False
        self.interrupt: Callable[[], object] = no_interrupt
        self.lease_until = 0.0  # by the loop's clock
        self.is_leased = False  # the lease is in Redis
        self.is_accepted = False  # the provider has accepted the present request
        self.stored_acceptance = False  # as Redis has it
        self.place: int | None = None  # the provider at which the run has a place (places.py)
        self.is_open = True  # until the ticker forgets it
        self.part = 0  # modulo the number of a tick's parts: the part in which it is written
        self.events: list[bytes] = []
        self.logged = 0
        self.published = 0
        self.is_ending = False  # the end is being stored: the row may have it before we know
        self.closed: asyncio.Future[None] | None = None
        self._notify = notify
        self._pause_reading = pause_reading
        self._first_seq = protocol.first_seq(attempt)
        self._kind: Delta = protocol.TextDelta
        self._heads: dict[Delta, bytes] = {}
        self._pending: list[str] = []
        self._has_begun = False
        self._renders = renders
        self._lines: dict[str, int] = {}  # the blocks of tools' calls
        self.rendering = self._new_rendering()
        # Bytes that all of its commands share.
        layer = get_layer()
        channel = layer.raw_channel(groups.run_group(run_id))
        self.host = layer.host_of(channel)
        self.publish_head = head(3, "PUBLISH", channel)
        self.log_key = run_log.log_key(run_id)
        # A log must not be created without its first events: its readers would take the missing
        # ones for lost. NOMKSTREAM makes Redis answer nil, and all events are written again.
        self.append_head = head(6, "XADD", self.log_key, "NOMKSTREAM")
        self.stop_key = bulk(stop_key(run_id).encode())
        self.lease_key = lease_key(run_id)
        self.accepted_key = accepted_key(run_id)

    @property
    def next_seq(self) -> int:
        """The number of the next event."""
        return self._first_seq + len(self.events)

    def seq_of(self, index: int) -> int:
        """Return the number of the event at an index of `events`."""
        return self._first_seq + index

    @property
    def has_pending_events(self) -> bool:
        """Whether anything is not yet encoded, logged, published or stored."""
        count = len(self.events)
        is_written = self.logged >= count <= self.published
        return bool(self._pending) or not is_written or self.is_accepted != self.stored_acceptance

    def start(self, text: str, reasoning: str, *, has_steps: bool = False) -> None:
        """Add the attempt's first event, which carries the reply that the attempt continues.

        With `has_steps` the caller renders the text, with the lines between its parts.
        """
        common: dict[str, Any] = {"run": self.run_id, "attempt": self.attempt, "seq": self.next_seq}
        if self.attempt == 1 and not text:
            self.append(protocol.RunStarted(**common))
        else:
            self.append(protocol.RunRestarted(**common, text=text, reasoning=reasoning))
            if not has_steps:
                self.rendering.add(text)

    def mark_accepted(self, is_accepted: bool) -> None:
        """Store that the provider has accepted the request, or that it has ended it by an error.

        The sweeper bills by it if this process dies before the first delta.
        """
        if self.is_accepted != is_accepted:
            self.is_accepted = is_accepted
            self._notify(self, True)

    def store_acceptance_again(self) -> None:
        """Store the acceptance once more: Redis may have lost it."""
        self.stored_acceptance = False
        if self.is_accepted:
            self._notify(self, True)

    def text(self, text: str) -> None:
        """Add to the reply."""
        self._add(protocol.TextDelta, text)

    def reasoning(self, text: str) -> None:
        """Add to the model's reasoning, which precedes the reply."""
        self._add(protocol.ReasoningDelta, text)

    def replace(self, text: str, reasoning: str) -> None:
        """Replace the reply so far: it turned out to be reasoning, or is not continued."""
        self.seal()
        common: dict[str, Any] = {"run": self.run_id, "attempt": self.attempt, "seq": self.next_seq}
        self.append(protocol.ReplyReplaced(**common, text=text, reasoning=reasoning))
        self.rendering.close()
        self._lines.clear()
        self.rendering = self._new_rendering()
        self.rendering.add(text)

    def tool_call(self, index: int, id: str, name: str, arguments: str) -> None:
        """Add a piece of a tool call."""
        self.seal()
        common: dict[str, Any] = {"run": self.run_id, "attempt": self.attempt, "seq": self.next_seq}
        event = protocol.ToolCallDelta(**common, index=index, id=id, name=name, arguments=arguments)
        self.events.append(event.encode())
        self._notify(self, not self._has_begun)
        self._has_begun = True

    async def show_tool(self, call: str, slot: str, html: str) -> None:
        """Show the line of a tool's call after the text so far, or in another form."""
        self.seal()
        if call in self._lines:
            self.rendering.replace_line(self._lines[call], html)
        else:
            self._lines[call] = await self.rendering.add_line(slot, html)
        self._notify(self, True)

    def tool_event(self, kind: type[protocol.ToolEvent], **fields: Any) -> None:
        """Add an event of a tool's call."""
        self.seal()
        common: dict[str, Any] = {"run": self.run_id, "attempt": self.attempt, "seq": self.next_seq}
        self.append(kind(**common, **fields))

    def _new_rendering(self) -> LiveRendering | NoRendering:
        if not self._renders:
            return NoRendering()
        return LiveRendering(self._add_blocks, lambda: self._notify(self, True))

    def _add_blocks(self, change: Change, end: int) -> None:
        """Add the HTML of blocks after the text that they show; the caller writes it in this tick."""
        event = protocol.ReplyBlocks(
            run=self.run_id,
            attempt=self.attempt,
            seq=self.next_seq,
            first=change.first,
            blocks=change.blocks,
            end=end,
        )
        self.events.append(event.encode())

    def _add(self, kind: Delta, text: str) -> None:
        if kind is not self._kind:
            self.seal()
            self._kind = kind
        self._pending.append(text)
        if len(self._pending) == 1:
            self._notify(self, not self._has_begun)
            self._has_begun = True

    def pause_reading(self, resume: Callable[[], None]) -> bool:
        """Return whether reading may wait for the tick; `resume` is then called just before it."""
        return self._pause_reading(self, resume)

    def seal(self) -> None:
        """Encode the text that was added since the last tick as one event."""
        if not self._pending:
            return
        text = self._pending[0] if len(self._pending) == 1 else "".join(self._pending)
        self._pending.clear()
        seq = self.next_seq
        # Reading the clock and formatting its digits for each event would cost too much.
        t = b',"t":%d' % int(time.time() * 1000) if seq % TIMED == 0 else b""
        self.events.append(b'%b%d,"text":%b%b}' % (self._head(), seq, _encode_text(text), t))
        if self._kind is protocol.TextDelta:
            self.rendering.add(text)

    def _head(self) -> bytes:
        """Return a delta's bytes up to its number, as the event's own encoder writes them."""
        found = self._heads.get(self._kind)
        if found is None:
            delta = self._kind(run=self.run_id, attempt=self.attempt, seq=0, text="")
            found = self._heads[self._kind] = delta.encode().removesuffix(b'0,"text":""}')
        return found

    def append(self, event: protocol.RunEvent) -> None:
        """Add an event of any kind; its number must be `next_seq` after `seal`."""
        self.events.append(event.encode())
        self._notify(self, True)

    def mark_lost(self) -> None:
        """Interrupt the run: another worker has it, or it has ended."""
        self.lost = True
        self.interrupt()
