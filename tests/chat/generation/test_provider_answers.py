"""Answers of real providers become replies: what is stored, charged, shown and sent the next time.

tests/support/provider_answers.py describes the cases.
"""

from __future__ import annotations

from html import unescape
from typing import Any

import pytest

from billing.models import UsageRecord
from chat.generation import generate
from chat.models import Message, Run
from chat.rendering.message import message_html
from chatproject.lib import db
from tests.support.conversations import send
from tests.support.provider_answers import AnsweringProvider, Case, load_cases
from tests.support.runs import fresh, logged

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop"),
]

NOTICES = {"length": "The reply reached its maximum length."}

# What is sent after a refusal is the subject of other tests.
ABOUT_REQUESTS = {"second_request", "same_body", "remembered"}
MORE = [
    Case(
        id="events-of-ollama",
        body=b'{"message":{"role":"assistant","content":"Hi"},"done":false}\n'
        b'{"message":{"role":"assistant","content":""},"done":true}\n',
        expect={"status": "failed", "cause": "address", "requests": 1, "words": "not set up"},
    ),
    Case(
        id="messages-for-deltas",
        body=b'data: {"choices":[{"message":{"content":"He"},"finish_reason":null}]}\n\n'
        b'data: {"choices":[{"message":{"content":"llo"},"finish_reason":"stop"}]}\n\n',
        expect={"status": "done", "text": "Hello"},
    ),
    Case(
        id="aborted-midway",
        body=b'data: {"choices":[{"delta":{"content":"Half a"}}]}\n\n'
        b'data: {"choices":[{"delta":{},"finish_reason":"abort"}]}\n\ndata: [DONE]\n\n',
        expect={"status": "failed", "cause": "cut", "text": "Half a", "retry_button": True},
    ),
    Case(
        id="timed-out-midway",
        body=b'data: {"choices":[{"delta":{"content":"Half a"}}]}\n\n'
        b'data: {"choices":[{"delta":{},"finish_reason":"timeout"}]}\n\ndata: [DONE]\n\n',
        expect={"status": "failed", "error": "provider_timeout", "text": "Half a"},
    ),
    Case(
        id="marks-of-cohere-without-the-first",
        body=b'data: {"choices":[{"delta":{"content":"plan<|END_THIN"}}]}\n\n'
        b'data: {"choices":[{"delta":{"content":"KING|><|START_RESPONSE|>Answer<|END_"}}]}\n\n'
        b'data: {"choices":[{"delta":{"content":"RESPONSE|>"},"finish_reason":"stop"}]}\n\n',
        expect={
            "status": "done",
            "text": "Answer",
            "reasoning_text": "plan",
            "next_prompt": "Answer",
        },
    ),
    Case(
        id="only-closing-mark-of-kimi",
        body='data: {"choices":[{"delta":{"content":"plan◁/thi"}}]}\n\n'
        'data: {"choices":[{"delta":{"content":"nk▷Answer"},"finish_reason":"stop"}]}\n\n'.encode(),
        expect={"status": "done", "text": "Answer", "reasoning_text": "plan"},
    ),
]
CASES = [case for case in load_cases() if not ABOUT_REQUESTS & case.expect.keys()]


def page_of(run: Run) -> str:
    """Return a finished run's message as pages and events show it."""
    message = Message.objects.get(pk=run.message_id)
    message.run = run
    return unescape(message_html(message))


def outcome_of(run: Run, page: str) -> dict[str, Any]:
    """Return the outcome of a run under the names of a case's `expect`."""
    message = run.message
    reasoning = message.ordered_parts[0].data["text"] if message.ordered_parts else ""
    return {
        "status": run.status,
        "text": message.text,
        "reasoning_text": reasoning,
        "error": run.error_code,
        "cause": run.error_cause,
        "finish": run.finish_reason,
        "input": run.prompt_tokens,
        "output": run.completion_tokens,
        "cached": run.cached_tokens,
        "reasoning": run.reasoning_tokens,
        "estimated": run.usage_estimated,
        "charged": run.charged,
        "retry_button": "data-regenerate" in page,
    }


@pytest.mark.parametrize("case", CASES + MORE, ids=[case.id for case in CASES + MORE])
async def test_answer_of_provider_becomes_reply(
    case: Case, owner, conversation, settings, valkey_client
):
    with AnsweringProvider(case) as provider:
        settings.OPENAI_BASE_URL = provider.url
        run = await db.run(send, owner, conversation, "Hello there")
        await generate.run(run.pk, 1)
        run = await db.run(fresh, run.pk)
        page = await db.run(page_of, run)
        found = await db.run(outcome_of, run, page)
        requests = len(provider.requests)
        if "next_prompt" in case.expect:
            await db.run(conversation.refresh_from_db)
            following = await db.run(send, owner, conversation, "And then?")
            await generate.run(following.pk, 1)
            sent = [m["content"] for m in provider.requests[-1]["messages"]]
            assert sent[-2:] == [case.expect["next_prompt"], "And then?"]

    for name, expected in case.expect.items():
        match name:
            case "words":
                assert expected.lower() in page.lower()
            case "not_words":
                assert expected.lower() not in page.lower()
            case "notice":
                assert NOTICES[expected] in page
            case "text_starts":
                assert found["text"].startswith(expected)
            case "text_ends":
                assert found["text"].endswith(expected)
            case "requests":
                assert requests > 1 if expected == ">1" else requests == expected
            case "next_prompt":
                pass  # above
            case _:
                assert found[name] == expected, name
    if case.expect.get("requests") == ">1":
        assert found["status"] == "done"
    elif "requests" in case.expect:
        assert found["status"] == "failed"
    end = logged(valkey_client, run.pk)[-1]
    assert (end["type"], end["text"]) == (f"run.{run.status}", found["text"])


async def test_refusal_with_status_200_costs_nothing(owner, conversation, settings):
    """Not even the operator: the provider has not begun to work."""
    [case] = [case for case in CASES if case.id == "plain-json-error-200"]
    with AnsweringProvider(case) as provider:
        settings.OPENAI_BASE_URL = provider.url
        run = await db.run(send, owner, conversation, "Hello there")
        await generate.run(run.pk, 1)
    run = await db.run(fresh, run.pk)
    assert (run.error_cause, run.prompt_tokens, run.charged) == ("quota", None, 0)
    assert await db.run(UsageRecord.objects.count) == 0
