"""Renewal of the leases of a worker's runs, by compare-and-set on the attempt.

An expired lease (this process was suspended, Redis was unreachable) is taken again only if, by the
database, no other process claimed or ended the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from chat.models import Run
from chat.streaming import places
from chat.streaming.leases import KEY_SECONDS, LEASE_MILLISECONDS, LEASE_SECONDS
from chat.streaming.writer import RunWriter
from chatproject.lib import db
from chatproject.lib.redis.pipeline import Pipeline, pack

# Renews each lease whose value is the attempt. Answers 1 (renewed), 0 (expired) or -1 (another's).
RENEW = """
local answers = {}
for i, key in ipairs(KEYS) do
  local held = redis.call('GET', key)
  if held == ARGV[i] then
    redis.call('PEXPIRE', key, ARGV[#ARGV])
    answers[i] = 1
  elseif held then
    answers[i] = -1
  else
    answers[i] = 0
  end
end
return answers
"""


async def renew(
    pipeline: Pipeline, writers: Sequence[RunWriter], drop: Callable[[RunWriter], None]
) -> None:
    """Renew the leases of these runs, their places and the lifetime of their logs, in one write.

    Calls `drop` for each run that another process has. Raises redis.RedisError and db.UNREACHABLE.
    """
    now = asyncio.get_running_loop().time()
    keys = [writer.lease_key for writer in writers]
    attempts = [writer.attempt for writer in writers]
    commands = [pack("EVAL", RENEW, len(keys), *keys, *attempts, LEASE_MILLISECONDS)]
    commands += [pack("EXPIRE", writer.log_key, KEY_SECONDS) for writer in writers]
    placed = {writer.run_id: writer.place for writer in writers if writer.place is not None}
    if placed:
        held, runs = map(places.places_key, placed.values()), map(str, placed)
        lease = places.LEASE_MILLISECONDS
        commands.append(pack("EVAL", places.RENEW, len(placed), *held, lease, *runs))
    answers = (await pipeline.execute(b"".join(commands), len(commands)))[0]
    if isinstance(answers, Exception):
        raise answers
    expired: list[RunWriter] = []
    for writer, answer in zip(writers, answers, strict=True):
        if answer == 1:
            writer.lease_until = now + LEASE_SECONDS
        elif answer == 0:
            expired.append(writer)
        else:
            drop(writer)
    if expired:
        await retake(pipeline, expired, drop)


async def retake(
    pipeline: Pipeline, writers: Sequence[RunWriter], drop: Callable[[RunWriter], None]
) -> None:
    """Take expired leases again where, by the database, this worker still has the run."""
    ours = await db.run(Run.objects.running_at, {w.run_id: w.attempt for w in writers})
    now = asyncio.get_running_loop().time()
    for writer in writers:
        is_taken = writer.run_id in ours and await pipeline.command(
            "SET", writer.lease_key, writer.attempt, "PX", LEASE_MILLISECONDS, "NX"
        )
        # A closing writer's run was ended by this worker: only the last event is to be written.
        if is_taken or writer.closed is not None:
            writer.lease_until = now + LEASE_SECONDS
            writer.is_leased = True
            writer.store_acceptance_again()  # Redis may have lost it with the lease
        elif not writer.is_ending:
            drop(writer)
        # Else it has ended, perhaps by this worker: nothing is written until that is certain.
