"""Answers of real providers are decoded the same, whole and cut at every byte.

tests/support/provider_answers.py describes the cases. What becomes of the others, which refuse the
request, depends on the next one: tests/chat/generation/test_provider_answers.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from chat.llm.decoder import Finish, ReasoningDelta, StreamDecoder, TextDelta, Usage
from chat.llm.errors import ProviderError
from chat.llm.thoughts import split_thoughts
from tests.support.provider_answers import Case, load_cases

CASES = [case for case in load_cases() if case.status == 200]


def decoded(*pieces: bytes) -> dict[str, Any]:
    """Return what a reply is made from: text, thoughts, finish reason, usage, and the error."""
    decoder = StreamDecoder()
    events = [event for piece in [*filter(None, pieces), b""] for event in decoder.feed(piece)]
    error: ProviderError | None = None
    try:
        decoder.close()
    except ProviderError as fault:
        error = fault
    whole = "".join(event.text for event in events if isinstance(event, TextDelta))
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    text, thoughts = split_thoughts(whole)
    return {
        "text": text,
        "thoughts": reasoning + thoughts,
        "finish": next((e.reason for e in reversed(events) if isinstance(e, Finish)), ""),
        "usage": next((event for event in reversed(events) if isinstance(event, Usage)), None),
        "error": error and (type(error), error.detail, error.reason),
        "finished": decoder.finished,
    }


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_split_answer_is_decoded_as_the_whole(case: Case):
    whole = decoded(case.body)
    for name, key in {"text": "text", "reasoning_text": "thoughts", "finish": "finish"}.items():
        if name in case.expect:
            assert whole[key] == case.expect[name]
    for line_end in (b"\n", b"\r\n"):
        body = case.body.replace(b"\n", line_end)
        for at in range(len(body) + 1):
            assert decoded(body[:at], body[at:]) == whole, at
        assert decoded(*(body[at : at + 1] for at in range(len(body)))) == whole
