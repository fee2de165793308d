"""A fake OpenAI-compatible provider, for tests, chaos rounds and the bench.

    with FakeLLM() as llm:                    # in a test: the fixture `provider` of fixture.py
        ask(llm.url, "[[tokens=200 rate=50 first=0.3]] Tell me a story.")
        llm.wait(finished=1)

A reply's length, speed and faults are written as directives into the user's message (`Directives`
lists them), so that a test needs no second channel. The text depends on nothing but its length and
the message: a test computes what must arrive with `reply_text`. With `[[stamps=1]]` each token
carries its number and the time of its emission instead, so that the bench finds lost, doubled and
late ones. When the last message is the assistant's and the beginning of the reply, the reply goes on
after it, as with providers that can continue.

By hand: `python -m tests.support.fake_llm --port 8099`, until Ctrl-D.
"""

from __future__ import annotations

from tests.support.fake_llm.directives import parse_directives
from tests.support.fake_llm.process import FakeLLM
from tests.support.fake_llm.record import Call
from tests.support.fake_llm.replies import reasoning_text, reply_pieces, reply_text

__all__ = ["Call", "FakeLLM", "parse_directives", "reasoning_text", "reply_pieces", "reply_text"]
