"""Messages of a round; each asks the provider for a reply of some length, rate and outcome."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from tests.support.fake_llm import parse_directives, reasoning_text, reply_text

DONE = frozenset({"done"})
FAILED = frozenset({"failed"})
STOPPED = frozenset({"stopped", "done"})  # the reply may end before the stop


@dataclass(frozen=True, slots=True)
class Ask:
    """A message, with times in seconds.

    `ends` are the final statuses that its run may have when nothing outside of it fails.
    """

    client_id: str
    text: str
    ends: frozenset[str] = DONE
    sent_after: float = 0.0  # from the round's beginning
    stop_after: float | None = None  # from when it was sent
    watch_after: float | None = None  # when a second tab follows the run
    further: str = (
        ""  # its other run: "compare", by two models at once; "regenerate", after its end
    )

    @property
    def further_ask(self) -> Ask:
        """The same message as the ask of its other run, as a program names it."""
        name = f"{self.client_id}{'~1' if self.further == 'compare' else '-again'}"
        return replace(self, client_id=name, further="", watch_after=None)

    @property
    def whole(self) -> str:
        """The whole reply of the provider."""
        return reply_text(parse_directives(self.text).tokens, self.text)

    @property
    def thoughts(self) -> str:
        return reasoning_text(parse_directives(self.text).reasoning, self.text)

    @property
    def seconds(self) -> float:
        """About the time that the provider needs, with refusals and the pauses after them."""
        asked = parse_directives(self.text)
        tokens = asked.tokens + asked.reasoning
        return asked.first + (tokens / asked.rate if asked.rate else 0) + (3 if asked.status else 0)


def draw(chance: random.Random, name: str, *, over: float) -> Ask:
    """A random message, sent at a random time in the first `over` seconds."""
    tokens, rate = chance.randint(20, 150), chance.randint(20, 50)
    words, ends, stop_after, further = "", DONE, None, ""
    match chance.choices(list(KINDS), list(KINDS.values()))[0]:
        case "compare" | "regenerate" as kind:
            further = kind
        case "fast":
            rate = 0
        case "thinks":
            words = f"reasoning={chance.randint(5, 30)}"
        case "late":
            words = f"first={chance.uniform(0.5, 3):.1f}"
        case "uncounted":
            words = "nousage=1"
        case "split":
            words = f"chunk={chance.randint(5, 60)}"
        case "refused once":
            words = f"status=429 retry_after={chance.uniform(0.1, 1):.1f} fail=1"
        case "broken once":
            words = "cut=0 fail=1"
        case "refused":
            words, ends = "status=500", FAILED
        case "broken":
            words, ends = f"cut={chance.randint(1, tokens - 1)}", FAILED
        case "stopped":
            ends, stop_after = STOPPED, chance.uniform(0, 1.2 * tokens / rate)
    directives = f"[[{' '.join(f'tokens={tokens} rate={rate} {words}'.split())}]]"
    return Ask(
        client_id=name,
        text=f"{directives} {name}",
        ends=ends,
        sent_after=chance.uniform(0, over),
        stop_after=stop_after,
        watch_after=chance.uniform(0, 4) if chance.random() < 0.15 else None,
        further=further,
    )


KINDS = {
    "plain": 50,
    "stopped": 10,
    "compare": 5,
    "regenerate": 5,
    "fast": 8,
    "thinks": 6,
    "late": 5,
    "uncounted": 4,
    "split": 3,
    "refused once": 5,
    "broken once": 3,
    "refused": 2,
    "broken": 4,
}
