"""Streams: tokens at their time, and faults after so many of them.

One timer serves all streams, and a token's bytes are ready before it is due: hundreds of streams at
20 tokens a second cost a few percent of a core. Tokens of different streams are spread evenly over
time, not sent in bursts: streams differ by phase, which is left out of the first token, so that it
comes when it was asked for.
"""

from __future__ import annotations

import asyncio
import time
from operator import itemgetter
from typing import TYPE_CHECKING

from tests.support.fake_llm.directives import FAULTS, Directives
from tests.support.fake_llm.record import Call
from tests.support.fake_llm.replies import LAST_CHUNK, Reply, chunk

if TYPE_CHECKING:
    from tests.support.fake_llm.server import Connection

HEADERS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
KEEP_ALIVE = chunk(b": keep-alive\n\n")
GARBAGE = chunk(b'data: {"choices": [{"delta": {"content": \x00<html>\xff\n\n')
ERROR = (
    b'data: {"error":{"message":"the fake provider broke","type":"server_error","code":500}}\n\n'
)
BROKEN = {"cut": b"", "short": LAST_CHUNK, "error": chunk(ERROR) + LAST_CHUNK}  # ends by a fault
BURST = 100  # tokens that are sent at once before other streams have their turn

SLOT = 0.002  # seconds
SLOTS = 1024  # of the wheel; a stream that is due after all of them gets a timer of its own


