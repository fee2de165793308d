"""The speed of a long conversation's page, requested by several readers at once."""

from __future__ import annotations

import time
from weakref import WeakKeyDictionary

from bench import figures
from bench.load import Round
from bench.parley import Parley
from bench.targets import http
from bench.targets.base import Place, Target

MESSAGES = 200  # of the conversation: questions and replies
SHOWN = 100  # of them on its page: chat.conversations.transcript.MESSAGES_SHOWN, which only Django can import
REPLY_TOKENS = 40

_pages: WeakKeyDictionary[Parley, str] = WeakKeyDictionary()  # the path, written once per system


async def pages(place: Place) -> Round:
    """Let readers request the page again and again; every response is checked."""
    system = place.system
    assert isinstance(system, Parley)
    if system not in _pages:
        tab = await http.write_conversation(system, MESSAGES // 2, REPLY_TOKENS)
        _pages[system] = f"/c/{tab.conversation}/"
    request = http.Request(_pages[system], page_problem)
    began = time.monotonic()
    answers = await http.repeat(system, request, place.users, place.seconds)
    return Round(
        {
            "requests_per_s": len(answers.times) / (time.monotonic() - began),
            "failed": len(answers.problems),
            **figures.spread("page_ms", answers.times),
        },
        answers.problems,
    )


def page_problem(status: int, body: bytes) -> str:
    """The difference of a response from the page of the conversation; empty without one."""
    messages = sum(body.count(b'<li class="message %s" id=' % kind) for kind in (b"own", b"reply"))
    ends = body.count(f".{REPLY_TOKENS - 1};".encode())
    if status != 200 or messages != SHOWN or ends < SHOWN // 2:
        return f"HTTP {status} with {messages} messages and the ends of {ends} replies"
    return ""


TARGETS = (Target("pages", pages, {"parley": (1, 10, 50)}, seconds=4.0),)
