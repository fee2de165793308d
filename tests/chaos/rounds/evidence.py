"""What is known of a round when it is over: plain values, which a test can spoil as it likes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from tests.chaos.rounds.asks import Ask
from tests.support.fake_llm import Call


@dataclass(slots=True)
class Seen:
    """What one client saw: the run's id, the text that it has in the end, and how the run ended."""

    client_id: str
    run: str = ""
    text: str = ""
    end: str = ""  # done, stopped, failed; empty: nothing came
    told_at: float = 0.0  # when it was told the end, since the epoch; 0 if it came later
    delivered: set[int] = field(default_factory=set)  # attempts of which text came
    restarts: list[tuple[str, str]] = field(default_factory=list)  # text before and after
    refusals: list[float] = field(default_factory=list)  # times since the epoch
    wrong: list[tuple[str, str]] = field(default_factory=list)  # kind and detail: LiveTab.wrong


@dataclass(slots=True)
class RunRow:
    """A run as the database has it, with the reply's text; amounts in micro-credits."""

    id: UUID
    client_id: str
    conversation: str
    continues: bool  # its model can go on where it stopped
    status: str
    attempt: int
    text: str
    reasoning: str
    error_code: str
    queued_at: datetime
    ended_at: datetime | None
    cost: int | None
    charged: int | None
    sent: int  # how many messages with the text that was asked there are


@dataclass(slots=True)
class Used:
    """A usage record."""

    run_id: UUID
    attempt: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    source: str
    cost: int
    charged: int
    shortfall: int
    absorbed: int
    finish: str


@dataclass(slots=True)
class Price:
    """Micro-credits for a million tokens."""

    input: int
    cached: int
    output: int


@dataclass
class Evidence:
    """All that is known of a round. `lost_memory` and so on say what its faults excuse."""

    asks: list[Ask]
    seen: list[Seen]
    runs: list[RunRow]
    used: list[Used]
    calls: list[Call]
    holds: dict[UUID, tuple[str, int]]  # status and what was settled
    charges: dict[UUID, int]  # what the ledger took for a run
    price: Price
    books: list[str]  # what check_ledger found
    most_attempts: int
    lost_memory: bool = False
    broke_replies: bool = False
    lost_answers: bool = False

    def delays(self) -> dict[str, float]:
        """By client_id: seconds from a run's end in the database until who asked was told of it."""
        ended = {run.client_id: run.ended_at for run in self.runs}
        return {
            seen.client_id: seen.told_at - ended_at.timestamp()
            for seen in self.seen
            if (ended_at := ended.get(seen.client_id)) and seen.told_at
        }


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and with which message."""

    what: str
    client_id: str = ""
    run: str = ""