class Wheel:
    """A timing wheel: one timer for all streams, so that a token costs no timer of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: list[list[Stream]] = [[] for _ in range(SLOTS)]
        self._turned = 0  # the last slot that was served
        self._next = 0  # the slot for which the timer is set
        self._waiting = 0  # streams in the wheel
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: Stream, due: float) -> None:
        """Call `stream.emit()` at this time of the loop's clock."""
        if self._timer is None:
            self._turned = int(self._loop.time() / SLOT)
        slot = max(int(due / SLOT), self._turned + 1)
        if slot >= self._turned + SLOTS:
            self._loop.call_at(due, stream.emit)
            return
        self._slots[slot % SLOTS].append(stream)
        self._waiting += 1
        if self._timer is None or slot < self._next:
            self._set(slot)

    def _set(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = slot
        self._timer = self._loop.call_at(slot * SLOT, self._turn)

    def _turn(self) -> None:
        now = max(self._next, int(self._loop.time() / SLOT))
        # Streams that are served come back further on, which must not set the timer again and again.
        self._next = self._turned
        while self._turned < now:
            self._turned += 1
            due = self._slots[self._turned % SLOTS]
            if due:
                self._slots[self._turned % SLOTS] = []
                self._waiting -= len(due)
                for stream in due:
                    stream.emit()
        self._timer = None
        if self._waiting:
            slot = self._turned + 1
            while not self._slots[slot % SLOTS]:
                slot += 1
            self._set(slot)


class Stream:
    """One reply under way; `is_held` while it waits for a release."""

    GOLDEN = 0.6180339887498949  # its multiples spread evenly, whatever their number
    begun = 0

    def __init__(self, connection: Connection, reply: Reply, asked: Directives, call: Call) -> None:
        Stream.begun += 1
        self.number = Stream.begun
        self.call = call
        self.is_held = False
        self._connection = connection
        self._loop = connection.server.loop
        self._record = connection.server.record
        self._reply = reply
        self._asked = asked
        self._write = self._split if asked.chunk else connection.transport.write
        self._rest = b""  # bytes to be split
        self._period = 1 / asked.rate if asked.rate else 0.0
        self._burst = asked.at_once if asked.rate else reply.size  # tokens without a time
        self._phase = (self.number * self.GOLDEN) % 1.0
        self._due = 0.0
        self._next = 0
        # Faults and the end, each with the number of tokens after which it comes.
        before = reply.skipped - reply.reasoning
        halts = [(getattr(asked, fault) - before, fault) for fault in FAULTS]
        halts = [halt for halt in halts if reply.reasoning <= halt[0] <= reply.size]
        self._halts = [*sorted(halts, key=itemgetter(0)), (reply.size, "end")]
        self._halt = self._halts[0][0]

    def begin(self) -> None:
        """Send the headers, and then the tokens, each when its time has come."""
        self.call.ended = "active"
        self._record.add(active=1)
        self._due = self._loop.time() + self._asked.headers + self._asked.first
        self._loop.call_later(self._asked.headers, self._wait, HEADERS)

    def _wait(self, data: bytes) -> None:
        """Send headers or a keep-alive comment, and wait for the time of the first token."""
        if self._connection.stream is not self:
            return
        self._write(data)
        left = self._due - self._loop.time()
        if 0 < self._asked.ping < left:
            self._loop.call_later(self._asked.ping, self._wait, KEEP_ALIVE)
        elif left > 0:
            self._loop.call_later(left, self._wait, b"")
        else:
            self._write(self._reply.delta(role="assistant", content=""))
            self._go_on()

    def _go_on(self) -> None:
        if self._next != self._halt or self._passes():
            self.emit()

    def emit(self) -> None:
        """Send the next token, or the next ones when they are due together."""
        connection = self._connection
        if connection.stream is not self:
            return  # the client has left
        number = self._next
        if number < self._burst:
            self._emit_burst()
            return
        self._write(self._reply.token(number))
        self._next = number = number + 1
        if number == self._halt and not self._passes():
            return
        # From the second one on a stream has its own phase; its mean rate is the asked one.
        self._due += self._period * (0.5 + self._phase if number == 1 else 1.0)
        connection.server.wheel.add(self, self._due)

    def _emit_burst(self) -> None:
        until = min(self._next + BURST, self._burst, self._halt)
        self._write(b"".join(map(self._reply.token, range(self._next, until))))
        self._next = until
        if until == self._halt and not self._passes():
            return
        if until == self._burst:
            self._due = self._loop.time() + self._period * (0.5 + self._phase)
            self._connection.server.wheel.add(self, self._due)
        else:
            self._loop.call_soon(self.emit)

    def _passes(self) -> bool:
        """Pass the halts after this many tokens. Returns whether more tokens follow at once."""
        while self._halts[0][0] == self._next:
            match self._halts.pop(0)[1]:
                case "hold":
                    if self.call.key not in self._record.released:
                        self.is_held = True
                        self._record.add(held=1)
                        return False
                case "report":
                    self.call.usage = self._reply.streamed_usage(self._next)
                    self._write(self._reply.report(self._next))
                case "garbage":
                    self._write(GARBAGE)
                case "silent":
                    return False
                case ending:
                    self._end(ending)
                    return False
        self._halt = self._halts[0][0]
        return True

    def _end(self, how: str) -> None:
        # The record comes first: it must be right when the client has read the end.
        if how == "end":
            self.call.usage = self._reply.streamed_usage(self._next)
        self.note("finished" if how == "end" else "broken")
        self._record.add(active=-1, finished=1)
        self._write(self._reply.ending(self._next) if how == "end" else BROKEN[how])
        if how == "cut":
            self._connection.transport.write(self._rest)
            self._connection.transport.close()
        self._connection.ended()

    def _split(self, data: bytes) -> None:
        if not self._rest:
            self._loop.call_soon(self._write_piece)
        self._rest += data

    def _write_piece(self) -> None:
        """Write one piece in each turn of the loop, so that each is a network write."""
        if not self._connection.transport.is_closing():
            size = self._asked.chunk
            piece, self._rest = self._rest[:size], self._rest[size:]
            self._connection.transport.write(piece)
            if self._rest:
                self._loop.call_soon(self._write_piece)

    def note(self, ended: str = "active") -> None:
        """Bring the record of the call up to date."""
        call, reasoning = self.call, self._reply.reasoning
        call.reasoned, call.sent = min(self._next, reasoning), max(0, self._next - reasoning)
        if call.ended == "active":
            call.ended = ended
            if ended != "active":
                call.ended_at = time.time_ns()

    def left(self) -> None:
        """Note the end of the connection, closed by the client or broken by the provider."""
        self.note("aborted")
        self._record.add(active=-1, aborted=1, held=-self.is_held)

    def release(self) -> None:
        """Go on after `hold`."""
        self.is_held = False
        self._record.add(held=-1)
        self._due = self._loop.time()
        self._go_on()

    def end_in(self, seconds: float) -> None:
        """End at the first token after so many seconds, if the reply does not end before."""
        if self._period:
            end = min(self._halts[-1][0], self._next + 1 + int(seconds / self._period))
            self._halts = [halt for halt in self._halts if halt[0] < end] + [(end, "end")]
            self._halt = self._halts[0][0]
