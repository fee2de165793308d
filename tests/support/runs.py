"""Runs, for tests: sent, claimed or ended without a worker, generated here, and their logs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import msgspec
import redis
from django.utils import timezone

from accounts.models import User
from chat import protocol
from chat.generation import generate
from chat.models import Assistant, Conversation, Message, Run
from chat.streaming import log as run_log
from chatproject.lib import db
from tests.support.conversations import begin, send
from tests.support.fake_llm import FakeLLM, parse_directives, reply_pieces


def fresh(pk: UUID) -> Run:
    """Read a run, with its message and conversation."""
    return Run.objects.select_related("message", "conversation").get(pk=pk)


def send_many(user: User, assistant: Assistant, count: int, text: str = "Hello") -> list[Run]:
    """Send the first messages of as many new conversations."""
    return [send(user, begin(user, assistant), text) for _ in range(count)]


def mark_running(run: Run, attempt: int = 1, **fields: Any) -> None:
    """Change a run's row like a worker that claims it for this attempt."""
    Run.objects.filter(pk=run.pk).update(status="running", attempt=attempt, **fields)


def send_running(user: User, conversation: Conversation, attempt: int = 1, **fields: Any) -> Run:
    """Send a message and mark its run as running at this attempt."""
    run = send(user, conversation)
    mark_running(run, attempt, **fields)
    return run


def mark_done(run: Run, text: str = "A reply") -> Run:
    """Change the rows of a run and its message as if it had ended with this text."""
    Run.objects.filter(pk=run.pk).update(status="done", attempt=1, ended_at=timezone.now())
    Message.objects.filter(pk=run.message_id).update(status="done", text=text)
    return run


def logged(client: redis.Redis, run_id: UUID) -> list[dict[str, Any]]:
    """Return the events in a run's log."""
    entries: Any = client.xrange(run_log.log_key(run_id))
    return [msgspec.json.decode(fields[run_log.FIELD]) for _, fields in entries]


def delta(run: Run, seq: int, text: str, attempt: int = 1) -> protocol.TextDelta:
    """Return an event with more of a run's reply."""
    return protocol.TextDelta(run=run.pk, attempt=attempt, seq=seq, text=text)


def add_to_log(client: redis.Redis, *events: protocol.RunEvent) -> None:
    """Append events to the logs of their runs, without publishing them."""
    for event in events:
        entry: Any = {run_log.FIELD: event.encode()}
        client.xadd(run_log.log_key(event.run), entry, id=run_log.entry_id(event.seq))


def held_text(text: str) -> str:
    """Return the part of a reply that the provider sends before the `[[hold=N]]` of a message."""
    asked = parse_directives(text)
    return "".join(reply_pieces(asked.tokens, text)[: asked.hold])


async def generate_until_hold(
    run: Run, provider: FakeLLM, job: Coroutine[Any, Any, Any] | None = None
) -> asyncio.Task[Any]:
    """Generate a run's next attempt; return the task once the log has the `held_text`.

    `job` is the coroutine to run, by default `generate.run`. Waiting for the log makes the test
    deterministic: the provider may hold before the worker has read all of that text.
    """
    attempt = run.attempt + 1
    sent = await db.run(Message.objects.get, children=run.message_id)
    generating = asyncio.create_task(job or generate.run(run.pk, attempt))
    await asyncio.to_thread(provider.wait, held=1)
    await until(lambda: run_log.read_reply(run.pk, attempt).text == held_text(sent.text))
    return generating


async def until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Wait until a condition holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
