"""The speed of the other requests that people and programs make; every response is checked."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

from bench import figures, load
from bench.load import Reply, Round
from bench.parley import Parley, Tab
from bench.tally import Tally
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
    tab = await _converse(system)
    asked = {
        "new": http.Request("/", _holds(b"What would you like to talk about?")),
        "list": http.Request("/chats/", _holds(tab.conversation.encode())),
        "run": http.Request(f"/runs/{tab.run}/", _says(status="done", id=tab.run), accept=JSON),
        "active_run": http.Request(
            f"/c/{tab.conversation}/active-run/", _says(run=None), accept=JSON
        ),
        "create": http.Request("/c/new/", _says(202, status="queued"), form=message, accept=JSON),
    }
    found = Round({"failed": 0})
    for name, request in asked.items():
        answers = await http.repeat(system, request, place.users, place.seconds / len(asked))
        _note(found, name, answers)
    await _accounts(system, found)
    return found


async def _converse(system: Parley) -> Tab:
    """A tab with a conversation that has a reply."""
    tab = await system.connect(0)
    reply = Reply(Tally(1))
    await load.converse(tab, load.prompt(1), reply, patience=load.PATIENCE)
    if reply.failure:
        raise RuntimeError(f"there is no reply to ask for: {reply.failure}")
    await tab.close()
    assert isinstance(tab, Tab)
    return tab


def message() -> dict[str, str]:
    """A message with a short reply: other targets measure the reply's cost."""
    return {"text": load.prompt(1, rate=0), "client_id": f"requests-{next(_numbers)}"}


async def _accounts(system: Parley, found: Round) -> None:
    """Sign up and sign in, each as a new visitor."""
    numbers = [next(_numbers) for _ in range(ACCOUNTS)]
    for name, path, fields in (
        ("sign_up", "/accounts/signup/", ("email", "password1")),
        ("sign_in", "/accounts/login/", ("login", "password")),
    ):
        answers = http.Answers([], [])
        for number in numbers:
            form = dict(zip(fields, (f"visitor{number}@example.org", PASSWORD), strict=True))
            async with http.session(system, number, user=None) as client:
                await answers.ask(client, http.Request(path, redirects, form=form.copy))
        _note(found, name, answers)


def _note(found: Round, name: str, answers: http.Answers) -> None:
    found.figures |= figures.spread(f"{name}_ms", answers.times)
    found.figures["failed"] += len(answers.problems)
    found.failures += answers.problems


def _holds(words: bytes) -> Callable[[int, bytes], str]:
    def problem(status: int, body: bytes) -> str:
        return "" if status == 200 and words in body else f"HTTP {status}, {len(body)} bytes"

    return problem


def _says(wanted: int = 200, **fields: str | None) -> Callable[[int, bytes], str]:
    def problem(status: int, body: bytes) -> str:
        if status != wanted:
            return f"HTTP {status}: {body[:200]!r}"
        said = json.loads(body)
        wrong = {name: said.get(name) for name, value in fields.items() if said[name] != value}
        return f"it says {wrong}" if wrong else ""

    return problem


def redirects(status: int, body: bytes) -> str:
    return "" if status == 302 else f"HTTP {status}: {body[:200]!r}"


TARGETS = (Target("requests", requests, {"parley": (10,)}, seconds=10.0),)
