"""The speed of the other requests that people and programs make; every response is checked."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

from bench import figures, load
from bench.load import Round
from bench.parley import Parley
from bench.targets import http
from bench.targets.base import Place, Target

JSON = "application/json"
ACCOUNTS = 10  # made and signed in, one after the other: the pages' own limits allow few a minute
PASSWORD = "a-long-password-17"  # noqa: S105 # of users that live as long as the measurement

_numbers = itertools.count(1)


async def requests(place: Place) -> Round:
    """Measure each kind of request for its share of the window; then some accounts."""
    system = place.system
    assert isinstance(system, Parley)
    tab = await http.write_conversation(system, 1, 1)
    asked = {
        "new": http.Request("/", holds(b"What would you like to talk about?")),
        "list": http.Request("/chats/", holds(tab.conversation.encode())),
        "run": http.Request(f"/runs/{tab.run}/", says(status="done", id=tab.run), accept=JSON),
        "active_run": http.Request(
            f"/c/{tab.conversation}/active-run/", says(run=None), accept=JSON
        ),
        "create": http.Request("/c/new/", says(202, status="queued"), form=message, accept=JSON),
    }
    answers = {
        name: await http.repeat(system, request, place.users, place.seconds / len(asked))
        for name, request in asked.items()
    }
    answers |= await accounts(system)
    problems = [problem for each in answers.values() for problem in each.problems]
    found = Round({"failed": len(problems)}, problems)
    for name, each in answers.items():
        found.figures |= figures.spread(f"{name}_ms", each.times)
    return found


def message() -> dict[str, str]:
    """A message with a short reply: other targets measure the reply's cost."""
    return {"text": load.prompt(1, rate=0), "client_id": f"requests-{next(_numbers)}"}


async def accounts(system: Parley) -> dict[str, http.Answers]:
    """The answers to ACCOUNTS sign-ups and sign-ins, each by a new visitor."""
    numbers = [next(_numbers) for _ in range(ACCOUNTS)]
    found = {"sign_up": http.Answers([], []), "sign_in": http.Answers([], [])}
    for answers, path, fields in (
        (found["sign_up"], "/accounts/signup/", ("email", "password1")),
        (found["sign_in"], "/accounts/login/", ("login", "password")),
    ):
        for number in numbers:
            form = dict(zip(fields, (f"visitor{number}@example.org", PASSWORD), strict=True))
            async with http.session(system, number, user=None) as client:
                await answers.ask(client, http.Request(path, redirects, form=form.copy))
    return found


def holds(words: bytes) -> Callable[[int, bytes], str]:
    """The check that a page holds these words."""

    def problem(status: int, body: bytes) -> str:
        return "" if status == 200 and words in body else f"HTTP {status}, {len(body)} bytes"

    return problem


def says(wanted: int = 200, **fields: str | None) -> Callable[[int, bytes], str]:
    """The check that a JSON response has this status and these fields."""

    def problem(status: int, body: bytes) -> str:
        if status != wanted:
            return f"HTTP {status}: {body[:200]!r}"
        answer = json.loads(body)
        wrong = {name: answer.get(name) for name, value in fields.items() if answer[name] != value}
        return f"it has {wrong}" if wrong else ""

    return problem


def redirects(status: int, body: bytes) -> str:
    return "" if status == 302 else f"HTTP {status}: {body[:200]!r}"


TARGETS = (Target("requests", requests, {"parley": (10,)}, seconds=10.0),)
