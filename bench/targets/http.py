"""Asks for the same thing again and again, as several readers at once, and looks at every answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import ClientSession, TCPConnector

from bench.parley import Parley

# Django takes a token that stands in cookie and header alike.
CSRF = "bench" * 6 + "00"


@dataclass(frozen=True)
class Request:
    """A GET, or with `form` a POST of what that returns, anew each time.

    `accept` is the kind of answer that is asked for, as in the header. `problem` says what is wrong with an answer by its status and body; nothing if it is right.
    """

    path: str
    problem: Callable[[int, bytes], str]
    form: Callable[[], dict[str, str]] | None = None
    accept: str = "text/html"


async def repeat(system: Parley, request: Request, readers: int, seconds: float) -> Answers:
    """Let so many readers, all of them the first user, ask one time after the other for `seconds`."""
    answers = Answers([], [])
    until = time.monotonic() + seconds

    async def read(number: int) -> None:
        async with session(system, number) as client:
            while time.monotonic() < until:
                await answers.ask(client, request)

    await asyncio.gather(*(read(number) for number in range(readers)))
    return answers


def session(system: Parley, number: int, *, user: int | None = 0) -> ClientSession:
    """The browser of reader `number`, who is this user or a visitor, with one connection."""
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
    """Milliseconds of each answer, and what was wrong with some."""

    times: list[float]
    problems: list[str]

    async def ask(self, client: ClientSession, request: Request) -> None:
        """Ask once."""
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
