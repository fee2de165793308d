"""Load of users who all read a reply at the same time, and its cost in a window in which all do.

**The window** is the same for every system: it begins SETTLE seconds after the last user got the
first token and lasts `seconds`; the replies end only after it. CPU per token is the CPU time that a
role used in the window, divided by the tokens that reached clients in it. CPU per message is the
rest: the CPU of the whole run, from before the first message was sent until after the last reply has
ended, less CPU per token times all tokens, divided by the messages.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from bench import figures, processes
from bench.systems import Client, System, WrongReply
from bench.tally import Tally
from tests.support.fake_llm import FakeLLM

RATE = 20.0  # tokens a second of each reply

SETTLE = 2.0  # seconds from the last user's first token to the window
STARTING = 8  # users who wait for their first token at a time, while a run begins
STARTING_PATIENCE = 1.0  # seconds until the next one starts anyway: some systems never keep up
STARTING_SECONDS = 120.0  # in which all must have begun
LONGEST = 4000  # tokens of a reply: below the cap that a new installation sets
ENDING_GAP = 0.02  # seconds from one reply's end to the next one's
AFTER = 1.0  # seconds after the last reply in which its end may still cost something
PATIENCE = 60.0  # seconds that a reply may take beyond the time in which the provider sends it
CONNECTING = 20  # connections that are opened at a time

# Roles whose CPU is a system's cost; that of others is shown beside it.
COUNTED = ("web", "worker", "redis", "postgres")

_groups = itertools.count(1)


@dataclass
class Reply:
    """The course of one message; `failure` has the reason if its reply did not end properly."""

    tally: Tally
    sent_at: float = 0.0  # time.monotonic()
    ended_at: float = 0.0
    failure: str = ""
    begun: asyncio.Event = field(default_factory=asyncio.Event)  # a token came, or it has ended

    @property
    def ttft(self) -> float:
        """Seconds from sending to the first token, the provider's own wait included."""
        return self.tally.first_at - self.sent_at


@dataclass
class Round:
    """The result of one measurement: figures by name, and the reasons of failures."""

    figures: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def prompt(
    tokens: int, *, rate: float = RATE, first: float = 0.0, key: str = "", group: str = ""
) -> str:
    """A message that asks the fake provider for such a reply, of stamped tokens."""
    named = "".join(f" {name}={word}" for name, word in (("key", key), ("group", group)) if word)
    return f"[[stamps=1 tokens={tokens} rate={rate:g} first={first:g}{named}]]"


async def connect(system: System, users: Sequence[int]) -> list[Client]:
    """A connection of each of these users."""
    limit = asyncio.Semaphore(CONNECTING)

    async def one(user: int) -> Client:
        async with limit:
            return await system.connect(user)

    return list(await asyncio.gather(*(one(user) for user in users)))


async def close(clients: Sequence[Client]) -> None:
    """Close connections."""
    await asyncio.gather(*(client.close() for client in clients))


async def converse(client: Client, text: str, reply: Reply, *, patience: float) -> None:
    """Send one message and read its reply into `reply`, or the reason of its failure."""
    reply.sent_at = time.monotonic()
    feed = reply.tally.feed
    try:
        async with asyncio.timeout(patience):
            async for piece in client.send(text):
                feed(piece)
                if reply.tally.delays:
                    reply.begun.set()
    except TimeoutError:
        reply.failure = f"no end after {patience:.0f} s and {reply.tally.arrived} tokens"
    except (WrongReply, ConnectionError) as error:
        reply.failure = str(error) or type(error).__name__
    reply.ended_at = time.monotonic()
    reply.begun.set()


async def ask(clients: Sequence[Client], tokens: int, *, rate: float = RATE) -> list[Reply]:
    """Have all clients send a message at once, and wait until their replies have ended."""
    replies = [Reply(Tally(tokens)) for _ in clients]
    patience = PATIENCE + (tokens / rate if rate else 0.0)
    await asyncio.gather(
        *(
            converse(client, prompt(tokens, rate=rate), reply, patience=patience)
            for client, reply in zip(clients, replies, strict=True)
        )
    )
    return replies


async def warm_up(system: System, users: int) -> None:
    """Have some messages answered, so that imports and empty pools and caches are not measured.

    Raises WrongReply when an answer is wrong.
    """
    clients = await connect(system, range(min(users, 20)))
    for _ in range(2):
        found = judge(await ask(clients, 10))
        if found.failures:
            raise WrongReply(f"{system.name} at its warm-up: {found.failures[0]}")
    await close(clients)


def judge(replies: Sequence[Reply]) -> Round:
    """Count the faults of replies that have ended; each reply with one is a failure."""
    failures = []
    for reply in replies:
        faults = [fault for fault in (reply.failure, reply.tally.faults()) if fault]
        if faults:
            failures.append("; ".join(faults))
    kinds = ("lost", "doubled", "out_of_order", "garbled")
    counts = {kind: sum(getattr(reply.tally, kind) for reply in replies) for kind in kinds}
    return Round({**counts, "failed": len(failures)}, failures)


