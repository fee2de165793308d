"""Evidence of a round that has ended: plain values, which a test can spoil."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from tests.chaos.rounds.asks import Ask
from tests.support.fake_llm import Call


@dataclass(slots=True)
class Seen:
    """One client's view: the run's id, its final text, and how the run ended."""

    client_id: str
    run: str = ""
    text: str = ""
    end: str = ""  # done, stopped or failed; empty: no end came
    received_at: float = 0.0  # of the end, since the epoch; 0 for a tab that came later
    delivered: set[int] = field(default_factory=set)  # attempts that sent text
    restarts: list[tuple[str, str]] = field(default_factory=list)  # text before and after
    refusals: list[float] = field(default_factory=list)  # times since the epoch
    wrong: list[tuple[str, str]] = field(default_factory=list)  # kind and detail: LiveTab.wrong
    waited: bool = False  # as a next message, for the end of the present reply
    paused: str = ""  # and then for its user's decision, for this reason


@dataclass(slots=True)
class RunRow:
    """A run's row with the reply's text; amounts in micro-credits."""

    id: UUID
    client_id: str
    conversation: str
    continues: bool  # its model can continue a partial text
    status: str
    attempt: int
    text: str
    reasoning: str
    error_code: str
    queued_at: datetime
    ended_at: datetime | None
    cost: int | None
    charged: int | None
    sent: int  # the number of stored messages with its text
    message: UUID | None = None  # its reply
    follows: UUID | None = None  # the message before the one that it answers
    continued: int = 0  # characters of the reply that it continues
    files: int = 0  # attachments of the message that it answers


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
    """All evidence of a round. The last three fields have the excuses of its faults."""

    asks: list[Ask]
    seen: list[Seen]
    runs: list[RunRow]
    used: list[Used]
    calls: list[Call]
    holds: dict[UUID, tuple[str, int]]  # status and settled amount
    charges: dict[UUID, int]  # by run, from the ledger
    price: Price
    ledger: list[str]  # problems that check_ledger found
    max_attempts: int
    leaves: dict[str, UUID | None] = field(default_factory=dict)  # by conversation
    unsent: dict[str, str] = field(default_factory=dict)  # next messages by conversation
    lost_memory: bool = False
    broke_replies: bool = False
    lost_answers: bool = False

    def delays(self) -> dict[str, float]:
        """By client_id: seconds from a run's end in the database until its client received it."""
        ended = {run.client_id: run.ended_at for run in self.runs}
        return {
            seen.client_id: seen.received_at - ended_at.timestamp()
            for seen in self.seen
            if (ended_at := ended.get(seen.client_id)) and seen.received_at
        }


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault of the system, in words, and its message and run."""

    what: str
    client_id: str = ""
    run: str = ""
