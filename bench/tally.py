"""Whether every token of a reply arrived, once and in order, and how late each one was."""

from __future__ import annotations

import time

from tests.support.fake_llm.stamps import END, SPAN, STAMP_DIGITS, delay


class Tally:
    """Reads one reply as its pieces arrive; the pieces may be cut anywhere.

    Of the `expected` tokens, numbered from 0: `lost` never came, `doubled` came once more than they
    should, `out_of_order` came after a higher one, `garbled` pieces of text are no tokens. `delays` has
    the microseconds from emission to arrival of each token, in the order of arrival.
    """

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.delays: list[int] = []
        self.first_at = 0.0  # time.monotonic() of the first token
        self.last_at = 0.0
        self.doubled = 0
        self.out_of_order = 0
        self.garbled = 0
        self._next = 0  # the number that should come
        self._missing: set[int] = set()  # those below it that have not come
        self._rest = ""

    @property
    def arrived(self) -> int:
        """The number of tokens that came, doubled ones included."""
        return len(self.delays)

    @property
    def lost(self) -> int:
        """The number of tokens that have not come; meant for a reply that has ended."""
        return max(0, self.expected - self._next) + len(self._missing)

    @property
    def is_clean(self) -> bool:
        """Whether a reply that has ended was exactly what the provider sent."""
        return not self.faults()

    def faults(self) -> str:
        """The faults of a reply that has ended, in words; empty if it has none."""
        beyond_the_end = max(0, self._next - self.expected)
        counts = {
            "lost": self.lost,
            "doubled": self.doubled,
            "out of order": self.out_of_order,
            "garbled": self.garbled + beyond_the_end + bool(self._rest.strip()),
        }
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)

    def feed(self, piece: str) -> None:
        """Take the next piece, which has arrived just now."""
        *tokens, self._rest = (self._rest + piece).split(END)
        if not tokens:
            return
        now = time.time_ns() // 1000
        self.last_at = time.monotonic()
        if not self.delays:
            self.first_at = self.last_at
        for token in tokens:
            stamp, dot, number = token.strip().partition(".")
            if len(stamp) != STAMP_DIGITS or not dot:
                self.garbled += 1
                continue
            try:
                late = (now - int(stamp, 36)) % SPAN
                index = int(number)
            except ValueError:
                self.garbled += 1
                continue
            if late > SPAN // 2:
                late = delay(int(stamp, 36), now)
            self.delays.append(late)
            if index == self._next:
                self._next += 1
            else:
                self._odd(index)

    def _odd(self, index: int) -> None:
        if index >= self.expected:
            self.garbled += 1
        elif index > self._next:
            self._missing.update(range(self._next, index))
            self._next = index + 1
        elif index in self._missing:
            self._missing.discard(index)
            self.out_of_order += 1
        else:
            self.doubled += 1
