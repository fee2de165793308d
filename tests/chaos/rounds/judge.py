"""The problems of a round, found in its rows, the provider's record and the clients' events.

It calls none of the code that it judges; it only compares the values in `Evidence`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from tests.chaos.rounds.asks import Ask
from tests.chaos.rounds.evidence import Evidence, Problem, RunRow, Used
from tests.support.fake_llm import Call
from tests.support.fake_llm.replies import pieces_after

ACTIVE = {"queued", "running"}
MILLION = 1_000_000
LOST = "crashed"  # `finish` in the usage record of a lost attempt
EMPTY = "empty"  # and in that of a reply without a word
TRIES = 3  # of chat.llm.provider: the first and its retries


def judge(evidence: Evidence) -> list[Problem]:
    """All problems of a round; a correct one has none."""
    return [
        *_of_clients(evidence),
        *_of_runs(evidence),
        *_of_conversations(evidence),
        *_of_usage(evidence),
        *_of_calls(evidence),
        *_of_money(evidence),
    ]


def _of_clients(evidence: Evidence) -> Iterator[Problem]:
    runs = {run.client_id: run for run in evidence.runs}
    for seen in evidence.seen:
        run, name = runs.get(seen.client_id), (seen.client_id, seen.run)
        for kind, detail in seen.wrong:
            # Redis alone has a dead worker's unfinished text, and may have lost it.
            if kind == "shrunk" and evidence.lost_memory and seen.end != "done":
                continue
            # Its repetition was refused after the answer to the first frame, which another socket had sent.
            if kind == "refused" and evidence.lost_answers:
                continue
            yield Problem(f"a client saw a contradiction: {kind}: {detail}", *name)
        if run is None or not seen.run:
            yield Problem("a client has no run", *name)
        elif seen.run != str(run.id):
            yield Problem(f"a client followed another run than {run.id}", *name)
        elif not seen.end:
            yield Problem("a client received no end", *name)
        elif seen.end != run.status:
            yield Problem(f"received {seen.end}, stored {run.status}", *name)
        elif seen.text != run.text:
            texts = f"\n    {seen.text!r}\n    {run.text!r}"
            yield Problem(f"a client has another text than is stored:{texts}", *name)
        for before, after in seen.restarts:
            if run is None or evidence.lost_memory:
                continue
            if not run.continues and after:
                yield Problem(f"restarted with {after!r}", *name)
            if run.continues and not after.startswith(before):
                yield Problem(f"continued from {after!r} after {before!r}", *name)
        refused_at = max(seen.refusals, default=0.0)
        if run is not None and run.queued_at.timestamp() < refused_at and not evidence.lost_answers:
            yield Problem("a message was refused though it was stored", *name)


def _of_runs(evidence: Evidence) -> Iterator[Problem]:
    by_client = defaultdict(list)
    for run in evidence.runs:
        by_client[run.client_id].append(run)
    for ask in evidence.asks:
        runs = by_client.pop(ask.client_id, [])
        if len(runs) != 1:
            yield Problem(f"there are {len(runs)} runs for one message", ask.client_id)
        for run in runs:
            yield from (
                Problem(what, ask.client_id, str(run.id)) for what in _of_run(evidence, ask, run)
            )
    for client_id in by_client:
        yield Problem("this run has no message", client_id)


def _of_run(evidence: Evidence, ask: Ask, run: RunRow) -> Iterator[str]:
    if run.status in ACTIVE:
        yield f"the run is still {run.status}"
        return
    if run.sent != 1:
        yield f"the message is stored {run.sent} times"
    is_expected = run.status in ask.ends and run.error_code in {"", "provider_error"}
    if not is_expected and not _is_excused(evidence, run):
        yield (
            f"the run ended as {run.status} ({run.error_code}) after {run.attempt} attempts,"
            f" not as {' or '.join(sorted(ask.ends))}"
        )
    if run.status == "done" and (run.text, run.reasoning) != (ask.whole, ask.thoughts):
        yield f"the reply is not the whole:\n    {run.text!r}\n    {ask.whole!r}"
    if not ask.whole.startswith(run.text) or not ask.thoughts.startswith(run.reasoning):
        yield f"the provider never sent this:\n    {run.text!r}\n    {ask.whole!r}"
    if run.text and len(run.text) <= run.continued:
        yield f"of {run.continued} characters to continue {len(run.text)} are stored"
    if run.files != bool(ask.file):
        yield f"the message has {run.files} files"


def _is_excused(evidence: Evidence, run: RunRow) -> bool:
    if run.error_code == "unavailable":
        return run.status == "failed" and run.attempt >= evidence.max_attempts
    return run.status == "failed" and run.error_code == "provider_error" and evidence.broke_replies


def _of_conversations(evidence: Evidence) -> Iterator[Problem]:
    """Each ends with its newest reply, and its next message was sent once, after the present reply."""
    runs = {run.client_id: run for run in evidence.runs}
    seen_of = {seen.client_id: seen for seen in evidence.seen}
    others = {ask.first: runs[ask.client_id] for ask in evidence.asks if ask.client_id in runs}
    ways = {ask.first: ask.way for ask in evidence.asks}
    # In a rolling restart the messages of a conversation follow each other.
    asked = [
        runs[ask.client_id] for ask in evidence.asks if ask.client_id in runs and not ask.first
    ]
    last = {run.conversation: run for run in sorted(asked, key=lambda run: run.queued_at)}
    for ask in evidence.asks:
        run = runs.get(ask.client_id)
        if run is None or ask.first:
            continue
        name, newest = (run.client_id, str(run.id)), run
        way, other = ways.get(ask.client_id), others.get(ask.client_id)
        if other is not None and (
            way == "next"
            # Another reply that failed replaces none.
            or (way in {"regenerate", "continue"} and other.status != "failed" and other.text)
        ):
            newest = other
        leaf = evidence.leaves.get(run.conversation, newest.message)
        if run is last[run.conversation] and leaf != newest.message:
            yield Problem(
                f"the conversation does not end with the reply to {newest.client_id}", *name
            )
        if (text := evidence.unsent.get(run.conversation)) is not None:
            yield Problem(f"a next message was not sent: {text}", *name)
        if other is None or way != "next":
            continue
        name = (other.client_id, str(other.id))
        if other.follows != run.message:
            yield Problem("the next message does not follow the reply", *name)
        if run.ended_at is None or other.queued_at < run.ended_at:
            yield Problem("the next message was sent before the reply had ended", *name)
        seen = seen_of.get(other.client_id)
        reason = {"failed": "reply_failed", "stopped": "reply_stopped"}.get(run.status, "")
        # A message that was written after the end is sent at once.
        if seen is not None and seen.paused != (reason if seen.waited else ""):
            yield Problem(f"after a {run.status} reply it was paused for {seen.paused!r}", *name)


def _of_usage(evidence: Evidence) -> Iterator[Problem]:
    """Each attempt that delivered something has a record; only the one that ended the run is charged."""
    records = {(used.run_id, used.attempt): used for used in evidence.used}
    delivered: defaultdict[str, set[int]] = defaultdict(set)
    for seen in evidence.seen:
        delivered[seen.run] |= seen.delivered
    for run in evidence.runs:
        name = (run.client_id, str(run.id))
        last = records.pop((run.id, run.attempt), None)
        if last is None and run.status == "stopped":
            # It lost a worker and was stopped before the provider accepted another request.
            stopped = (records.get((run.id, attempt)) for attempt in range(1, run.attempt))
            last = next((used for used in stopped if used and used.finish == "stopped"), None)
            if last is not None:
                del records[run.id, last.attempt]
        # An attempt may fail or be stopped before it added to the text that it continues.
        may_add_nothing = (run.continues and run.attempt > 1) or run.continued
        may_add_nothing = may_add_nothing and run.status != "done"
        if (run.text or run.reasoning) and last is None and not may_add_nothing:
            yield Problem("a reply has no usage record", *name)
        if last is None and (run.charged or run.cost):
            yield Problem(f"{run.charged} were charged for no usage", *name)
        if last is not None:
            if (last.cost, last.charged) != (run.cost, run.charged):
                yield Problem(f"the run cost {run.cost}, its usage record {last.cost}", *name)
            yield from (Problem(what, *name) for what in _of_cost(evidence, last))
            added = len(run.text[run.continued :].encode()) + len(run.reasoning.encode())
            if run.continued and last.output_tokens > added:
                yield Problem(f"{last.output_tokens} tokens of output in {added} new bytes", *name)
            due = 0 if last.finish == EMPTY else last.cost
            if last.charged != due:
                yield Problem(f"{last.charged} of {due} were charged", *name)
            if (last.finish == EMPTY) != (run.status != "stopped" and not run.text):
                yield Problem(f"a {run.status} reply was billed as {last.finish}", *name)
        for attempt in range(1, run.attempt):
            if last is not None and attempt == last.attempt:
                continue
            lost = records.pop((run.id, attempt), None)
            if lost is None:
                if attempt in delivered[str(run.id)] and not evidence.lost_memory:
                    yield Problem(f"attempt {attempt} delivered text and has no record", *name)
                continue
            if (lost.charged, lost.absorbed) != (0, lost.cost):
                yield Problem(f"{lost.charged} were charged for the lost attempt {attempt}", *name)
            yield from (Problem(what, *name) for what in _of_cost(evidence, lost))
    for run_id, attempt in records:
        yield Problem(f"usage of attempt {attempt}, which no run had", run=str(run_id))


def _of_cost(evidence: Evidence, used: Used) -> Iterator[str]:
    price = evidence.price
    micro = (
        (used.input_tokens - used.cached_tokens) * price.input
        + used.cached_tokens * price.cached
        + used.output_tokens * price.output
    )
    cost = -(-micro // MILLION)
    if used.cost != cost:
        yield f"attempt {used.attempt} cost {used.cost}, by its tokens {cost}"
    if used.charged + used.shortfall + used.absorbed != used.cost:
        yield f"attempt {used.attempt} does not add up"


def _of_calls(evidence: Evidence) -> Iterator[Problem]:
    """The runs were charged for the calls that the provider recorded."""
    by_text = defaultdict(list)
    for call in evidence.calls:
        by_text[call.message].append(call)
    runs = {run.client_id: run for run in evidence.runs}
    records = {(used.run_id, used.attempt): used for used in evidence.used}
    # A message with two runs, compared or regenerated, has their calls together.
    attempts: Counter[str] = Counter()
    for ask in evidence.asks:
        attempts[ask.prompt] += runs[ask.client_id].attempt if ask.client_id in runs else 0
    for ask in evidence.asks:
        run, calls = runs.get(ask.client_id), by_text.get(ask.prompt, [])
        if run is None:
            if calls:
                yield Problem("the provider was called for a message without a run", ask.client_id)
            continue
        used = records.get((run.id, run.attempt))
        problems = [*_of_calls_for(ask, run, calls, used, attempts[ask.prompt])]
        if run.error_code == "provider_error" and not evidence.broke_replies:
            problems += _of_broken_off(ask, run, calls)
        for what in problems:
            ends = ", ".join(f"{call.ended} after {call.sent}" for call in calls)
            yield Problem(f"{what} (calls: {ends})", ask.client_id, str(run.id))
    for text in by_text.keys() - attempts.keys():
        yield Problem(f"the provider was called for a message that no client sent: {text}")


def _of_calls_for(
    ask: Ask, run: RunRow, calls: list[Call], used: Used | None, attempts: int
) -> Iterator[str]:
    ended = Counter(call.ended for call in calls)
    if ended["active"]:
        yield "the provider still answers"
    if len(calls) > TRIES * attempts:
        yield f"{len(calls)} calls for {attempts} attempts"
    if ended["finished"] > attempts:
        yield f"{ended['finished']} whole replies for {attempts} attempts"
    if len(run.text) > _characters_sent(ask, calls):
        yield "the provider did not send so much"
    if run.status == "done" and not ended["finished"]:
        yield "the provider finished no reply"
    usages = [
        (
            usage["prompt_tokens"],
            usage["completion_tokens"],
            usage["completion_tokens_details"]["reasoning_tokens"],
        )
        for call in calls
        if (usage := call.usage)
    ]
    if run.status == "done" and used is not None and used.source == "provider":
        charged = used.input_tokens, used.output_tokens, used.reasoning_tokens
        if charged not in usages:
            yield f"charged for {charged}, but the provider reported {usages}"


def _of_broken_off(ask: Ask, run: RunRow, calls: list[Call]) -> Iterator[str]:
    """A provider that breaks off closes its connection in order, so all that it sent arrives."""
    if len(run.text) < (sent := _characters_sent(ask, calls)):
        yield f"of {sent} characters {len(run.text)} are stored"


def _characters_sent(ask: Ask, calls: list[Call]) -> int:
    """Characters of the reply up to the end of the longest call."""
    pieces = ask.pieces
    whole = "".join(pieces)
    return max(
        (
            call.prefix + sum(map(len, pieces_after(whole[: call.prefix], pieces)[: call.sent]))
            for call in calls
        ),
        default=0,
    )


def _of_money(evidence: Evidence) -> Iterator[Problem]:
    for what in evidence.ledger:
        yield Problem(f"the ledger: {what}")
    for run in evidence.runs:
        if run.status in ACTIVE:
            continue
        name = (run.client_id, str(run.id))
        charged = run.charged or 0
        status, settled = evidence.holds.get(run.id, ("absent", 0))
        if status != ("settled" if charged else "released"):
            yield Problem(f"the hold of an ended run is {status}", *name)
        elif settled != charged:
            yield Problem(f"{settled} were settled, {charged} charged", *name)
        if (taken := evidence.charges.get(run.id, 0)) != charged:
            yield Problem(f"the ledger took {taken}, the run has {charged}", *name)
    for run_id in evidence.charges.keys() - {run.id for run in evidence.runs}:
        yield Problem("the ledger has a charge without a run", run=str(run_id))
