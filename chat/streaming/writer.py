"""The events of one attempt of a run, encoded once, on their way to its log and its followers.

generate.py puts into it what the model says; tick.py decides when it is written, tick_batch.py how.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from uuid import UUID

import msgspec

from chat import protocol
from chat.streaming import groups
from chat.streaming import log as run_log
from chat.streaming.leases import lease_key, stop_key
from chatproject.lib.pubsub.layer import get_layer
from chatproject.lib.redis.pipeline import bulk, head

TIMED = 10  # one of so many events tells when it was written

Delta = type[protocol.TextDelta | protocol.ReasoningDelta]

_encode_text = msgspec.json.Encoder().encode


class RunWriter:
    """Collects the events of an attempt, and keeps them until the run ends: Redis may lose the log.

    `wake` is called when there is news; with True when it shall not wait for the tick. `hold` may
    be given to `llm.Provider.stream`. `interrupt` is called once when the run should stop being
    made: then `stop_requested` or `lost` (another worker has the run, or it is over) says why.
    """

    def __init__(
        self,
        run_id: UUID,
        attempt: int,
        wake: Callable[[RunWriter, bool], None],
        hold: Callable[[RunWriter, Callable[[], None]], bool],
    ) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.stop_requested = False
        self.lost = False
        self.interrupt: Callable[[], None] = _do_nothing
        self.lease_until = 0.0  # by the loop's clock
        self.is_leased = False  # Redis has been told
        self.is_open = True  # until the ticker forgets it
        self.part = 0  # which of a tick's parts it is written in, by its remainder
        self.events: list[bytes] = []
        self.logged = 0
        self.published = 0
        self.is_ending = False  # its end is being stored: the row may say so before we know
        self.closed: asyncio.Future[None] | None = None
        self._wake = wake
        self._hold = hold
        self._first_seq = protocol.first_seq(attempt)
        self._kind: Delta = protocol.TextDelta
        self._heads: dict[Delta, bytes] = {}
        self._pending: list[str] = []
        self._spoke = False
        # What is alike in all of its commands.
        layer = get_layer()
        channel = layer.raw_channel(groups.run_group(run_id))
        self.host = layer.host_of(channel)
        self.publish_head = head(3, "PUBLISH", channel)
        self.log_key = run_log.log_key(run_id)
        # Without its first events a log must not come into being: its readers would take what is
        # missing for lost. NOMKSTREAM then answers nil, and all is written again.
        self.append_head = head(6, "XADD", self.log_key, "NOMKSTREAM")
        self.stop_key = bulk(stop_key(run_id).encode())
        self.lease_key = lease_key(run_id)

    @property
    def next_seq(self) -> int:
        """The number that the next event will have."""
        return self._first_seq + len(self.events)

    def seq_of(self, index: int) -> int:
        """The number of the event at an index of `events`."""
        return self._first_seq + index

    @property
    def has_news(self) -> bool:
        count = len(self.events)
        return bool(self._pending) or self.published < count or self.logged < count

    def start(self, text: str, reasoning: str) -> None:
        """Tell the followers that a worker has the run, and what the reply of a later attempt is."""
        if self.attempt == 1:
            self.append(protocol.RunStarted(run=self.run_id, attempt=1, seq=self.next_seq))
            return
        self.append(
            protocol.RunRestarted(
                run=self.run_id,
                attempt=self.attempt,
                seq=self.next_seq,
                text=text,
                reasoning=reasoning,
            )
        )

    def text(self, text: str) -> None:
        """Add to the reply."""
        self._add(protocol.TextDelta, text)

    def reasoning(self, text: str) -> None:
        """Add to what the model thinks aloud before it replies."""
        self._add(protocol.ReasoningDelta, text)

    def _add(self, kind: Delta, text: str) -> None:
        if kind is not self._kind:
            self.seal()
            self._kind = kind
        self._pending.append(text)
        if len(self._pending) == 1:
            self._wake(self, not self._spoke)
            self._spoke = True

    def hold(self, resume: Callable[[], None]) -> bool:
        """Whether reading may wait for the tick; then `resume` is called just before it."""
        return self._hold(self, resume)

    def seal(self) -> None:
        """Turn what was added since the last tick into an event."""
        if not self._pending:
            return
        text = self._pending[0] if len(self._pending) == 1 else "".join(self._pending)
        self._pending.clear()
        seq = self.next_seq
        # A clock reading and its digits for each event would cost more than they tell.
        t = b',"t":%d' % int(time.time() * 1000) if seq % TIMED == 0 else b""
        self.events.append(b'%b%d,"text":%b%b}' % (self._head(), seq, _encode_text(text), t))

    def _head(self) -> bytes:
        """A delta's bytes up to its number, as the event's own encoder writes them."""
        found = self._heads.get(self._kind)
        if found is None:
            delta = self._kind(run=self.run_id, attempt=self.attempt, seq=0, text="")
            found = self._heads[self._kind] = delta.encode().removesuffix(b'0,"text":""}')
        return found

    def append(self, event: protocol.RunEvent) -> None:
        """Add an event of any kind; its number must be `next_seq` after `seal`."""
        self.events.append(event.encode())
        self._wake(self, True)

    def lose(self) -> None:
        """Stop speaking for the run: somebody else has it, or it is over."""
        self.lost = True
        self.interrupt()


def _do_nothing() -> None:
    return None
