"""The judge of the rounds finds each fault, some rounds pass, and a deploy loses nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from tests.chaos.conftest import output_of
from tests.chaos.rounds.asks import DONE, FAILED, STOPPED, Ask
from tests.chaos.rounds.evidence import Evidence, Price, RunRow, Seen, Used
from tests.chaos.rounds.faults import FAULTS, POOLER_FAULTS, draw
from tests.chaos.rounds.judge import judge
from tests.chaos.rounds.purges import Chat, Purges
from tests.support.fake_llm import Call, reply_pieces, reply_text
from tests.support.reconnecting_client import FIRST_SEQS, LiveTab

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def usage(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


class Round:
    """Evidence of a correct round: replies done at once, handed over, stopped, refused, continued and followed up."""

    def __init__(self) -> None:
        self.evidence = Evidence(
            asks=[], seen=[], runs=[], used=[], calls=[], holds={}, charges={}, ledger=[],
            price=Price(20_000_000, 10_000_000, 80_000_000), max_attempts=3,
        )  # fmt: skip
        done = self.add("done", "[[tokens=30]] done", DONE, 30)
        self.call(done, 30)
        again = self.add("again", "[[tokens=20]] again", DONE, 20, attempt=2)
        self.call(again, 7, ended="aborted")
        self.call(again, 20)
        self.use(again, 5, attempt=1, lost=True)
        self.evidence.seen[1].delivered = {1, 2}
        self.evidence.seen[1].restarts = [("so", "")]
        stopped = self.add("stopped", "[[tokens=40]] stopped", STOPPED, 12, status="stopped")
        self.call(stopped, 13, ended="aborted")
        refused = self.add("refused", "[[status=500]] refused", FAILED, 0, status="failed")
        for _ in range(3):
            self.call(refused, 0, ended="refused")
        cut = self.add("cut", "[[tokens=30 length=20]] cut", DONE, 20)
        self.call(cut, 20)
        rest = self.add("cut-rest", "[[tokens=30 length=20]] cut", DONE, 30, way="continue")
        rest.continues, rest.continued = True, len(cut.text)
        self.evidence.seen[-1].restarts = [("", cut.text)]
        self.evidence.leaves["cut"] = rest.message
        self.use(rest, 10, attempt=1)
        self.call(rest, 10, prefix=len(cut.text))
        first = self.add("first", "[[tokens=20]] first", DONE, 20)
        self.call(first, 20)
        follow = self.add(
            "first-next", "[[tokens=20]] first-next", DONE, 20, way="next", file="Note"
        )
        self.evidence.seen[-1].waited = True
        follow.follows, follow.files = first.message, 1
        self.evidence.leaves["first"] = follow.message
        self.call(follow, 20)

    def add(
        self,
        name: str,
        text: str,
        ends: frozenset[str],
        tokens: int,
        status: str = "done",
        attempt: int = 1,
        **special: Any,
    ) -> RunRow:
        """Add a message and its run, with so many delivered tokens."""
        first = name.partition("-")[0]
        ask = Ask(client_id=name, text=text, ends=ends, first=first if special else "", **special)
        reply = "".join(ask.pieces[:tokens])
        run = RunRow(
            id=UUID(int=len(self.evidence.runs)), client_id=name, conversation=first,
            message=UUID(int=1_000 + len(self.evidence.runs)), continues=False, status=status, attempt=attempt, text=reply, reasoning="",
            error_code="provider_error" if status == "failed" else "", queued_at=NOW,
            ended_at=NOW, cost=0,
            charged=0, sent=1,
        )  # fmt: skip
        self.evidence.asks.append(ask)
        self.evidence.runs.append(run)
        self.evidence.seen.append(
            Seen(name, run=str(run.id), text=reply, end=status, delivered={attempt})
        )
        self.evidence.holds[run.id] = ("released", 0)
        self.evidence.leaves[first] = run.message
        if tokens and "-rest" not in name:
            self.use(run, tokens, attempt=attempt)
        return run

    def use(self, run: RunRow, tokens: int, *, attempt: int, lost: bool = False) -> None:
        cost = 10 * 20 + tokens * 80
        self.evidence.used.append(
            Used(
                run_id=run.id, attempt=attempt, input_tokens=10, cached_tokens=0,
                output_tokens=tokens, reasoning_tokens=0,
                source="provider" if run.status == "done" and not lost else "counted", cost=cost,
                charged=0 if lost else cost, shortfall=0, absorbed=cost if lost else 0,
                finish="crashed" if lost else "complete",
            )
        )  # fmt: skip
        if not lost:
            run.cost = run.charged = cost
            self.evidence.holds[run.id] = ("settled", cost)
            self.evidence.charges[run.id] = cost

    def call(self, run: RunRow, tokens: int, *, ended: str = "finished", prefix: int = 0) -> None:
        text = next(ask.prompt for ask in self.evidence.asks if ask.client_id == run.client_id)
        reported = usage(10, tokens) if ended == "finished" else None
        self.evidence.calls.append(Call(text, prefix, tokens, 0, ended, reported))


def test_correct_round_has_no_problem():
    assert judge(Round().evidence) == []


def reopen(evidence: Evidence) -> None:
    evidence.runs[0].status = "running"


def lose_a_word(evidence: Evidence) -> None:
    evidence.seen[0].text = evidence.seen[0].text[:-3]


def store_half_a_reply(evidence: Evidence) -> None:
    evidence.runs[0].text = evidence.seen[0].text = evidence.runs[0].text[:40]


def double_a_word(evidence: Evidence) -> None:
    evidence.runs[2].text = evidence.seen[2].text = evidence.runs[2].text[:9] * 2


def fail_a_run(evidence: Evidence) -> None:
    evidence.runs[0].status = evidence.seen[0].end = "failed"
    evidence.runs[0].error_code = "unavailable"


def charge_more(evidence: Evidence) -> None:
    used = evidence.used[0]
    used.cost = used.charged = evidence.runs[0].cost = evidence.runs[0].charged = used.cost + 1
    evidence.holds[used.run_id] = ("settled", used.cost)
    evidence.charges[used.run_id] = used.cost


def charge_for_more_tokens(evidence: Evidence) -> None:
    evidence.used[0].output_tokens += 1
    evidence.used[0].cost += 80


def charge_a_lost_attempt(evidence: Evidence) -> None:
    lost = next(used for used in evidence.used if used.absorbed)
    lost.charged, lost.absorbed = lost.absorbed, 0


def forget_a_lost_attempt(evidence: Evidence) -> None:
    evidence.used = [used for used in evidence.used if not used.absorbed]


def forget_the_usage(evidence: Evidence) -> None:
    run = evidence.runs[0]
    run.cost = run.charged = None
    evidence.used = [used for used in evidence.used if used.run_id != run.id]
    evidence.holds[run.id] = ("released", 0)
    del evidence.charges[run.id]


def settle_nothing(evidence: Evidence) -> None:
    evidence.holds[evidence.runs[0].id] = ("active", 0)


def take_twice(evidence: Evidence) -> None:
    evidence.charges[evidence.runs[0].id] *= 2


def call_again(evidence: Evidence) -> None:
    evidence.calls.append(evidence.calls[0])


def call_without_a_message(evidence: Evidence) -> None:
    evidence.calls.append(Call("hello", 0, 1, 0, "finished", usage(1, 1)))


def keep_answering(evidence: Evidence) -> None:
    evidence.calls[0].ended = "active"


def send_less(evidence: Evidence) -> None:
    evidence.calls[3].sent = 5


def break_off_and_lose_text(evidence: Evidence) -> None:
    calls = [call for call in evidence.calls if call.ended == "refused"]
    calls[-1].sent = 4


def begin_a_second_run(evidence: Evidence) -> None:
    evidence.runs.append(evidence.runs[0])


def store_the_message_twice(evidence: Evidence) -> None:
    evidence.runs[0].sent = 2


def store_a_refused_message(evidence: Evidence) -> None:
    evidence.seen[0].refusals = [NOW.timestamp() + 1]


def restart_with_a_text(evidence: Evidence) -> None:
    evidence.seen[1].restarts = [("so", "so")]


def forget_the_continued_text(evidence: Evidence) -> None:
    evidence.runs[1].continues = True


def contradict_the_protocol(evidence: Evidence) -> None:
    evidence.seen[0].wrong = [("gap", "seq 5 after 3")]


def report_another_end(evidence: Evidence) -> None:
    evidence.seen[2].end = "done"


def report_no_end(evidence: Evidence) -> None:
    evidence.seen[0].end = ""


def named(evidence: Evidence, client_id: str) -> RunRow:
    return next(run for run in evidence.runs if run.client_id == client_id)


def lose_the_continued_text(evidence: Evidence) -> None:
    rest = named(evidence, "cut-rest")
    rest.text = evidence.seen[evidence.runs.index(rest)].text = rest.text[: rest.continued]


def charge_the_continued_text(evidence: Evidence) -> None:
    run = named(evidence, "cut-rest").id
    next(used for used in evidence.used if used.run_id == run).output_tokens = 300


def keep_the_old_leaf(evidence: Evidence) -> None:
    evidence.leaves["cut"] = named(evidence, "cut").message


def leave_the_next_message(evidence: Evidence) -> None:
    evidence.unsent["first"] = "waiting"


def send_the_next_message_twice(evidence: Evidence) -> None:
    named(evidence, "first-next").sent = 2


def send_the_next_message_early(evidence: Evidence) -> None:
    named(evidence, "first").ended_at = NOW + timedelta(seconds=1)


def send_the_next_message_elsewhere(evidence: Evidence) -> None:
    named(evidence, "first-next").follows = None


def pause_without_a_reason(evidence: Evidence) -> None:
    evidence.seen[-1].paused = "reply_failed"


def send_in_spite_of_a_failure(evidence: Evidence) -> None:
    named(evidence, "first").status = "failed"


def lose_the_file(evidence: Evidence) -> None:
    named(evidence, "first-next").files = 0


def break_the_ledger(evidence: Evidence) -> None:
    evidence.ledger = ["account 1: the balance is wrong"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (reopen, "still running"),
        (lose_a_word, "another text than is stored"),
        (store_half_a_reply, "not the whole"),
        (double_a_word, "never sent this"),
        (fail_a_run, "ended as failed"),
        (charge_more, "by its tokens"),
        (charge_for_more_tokens, "the provider reported"),
        (charge_a_lost_attempt, "charged for the lost attempt 1"),
        (forget_a_lost_attempt, "has no record"),
        (forget_the_usage, "has no usage record"),
        (settle_nothing, "is active"),
        (take_twice, "the ledger took"),
        (call_again, "2 whole replies for 1 attempts"),
        (call_without_a_message, "no client sent"),
        (keep_answering, "still answers"),
        (send_less, "did not send so much"),
        (break_off_and_lose_text, "characters 0 are stored"),
        (begin_a_second_run, "2 runs for one message"),
        (store_the_message_twice, "stored 2 times"),
        (store_a_refused_message, "refused though it was stored"),
        (restart_with_a_text, "restarted with"),
        (forget_the_continued_text, "continued from"),
        (contradict_the_protocol, "contradiction: gap"),
        (report_another_end, "received done, stored stopped"),
        (report_no_end, "received no end"),
        (lose_the_continued_text, "characters to continue"),
        (charge_the_continued_text, "300 tokens of output in"),
        (keep_the_old_leaf, "does not end with the reply to cut-rest"),
        (leave_the_next_message, "a next message was not sent"),
        (send_the_next_message_twice, "stored 2 times"),
        (send_the_next_message_early, "before the reply had ended"),
        (send_the_next_message_elsewhere, "does not follow the reply"),
        (pause_without_a_reason, "after a done reply it was paused for 'reply_failed'"),
        (send_in_spite_of_a_failure, "after a failed reply it was paused for ''"),
        (lose_the_file, "the message has 0 files"),
        (break_the_ledger, "the ledger: account 1"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_judge_finds_each_fault(spoil: Callable[[Evidence], None], words: str):
    evidence = Round().evidence
    spoil(evidence)

    assert words in "\n".join(problem.what for problem in judge(evidence))


def test_run_stopped_between_attempts_costs_its_lost_one():
    round_ = Round()
    run = round_.add("between", "[[tokens=40]] between", STOPPED, 0, status="stopped")
    reply = "".join(reply_pieces(40, "[[tokens=40]] between")[:7])
    run.text = round_.evidence.seen[-1].text = reply
    run.attempt = 2
    round_.use(run, 7, attempt=1)
    round_.call(run, 7, ended="aborted")
    round_.evidence.used[-1].finish = "stopped"
    assert judge(round_.evidence) == []
    round_.evidence.used[-1].finish = "crashed"
    assert any("charged for the lost attempt 1" in one.what for one in judge(round_.evidence))


def test_reply_without_word_costs_nothing():
    round_ = Round()
    run = round_.add("empty", "[[tokens=40]] empty", FAILED, 0, status="failed")
    round_.use(run, 0, attempt=1, lost=True)
    used = round_.evidence.used[-1]
    used.finish, run.cost = "empty", used.cost
    assert not any("charged" in one.what or "billed" in one.what for one in judge(round_.evidence))
    used.charged, used.absorbed = used.cost, 0
    assert any(f"{used.cost} of 0 were charged" in one.what for one in judge(round_.evidence))


def test_temporary_chat_is_purged_in_its_time_only():
    gone: dict[str, Any] = {"runs": [], "entries": (0, 0)}
    chats = {
        "kept": Chat(UUID(int=1), due=9.0, **gone),
        "purged": Chat(UUID(int=2), due=9.0, purged_at=12.0, **gone),
        "early": Chat(UUID(int=3), due=9.0, purged_at=8.9, **gone),
        "open": Chat(UUID(int=4), purged_at=12.0, **gone),
        "late": Chat(UUID(int=5), due=9.0, purged_at=90.0, **gone),
    }
    purges = Purges(SimpleNamespace(), [*chats.values()])  # type: ignore[arg-type]
    early, opened = purges.too_early()
    assert str(chats["early"].conversation) in early.what
    assert str(chats["open"].conversation) in opened.what
    [late] = purges.too_late(bound=15)
    assert str(chats["late"].conversation) in late.what


def test_failures_are_excused_only_by_their_cause():
    used_up = Round().evidence
    fail_a_run(used_up)
    used_up.runs[0].attempt = used_up.used[0].attempt = 3
    assert not any("ended as" in problem.what for problem in judge(used_up))

    broken = Round().evidence
    fail_a_run(broken)
    broken.runs[0].error_code = "provider_error"
    assert any("ended as" in problem.what for problem in judge(broken))
    broken.broke_replies = True
    assert not any("ended as" in problem.what for problem in judge(broken))


# --- What a client notices -------------------------------------------------------------------


def tab_that_received(*events: dict[str, Any]) -> LiveTab:
    """A tab that followed a run through these events."""
    tab = LiveTab(SimpleNamespace(address=lambda web: "http://127.0.0.1:9"), "session")  # type: ignore[arg-type]
    for event in events:
        tab.take({"run": "r", "attempt": 1, **event})
    return tab


STARTED = {"type": "run.started", "seq": 1}
ONE = {"type": "text.delta", "seq": 2, "text": "one"}
TWO = {"type": "text.delta", "seq": 3, "text": " two"}
END = {"type": "run.done", "seq": 4, "text": "one two"}
AGAIN = {"type": "run.restarted", "seq": FIRST_SEQS + 1, "attempt": 2}


def test_client_ends_with_text_of_last_attempt():
    assert tab_that_received(STARTED, ONE, TWO, END).text == "one two"
    later = {**ONE, "seq": FIRST_SEQS + 2, "attempt": 2}
    assert tab_that_received(STARTED, ONE, TWO, AGAIN, TWO, later).text == "one"
    assert tab_that_received(STARTED, ONE, {**AGAIN, "text": "one"}, later).text == "oneone"


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([STARTED, ONE, ONE], "doubled"),
        ([STARTED, TWO], "gap"),
        ([ONE], "gap"),
        ([STARTED, ONE, {**AGAIN, "seq": FIRST_SEQS + 2}], "gap"),
        ([STARTED, ONE, {**AGAIN, "type": "run.started"}], "beginning"),
        ([STARTED, ONE, {**TWO, "text": " 2"}, END], "text"),
        ([STARTED, ONE, {**END, "text": "two"}], "shrunk"),
        ([STARTED, ONE, TWO, {**END, "seq": 3}], "end"),
    ],
)
def test_client_reports_contradictions_of_the_protocol(events, kind):
    with pytest.raises(AssertionError, match=kind):
        tab_that_received(*events)


# --- The rounds themselves -------------------------------------------------------------------


def test_draw_covers_all_faults_and_is_reproducible():
    drawn = draw(random.Random(7), 50)

    assert drawn == draw(random.Random(7), 50)
    assert {name for names in drawn for name in names} == set(FAULTS)
    assert {len(names) for names in drawn} == {1, 2}
    assert len([names for names in drawn if names == ("kill-worker",)]) >= 3


def test_faults_of_the_pooler_are_drawn_with_it():
    drawn = {name for names in draw(random.Random(7), 50, pooled=True) for name in names}
    assert drawn == {*FAULTS, *POOLER_FAULTS}


@pytest.mark.timeout(300)
def test_one_round_passes():
    # The bound is generous, as other tests may run meanwhile: only a hang fails.
    options = "--rounds 1 --conversations 15 --bound 90 --faults kill-worker,flushall"
    assert "1 rounds in" in output_of("tests.chaos.rounds", *options.split())


@pytest.mark.long
@pytest.mark.timeout(300)
def test_five_rounds_pass():
    # With this seed the worker is frozen for ten seconds, long enough to lose its runs.
    faults = "kill-worker,stop-worker,flushall,restart-postgres,kill-web"
    options = "--rounds 5 --conversations 30 --seed 3434 --bound 90 --faults"
    assert "5 rounds in" in output_of("tests.chaos.rounds", *options.split(), faults)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_rolling_restart_loses_no_reply():
    options = "--rolling --conversations 20"
    assert " 0 begun again" in output_of("tests.chaos.rounds", *options.split())


def test_expected_reply_is_the_whole_one():
    ask = Ask(client_id="a", text="[[tokens=30 reasoning=4]] a")

    assert ask.whole == reply_text(30, ask.text)
    assert ask.thoughts
