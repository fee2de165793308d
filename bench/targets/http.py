"""Requests of several readers at once, with every response checked; and conversations for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import ClientSession, TCPConnector

from bench import load
from bench.load import Reply
from bench.parley import Parley, Tab
from bench.tally import Tally

# Django accepts any token that cookie and header agree on.
CSRF = "bench" * 6 + "00"


@dataclass(frozen=True)
class Request:
    """A GET, or a POST of the fields that `form` returns, called for each request.

    `accept` is the header of that name. `problem` describes what is wrong with a response, from its
    status and body; it returns an empty text for a right one.
    """

    path: str
    problem: Callable[[int, bytes], str]
    form: Callable[[], dict[str, str]] | None = None
    accept: str = "text/html"


async def repeat(system: Parley, request: Request, readers: int, seconds: float) -> Answers:
    """Let so many readers, all of them the first user, repeat a request for `seconds`."""
    answers = Answers([], [])
    until = time.monotonic() + seconds

    async def read(number: int) -> None:
        async with session(system, number) as client:
            while time.monotonic() < until:
                await answers.ask(client, request)

    await asyncio.gather(*(read(number) for number in range(readers)))
    return answers


async def write_conversation(system: Parley, messages: int, tokens: int) -> Tab:
    """Let the first user have messages answered; return the closed tab. Raises RuntimeError."""
    tab = await system.connect(0)
    for _ in range(messages):
        reply = Reply(Tally(tokens))
        await load.converse(tab, load.prompt(tokens, rate=0), reply, patience=load.PATIENCE)
        if reply.failure or not reply.tally.is_clean:
            raise RuntimeError(f"no conversation: {reply.failure or reply.tally.faults()}")
    await tab.close()
    return tab


def session(system: Parley, number: int, *, user: int | None = 0) -> ClientSession:
    """The browser of reader `number`, as this user or as a visitor, with one connection."""
    cookies = {"csrftoken": CSRF}
    if user is not None:
        cookies["sessionid"] = system.sessions[user]
    return ClientSession(
        f"http://127.0.0.1:{system.ports[number % len(system.ports)]}",
        cookies=cookies,
        headers={"X-CSRFToken": CSRF},
        connector=TCPConnector(limit=1),
    )


@dataclass(frozen=True)
class Answers:
    """Milliseconds of each response, and the problems of wrong ones."""

    times: list[float]
    problems: list[str]

    async def ask(self, client: ClientSession, request: Request) -> None:
        """Send the request once."""
        began = time.monotonic()
        async with client.request(
            "POST" if request.form else "GET",
            request.path,
            data=request.form() if request.form else None,
            headers={"Accept": request.accept},
            allow_redirects=False,
        ) as answer:
            body = await answer.read()
        self.times.append(1000 * (time.monotonic() - began))
        problem = request.problem(answer.status, body)
        if problem:
            self.problems.append(f"{request.path}: {problem}")
