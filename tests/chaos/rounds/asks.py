"""Messages of a round; each asks the provider for a reply of some length, rate and outcome."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from tests.support.fake_llm import parse_directives, reasoning_text, reply_pieces

DONE = frozenset({"done"})
FAILED = frozenset({"failed"})
STOPPED = frozenset({"stopped", "done"})  # the reply may end before the stop

# Ways in which a message leads to another run: by two models at once; after its end another reply; the
# rest of a reply that reached its length limit; the next message, written during the reply. Each with the end of the
# other run's client_id.
FURTHER = {"compare": "~1", "regenerate": "-again", "continue": "-rest", "next": "-next"}


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
    file: str = ""  # the content of an attached text
    is_temporary: bool = False  # it begins a temporary chat
    further: str = ""  # how its other run begins, a key of FURTHER
    further_after: float = 0.0  # of "next": when that is written, from when this one was queued
    further_file: str = ""  # and its attached text
    leaves: bool = False  # and whether no tab is open until it was answered
    way: str = ""  # of the ask of such another run: how it began,
    first: str = ""  # and the client_id of the first one

    @property
    def further_ask(self) -> Ask:
        """The ask of its other run: the same message, or the next one."""
        name = f"{self.client_id}{FURTHER[self.further]}"
        other = replace(
            self,
            client_id=name,
            watch_after=None,
            is_temporary=False,
            further="",
            way=self.further,
            first=self.client_id,
        )
        if self.further == "next":
            return replace(other, text=f"{self.text}-next", file=self.further_file)
        return other

    @property
    def prompt(self) -> str:
        """The message as the provider receives it."""
        if not self.file:
            return self.text
        return f'<file name="{self.file_name}">\n{self.file}\n</file>\n\n{self.text}'

    @property
    def file_name(self) -> str:
        return f"{self.client_id}.txt"

    @property
    def pieces(self) -> list[str]:
        """All tokens of the provider's reply, also those beyond its length limit."""
        return reply_pieces(parse_directives(self.text).tokens, self.prompt)

    @property
    def whole(self) -> str:
        """The whole text of this run's reply."""
        length = parse_directives(self.text).length
        is_cut = length >= 0 and self.way != "continue"
        return "".join(self.pieces[:length] if is_cut else self.pieces)

    @property
    def thoughts(self) -> str:
        return reasoning_text(parse_directives(self.text).reasoning, self.prompt)

    @property
    def seconds(self) -> float:
        """About the time that the provider needs, with refusals and the pauses after them."""
        asked = parse_directives(self.text)
        tokens = asked.tokens + asked.reasoning
        return asked.first + (tokens / asked.rate if asked.rate else 0) + (3 if asked.status else 0)


def draw(chance: random.Random, name: str, *, over: float) -> Ask:
    """A random message, sent at a random time in the first `over` seconds."""
    tokens, rate = chance.randint(20, 150), chance.randint(20, 50)
    words, ends, stop_after, more = "", DONE, None, dict[str, Any]()
    match chance.choices(list(KINDS), list(KINDS.values()))[0]:
        case "compare" | "regenerate" as kind:
            more = {"further": kind}
        case "continue":
            words, more = f"length={chance.randint(5, tokens - 5)}", {"further": "continue"}
        case "next":
            more = {
                "further": "next",
                "further_after": chance.uniform(0, tokens / rate),
                "further_file": note(name) if chance.random() < 0.3 else "",
                "leaves": chance.random() < 0.5,
            }
        case "attached":
            more = {"file": note(name)}
        case "temporary":
            more = {"is_temporary": True}
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
        **more,
    )


def note(name: str) -> str:
    return f'A note about {name}.\n\nIt was größer, and <b>not</b> "small".'


KINDS = {
    "plain": 30,
    "stopped": 10,
    "compare": 5,
    "regenerate": 5,
    "continue": 6,
    "next": 8,
    "attached": 5,
    "temporary": 4,
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
