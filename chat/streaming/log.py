"""The log of a run in Redis, which may be lost at any time.

    run:<id>:log     stream; entry <seq>-0 holds one event, as the bytes sent to the browser

The number of an event is its id in the stream, which therefore serves as a fencing token: a later
attempt's numbers are higher, and Redis refuses the lower ones of a worker that was presumed dead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec
import redis.asyncio

from chat import protocol
from chat.streaming import groups
from chat.streaming.leases import accepted_key, lease_key, stop_key
from chatproject.lib.pubsub.layer import publish
from chatproject.lib.redis.clients import sync_client

# After a run has ended followers read its row; the log serves only those already reading it.
ENDED_LOG_SECONDS = 60

FIELD = b"e"
PAGE = 1000  # entries of one read


def log_key(run_id: UUID) -> str:
    return f"run:{run_id}:log"


def entry_id(seq: int) -> str:
    """Return the stream id of the event with this number."""
    return f"{seq}-0"


async def read_after(client: redis.asyncio.Redis, run_id: UUID, after: int) -> list[bytes]:
    """Return the logged events with a number above `after`, in order, PAGE of them at most."""
    entries = await client.xrange(log_key(run_id), min=f"({entry_id(after)}", count=PAGE)
    return [fields[FIELD] for _, fields in entries]


@dataclass(frozen=True, slots=True)
class LoggedReply:
    """The reply as one attempt left it: text, reasoning, the number of its last event, and texts of tool calls."""

    text: str
    reasoning: str
    seq: int
    tools: str = ""


class _Delta(msgspec.Struct):
    type: str
    attempt: int
    seq: int
    text: str = ""
    reasoning: str = ""
    name: str = ""
    arguments: str = ""


def read_reply(run_id: UUID, attempt: int) -> LoggedReply:
    """Read an attempt's reply from the log; empty if the log is lost. Raises redis.RedisError."""
    return read_replies([(run_id, attempt)])[0]


def read_replies(attempts: Iterable[tuple[UUID, int]]) -> list[LoggedReply]:
    """Read the replies of several runs, each with the number of its attempt; see `written`."""
    firsts = []
    pipeline = sync_client().pipeline(transaction=False)
    for run_id, attempt in attempts:
        first, next_first = protocol.first_seq(attempt), protocol.first_seq(attempt + 1)
        firsts.append(first)
        pipeline.xrange(log_key(run_id), min=entry_id(first), max=entry_id(next_first - 1))
    return [_join(first, log) for first, log in zip(firsts, pipeline.execute(), strict=True)]


def _join(first: int, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> LoggedReply:
    text: list[str] = []
    reasoning: list[str] = []
    tools: list[str] = []
    seq = first - 1
    for _, fields in entries:
        delta = msgspec.json.decode(fields[FIELD], type=_Delta)
        seq = delta.seq
        if delta.type in {"run.restarted", "reply.replaced"}:
            text, reasoning = [delta.text], [delta.reasoning]
        elif delta.type == "text.delta":
            text.append(delta.text)
        elif delta.type == "reasoning.delta":
            reasoning.append(delta.text)
        elif delta.type == "tool.delta":
            tools.append(delta.name + delta.arguments)
    return LoggedReply("".join(text), "".join(reasoning), seq, "".join(tools))


def forget(run_ids: Sequence[UUID]) -> None:
    """Delete all keys of runs that have ended, ahead of their time. Raises redis.RedisError."""
    keys = (log_key, lease_key, stop_key, accepted_key)
    if run_ids:
        sync_client().delete(*(key(run_id) for run_id in run_ids for key in keys))


def publish_end(event: protocol.RunEnd) -> None:
    """Log and publish the end of a run that has no worker. Call it after the commit.

    Raises redis.RedisError.
    """
    data = event.encode()
    pipeline = sync_client().pipeline(transaction=False)
    pipeline.xadd(log_key(event.run), {FIELD: data}, id=entry_id(event.seq))
    pipeline.expire(log_key(event.run), ENDED_LOG_SECONDS)
    pipeline.delete(lease_key(event.run), accepted_key(event.run))
    # A log with a higher number refuses the event, which is no error: the row is authoritative.
    pipeline.execute(raise_on_error=False)
    publish(groups.run_group(event.run), data)
