"""The speed of a long conversation's page, requested by several readers at once."""

from __future__ import annotations

import time
from weakref import WeakKeyDictionary

from bench import figures, load
from bench.load import Reply, Round
from bench.parley import Parley, Tab
from bench.tally import Tally
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
        _pages[system] = await _write_conversation(system)
    request = http.Request(_pages[system], _problem)
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


def _problem(status: int, body: bytes) -> str:
    messages = body.count(b'<li class="message own" id=') + body.count(
        b'<li class="message reply" id='
    )
    ends = body.count(f".{REPLY_TOKENS - 1};".encode())
    if status != 200 or messages != SHOWN or ends < SHOWN // 2:
        return f"HTTP {status} with {messages} messages and the ends of {ends} replies"
    return ""


async def _write_conversation(system: Parley) -> str:
    tab = await system.connect(0)
    for _ in range(MESSAGES // 2):
        reply = Reply(Tally(REPLY_TOKENS))
        text = load.prompt(REPLY_TOKENS, rate=0)
        await load.converse(tab, text, reply, patience=load.PATIENCE)
        if reply.failure or not reply.tally.is_clean:
            raise RuntimeError(f"a page could not be written: {reply.failure}")
    await tab.close()
    assert isinstance(tab, Tab)
    return f"/c/{tab.conversation}/"


TARGETS = (Target("pages", pages, {"parley": (1, 10, 50)}, seconds=4.0),)