async def stream(system: System, provider: FakeLLM, users: int, *, seconds: float) -> Round:
    """Let users read replies at RATE tokens a second, and measure a window of `seconds`.

    Raises ConnectionError when users cannot connect.
    """
    clients = await connect(system, range(users))
    roles = {**system.roles(), "provider": [provider.pid]}
    group = f"group-{next(_groups)}"
    replies = [Reply(Tally(LONGEST)) for _ in clients]
    used = [readings(roles)]
    began = time.monotonic()
    tasks = await start_all(clients, replies, group)
    all_stream_after = time.monotonic() - began
    await asyncio.sleep(SETTLE)

    marks = [reply.tally.arrived for reply in replies]
    used.append(readings(roles))
    opened, since = time.monotonic(), time.time()
    await asyncio.sleep(seconds)
    used.append(readings(roles))
    window, until = time.monotonic() - opened, time.time()
    delays = [
        delay / 1000
        for reply, mark in zip(replies, marks, strict=True)
        for delay in reply.tally.delays[mark:]
    ]
    ended_early = sum(bool(reply.ended_at) for reply in replies)
    memory = processes.memory(roles)

    await asyncio.to_thread(provider.end, group, over=users * ENDING_GAP)
    await asyncio.gather(*tasks)
    took = time.monotonic() - began
    await asyncio.sleep(AFTER)
    used.append(readings(roles))
    await close(clients)
    blocks = await system.loop_blocks(since, until)
    calls = await asyncio.to_thread(lambda: provider.calls)
    sent = {call.key: call.sent for call in calls if call.group == group}
    for number, reply in enumerate(replies):
        # A message that never reached the provider has no lost tokens, but it is a failure.
        reply.tally.expected = sent.get(str(number), 0)

    found = judge(replies)
    found.figures |= {
        "seconds": took,
        "window_s": window,
        "all_stream_after_s": all_stream_after,
        "tokens_per_s": len(delays) / window,
        **figures.spread("delay_ms", delays),
        **figures.spread("ttft_ms", first_tokens(replies)),
        **{f"rss_mb.{role}": megabytes for role, megabytes in memory.items()},
        **{f"loop_blocks.{role}": len(each) for role, each in blocks.items()},
        **{f"loop_block_ms.{role}": max(each, default=0.0) for role, each in blocks.items()},
    }
    if ended_early:
        found.failures.append(f"{ended_early} of {users} replies ended before the window did")
    elif delays:
        all_tokens = sum(reply.tally.arrived for reply in replies)
        found.figures |= costs(used, len(delays), all_tokens, users)
    else:
        found.failures.append("no token arrived in the window")
    return found


def first_tokens(replies: Sequence[Reply]) -> list[float]:
    """Milliseconds to the first token, of replies that have one."""
    return [1000 * reply.ttft for reply in replies if reply.tally.arrived]


async def start_all(
    clients: Sequence[Client], replies: Sequence[Reply], group: str
) -> list[asyncio.Task[None]]:
    """Have all clients send, STARTING at a time; return when each has a first token, or has failed."""
    patience = STARTING_SECONDS + LONGEST / RATE + PATIENCE
    slots = asyncio.Semaphore(STARTING)
    tasks: list[asyncio.Task[None]] = []

    async def one(number: int) -> None:
        async with slots:
            text = prompt(LONGEST, key=str(number), group=group)
            talk = converse(clients[number], text, replies[number], patience=patience)
            tasks.append(asyncio.create_task(talk))
            with suppress(TimeoutError):
                async with asyncio.timeout(STARTING_PATIENCE):
                    await replies[number].begun.wait()
        await replies[number].begun.wait()

    try:
        async with asyncio.timeout(STARTING_SECONDS):
            await asyncio.gather(*(one(number) for number in range(len(clients))))
    except TimeoutError:
        for reply in replies:
            if not reply.begun.is_set():
                reply.failure = f"it had not begun after {STARTING_SECONDS:.0f} s"
    return tasks


def readings(roles: processes.Roles) -> dict[str, float]:
    """Seconds of CPU time so far, by role, and of the load itself."""
    # The load not by its process id: the measured processes are its children.
    return {**processes.cpu(roles), "load": time.process_time()}


def costs(
    used: Sequence[Mapping[str, float]], in_window: int, in_all: int, messages: int
) -> dict[str, float]:
    """CPU in microseconds per token and in milliseconds per message, by role and for all COUNTED.

    `used` are the readings before the run, at both ends of the window, and after the run.
    """
    before, opened, closed, after = used
    per_token = {role: (closed[role] - opened[role]) / in_window for role in before}
    per_message = {
        role: (after[role] - before[role] - per_token[role] * in_all) / messages for role in before
    }
    counted = [role for role in COUNTED if role in before]
    return {
        "cpu_us_per_token": 1e6 * sum(per_token[role] for role in counted),
        **{f"cpu_us_per_token.{role}": 1e6 * cost for role, cost in per_token.items()},
        "cpu_ms_per_message": 1e3 * sum(per_message[role] for role in counted),
        **{f"cpu_ms_per_message.{role}": 1e3 * cost for role, cost in per_message.items()},
    }
