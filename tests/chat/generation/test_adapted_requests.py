"""A worker adapts its requests to refusals, and all workers begin with what one has learned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from accounts import api_keys
from billing.ledger import audit
from billing.models import Hold
from chat.conversations.api_prompt import ApiRequest
from chat.generation import generate
from chat.llm.quirks import FIRST_USER_MESSAGE
from chat.models import Assistant, LanguageModel, Provider, Run
from chat.runs import api_calls, handover
from chatproject.lib import db
from chatproject.lib.db import prepared
from tests.support.conversations import add_turns, begin, send
from tests.support.locks import locked, wait_for_blocked_session
from tests.support.provider_answers import GOOD_TEXT, AnsweringProvider, length, load_cases
from tests.support.refusing_provider import Refusing, always, error, has, when
from tests.support.runs import fresh, logged, mark_running, until
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop"),
]

CASES = {case.id: case for case in load_cases()}
# The cases that say what is sent after a refusal.
ABOUT_REQUESTS = [
    case for case in CASES.values() if case.expect.keys() & {"second_request", "same_body"}
]
INSTRUCTIONS = "Be brief."
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def serve(settings) -> Callable[[AnsweringProvider], Any]:
    """Let the environment's provider be another one, in a `with` statement."""

    @contextmanager
    def serving(provider: AnsweringProvider) -> Iterator[AnsweringProvider]:
        with provider:
            settings.OPENAI_BASE_URL = provider.url
            yield provider

    return serving


async def make(owner, assistant, text: str = "Hello") -> Run:
    """Send a message in a new conversation and generate its reply; returns the run as it ended."""
    conversation = await db.run(begin, owner, assistant)
    run = await db.run(send, owner, conversation, text)
    await generate.run(run.pk, 1)
    return await db.run(fresh, run.pk)


def stored_quirks() -> dict[str, str]:
    """Return subjects and values of the model's quirks; each was learned in the last minute."""
    found = LanguageModel.objects.get().quirks
    for entry in found.values():
        age = timezone.now() - datetime.fromisoformat(entry["learned"])
        assert timedelta(seconds=-1) < age < timedelta(minutes=1)
    return {subject: entry["value"] for subject, entry in found.items()}


async def converse(owner, conversation, turns: int) -> Run:
    """Send a message in a conversation of so many turns and generate its reply."""
    await db.run(add_turns, owner, conversation, turns)
    run = await db.run(send, owner, conversation, "And now?")
    await generate.run(run.pk, 1)
    return await db.run(fresh, run.pk)


def is_expected(expected: str, first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return whether a second request differs from the first in the way that a case names."""
    before, after = first["messages"], second["messages"]
    if expected == "shorter":
        ends = [before[0], before[-1]] == [after[0], after[-1]]
        return ends and after[1]["role"] == "user" and length(second) < length(first)
    if expected == "lower cap":
        return bool(second["max_tokens"] < first["max_tokens"] and before == after)
    if expected == "instructions in the first user message":
        joined = f"{INSTRUCTIONS}\n\n{before[1]['content']}"
        return bool(after == [{"role": "user", "content": joined}, *before[2:]])
    if expected == "max_completion_tokens":
        cap = first["max_tokens"]
        return second == {k: v for k, v in first.items() if k != "max_tokens"} | {expected: cap}
    name = expected.removeprefix("without ")
    return second == {k: v for k, v in first.items() if k != name}


@pytest.mark.parametrize("case", ABOUT_REQUESTS, ids=[case.id for case in ABOUT_REQUESTS])
async def test_request_after_refusal_is_as_expected(owner, conversation, serve, case):
    await db.run(LanguageModel.objects.update, context_tokens=16_384, max_output_tokens=4_096)
    await db.run(LanguageModel.objects.update, **(case.needs or {}))
    with serve(AnsweringProvider(case)) as provider:
        run = await converse(owner, conversation, 10)

    assert (run.status, run.message.text) == ("done", GOOD_TEXT)
    first, second = provider.requests
    if "second_request" in case.expect:
        assert is_expected(case.expect["second_request"], first, second)
    if "same_body" in case.expect:
        assert first == second
    assert bool(await db.run(stored_quirks)) is case.expect.get("remembered", False)


# --- What is remembered -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "learned"),
    [
        ("max_tokens-refused", {"cap": "max_completion_tokens"}),
        ("stream_options-refused", {"stream_options": "left out"}),
        ("system-role-400", {"instructions": FIRST_USER_MESSAGE}),
    ],
)
async def test_accepted_form_is_remembered_by_all(
    owner, assistant, serve, server_folder: Path, case, learned
):
    with serve(AnsweringProvider(CASES[case])) as provider:
        for count in (2, 3):  # the second run sends the accepted form at once
            run = await make(owner, assistant)
            assert (run.status, run.message.text) == ("done", GOOD_TEXT)
            assert len(provider.requests) == count
        assert await db.run(stored_quirks) == learned

        with Stack(server_folder, provider_url=provider.url) as stack:  # as does another process
            conversation = await db.run(begin, owner, assistant)
            await db.run(stack.start, "worker")
            run = await db.run(send, owner, conversation)
            await until(lambda: len(provider.requests) == 4, seconds=60)
            while (await db.run(fresh, run.pk)).status != "done":
                pass
    assert provider.requests[1] == provider.requests[2] == provider.requests[3]


async def test_usage_is_estimated_without_stream_options(owner, assistant, provider):
    entry = {"value": "left out", "learned": timezone.now().isoformat()}
    await db.run(LanguageModel.objects.update, quirks={"stream_options": entry})
    run = await make(owner, assistant, "[[tokens=10 rate=0]]")

    assert "stream_options" not in provider.requests[0]
    assert run.usage_estimated
    assert run.completion_tokens > 0
    assert run.charged > 0


async def test_words_of_user_are_not_remembered(owner, assistant, serve):
    text = "Unsupported parameter: 'temperature' is not supported with this model."
    with serve(Refusing(always(error(f"Blocked: {text}")))) as provider:
        run = await make(owner, assistant, text)

    assert (run.status, run.error_cause) == ("failed", "refused")
    assert len(provider.requests) == 1
    assert await db.run(stored_quirks) == {}


CHOSEN = [
    # A value that the server refuses, and roles in an order that its template refuses.
    (when(has("logit_bias"), error("Invalid 'logit_bias'.", param="logit_bias")), HI),
    (
        when(
            lambda body: [one["role"] for one in body["messages"]].count("system") > 1,
            error("Only one system message is allowed.", param="system"),
        ),
        [{"role": "system", "content": "One"}, {"role": "system", "content": "Two"}, *HI],
    ),
]


@pytest.mark.parametrize(("rule", "messages"), CHOSEN, ids=["field", "roles"])
async def test_caller_of_the_api_teaches_nothing(owner, assistant, serve, rule, messages):
    request = ApiRequest(messages, fields={"logit_bias": {"x": 1}})
    with serve(Refusing(rule)) as provider:
        key, _secret = await db.run(api_keys.create, owner, api_keys.Terms("Test"))
        run = await db.run(api_calls.start_call, key, assistant.model, request, streamed=False)
        await generate.run(run.pk, 1)

    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text) == ("done", GOOD_TEXT)
    assert len(provider.requests) == 2
    assert await db.run(stored_quirks) == {}


async def test_failed_request_teaches_nothing(owner, assistant, serve):
    with serve(Refusing(always(error("Unsupported parameter: 'stream_options'")))) as provider:
        run = await make(owner, assistant)

    assert run.status == "failed"
    assert len(provider.requests) == 2
    assert await db.run(stored_quirks) == {}


async def test_other_entries_stay_beside_learned_one(owner, assistant, serve):
    now = timezone.now().isoformat()
    staff = {
        "top_p": {"value": "left out", "learned": now},
        "cap": {"value": "max_tokens", "learned": now},
    }
    await db.run(LanguageModel.objects.update, quirks=staff)
    with serve(Refusing(when(has("max_tokens"), error("Unsupported parameter: 'max_tokens'")))):
        await make(owner, assistant)

    assert await db.run(stored_quirks) == {"top_p": "left out", "cap": "max_completion_tokens"}


async def test_entries_learned_at_once_are_all_kept(assistant):
    model = assistant.model
    with locked(model):
        writes = [
            asyncio.create_task(db.run(generate.remember, {model.pk: {subject: "left out"}}))
            for subject in ("temperature", "top_p", "stream_options")
        ]
        await db.run(wait_for_blocked_session)
    await asyncio.gather(*writes)

    assert (await db.run(stored_quirks)).keys() == {"temperature", "top_p", "stream_options"}


async def test_reply_does_not_wait_for_storing(owner, assistant, serve, valkey_client):
    refusal = when(has("stream_options"), error("Unsupported parameter: 'stream_options'"))
    with serve(Refusing(refusal)):
        run = await db.run(send, owner, await db.run(begin, owner, assistant))
        with locked(assistant.model):
            generating = asyncio.create_task(generate.run(run.pk, 1))
            await db.run(wait_for_blocked_session)
            assert logged(valkey_client, run.pk)[-1]["type"] == "run.done"
            assert await db.run(stored_quirks) == {}
        await generating

    assert await db.run(stored_quirks) == {"stream_options": "left out"}


async def test_previous_release_adds_models_without_quirks(assistant):
    """During a rolling upgrade its statements do not name the column."""
    insert = (
        "INSERT INTO chat_languagemodel (name, provider_model, context_tokens, max_output_tokens,"
        " enabled, created_at) VALUES ('old', 'old', 1000, 100, true, now())"
    )
    await db.run(prepared.change, insert, [])

    assert (await db.run(LanguageModel.objects.get, name="old")).quirks == {}


async def test_unknown_entries_do_no_harm(owner, assistant, serve):
    await db.run(
        LanguageModel.objects.update, quirks={"cap": 7, "new": {"value": "x"}, "model": None}
    )
    with serve(Refusing()) as provider:
        assert (await make(owner, assistant)).status == "done"

    assert len(provider.requests) == 1


async def test_learned_limit_lowers_cap_and_hold(owner, assistant, serve):
    answer = error(
        "max_tokens is too large: 2000. This model supports at most 500 completion tokens"
    )
    with serve(Refusing(when(lambda body: body["max_tokens"] > 500, answer))) as provider:
        for _ in range(2):
            assert (await make(owner, assistant)).status == "done"

    assert [request["max_tokens"] for request in provider.requests] == [2_000, 500, 500]
    first, second = await db.run(
        lambda: [*Hold.objects.order_by("id").values_list("amount", flat=True)]
    )
    assert second < first
    assert await db.run(stored_quirks) == {"longest reply": "500"}
    assert not await db.run(audit.check)


# --- Prompts that are too long ----------------------------------------------------------------


TOO_LONG = error("Your input is too long for the context window")


@pytest.mark.parametrize("status", [400, 200])
async def test_conversation_is_shortened_twice(owner, conversation, serve, status):
    """Also when the refusal is the first event of a stream."""
    with serve(Refusing(lambda body: (status, TOO_LONG))) as provider:
        run = await converse(owner, conversation, 20)

    lengths = [length(request) for request in provider.requests]
    assert len(lengths) == 3
    assert lengths[0] > lengths[1] > lengths[2]
    assert (run.status, run.error_cause, run.charged) == ("failed", "context", 0)
    assert "Start a new chat" in run.error_message


@pytest.mark.parametrize(("turns", "requests"), [(0, 1), (1, 2)])
async def test_single_message_is_not_sent_again(owner, conversation, serve, turns, requests):
    """Nor is the last one of a conversation, when it was refused alone."""
    with serve(Refusing(always(TOO_LONG))) as provider:
        run = await converse(owner, conversation, turns)

    assert len(provider.requests) == requests
    assert len(provider.requests[-1]["messages"]) == 2  # the instructions, too
    assert (run.status, run.error_cause, run.charged) == ("failed", "context", 0)
    assert "message is too long" in run.error_message
    assert "new chat" not in run.error_message


async def test_stated_window_is_shortened_to(owner, conversation, serve):
    """A model whose window is configured far too large."""
    await db.run(LanguageModel.objects.update, context_tokens=100_000, max_output_tokens=100)
    answer = error("This model's maximum context length is 300 tokens. However, you requested 1200")
    with serve(Refusing(when(lambda body: length(body) > 400, answer))) as provider:
        run = await converse(owner, conversation, 60)

    assert run.status == "done"
    assert len(provider.requests) == 2
    assert len(provider.requests[1]["messages"]) > 4


async def test_single_message_gets_shorter_reply(owner, conversation, serve):
    answer = error(
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"
        " (3000 in the messages, 2000 in the completion)."
    )
    with serve(Refusing(when(lambda body: body["max_tokens"] > 1_096, answer))) as provider:
        run = await converse(owner, conversation, 0)

    assert run.status == "done"
    assert [request["max_tokens"] for request in provider.requests] == [2_000, 1_096]


async def test_form_is_kept_while_prompt_is_shortened(owner, conversation, serve):
    refused = [
        when(has("temperature"), error("Unsupported parameter: 'temperature'")),
        when(has("stream_options"), error("Unsupported parameter: 'stream_options'")),
        when(lambda body: length(body) > 60, TOO_LONG),
    ]
    await db.run(Assistant.objects.update, temperature=0.5)
    with serve(Refusing(*refused)) as provider:
        run = await converse(owner, conversation, 4)

    assert run.status == "done"
    assert [
        ("temperature" in body, "stream_options" in body) for body in provider.requests[:3]
    ] == [
        (True, True),
        (False, True),
        (False, False),
    ]
    later = provider.requests[3:]
    assert later
    assert not any({"temperature", "stream_options"} & body.keys() for body in later)
    assert await db.run(stored_quirks) == {"temperature": "left out", "stream_options": "left out"}


async def test_only_answering_model_learns(owner, assistant, serve):
    """A model that fails after another form teaches nothing; its fallback does."""
    refusal = when(has("stream_options"), error("Unsupported parameter: 'stream_options'"))
    broken = [refusal, always(error("Bad request"))]
    with serve(Refusing(*broken)) as first, Refusing(refusal) as second:
        provider = await db.run(Provider.objects.create, name="Second", base_url=second.url)
        fallback = await db.run(
            LanguageModel.objects.create, name="Other", provider_model="other", provider=provider
        )
        await db.run(LanguageModel.objects.filter(name="Stub").update, fallback=fallback)
        run = await make(owner, assistant)

    assert (run.status, run.message.text) == ("done", GOOD_TEXT)
    assert (len(first.requests), len(second.requests)) == (2, 2)
    learned = await db.run(lambda: dict(LanguageModel.objects.values_list("name", "quirks")))
    assert (learned["Stub"], [*learned["Other"]]) == ({}, ["stream_options"])


# --- Partial replies --------------------------------------------------------------------------

PARTIAL = "A part of the"
REFUSED_PARTS = {
    "vllm": error("Unsupported parameter: 'continue_final_message'", param="continue_final_message"),
    "prefix": {"detail": [{"type": "extra_forbidden", "loc": ["body", "messages", 2, "assistant", "prefix"], "msg": "Extra inputs are not permitted"}]},
    "prefill": error("This model does not support assistant message prefill. The conversation must end with a user message."),
}  # fmt: skip


def continues(request: dict[str, Any]) -> bool:
    return bool(request["messages"][-1]["role"] == "assistant")


async def lost(owner, assistant) -> Run:
    """Return a run whose first attempt was lost after PARTIAL, queued again."""
    run = await db.run(send, owner, await db.run(begin, owner, assistant))
    await db.run(mark_running, run)
    attempt = handover.LostAttempt(run_id=run.pk, attempt=1, text=PARTIAL, reasoning="")
    await db.run(handover.hand_over, [attempt])
    return await db.run(fresh, run.pk)


@pytest.mark.parametrize("continuation", [*REFUSED_PARTS])
async def test_refused_continuation_begins_anew(
    owner, assistant, serve, valkey_client, continuation
):
    await db.run(LanguageModel.objects.update, continuation=continuation)
    with serve(Refusing(when(continues, REFUSED_PARTS[continuation], 422))) as provider:
        run = await lost(owner, assistant)
        assert run.prefix == PARTIAL
        await generate.run(run.pk, 2)
        run = await db.run(fresh, run.pk)

        first, second = provider.requests
        assert second["messages"] == first["messages"][:-1]
        assert not {"continue_final_message", "add_generation_prompt"} & second.keys()
        assert (run.status, run.message.text, run.prefix) == ("done", GOOD_TEXT, "")
        restarted, replaced, *_ = logged(valkey_client, run.pk)
        assert (restarted["type"], restarted["text"]) == ("run.restarted", PARTIAL)
        assert (replaced["type"], replaced.get("text", "")) == ("reply.replaced", "")
        assert await db.run(stored_quirks) == {"continuation": "left out"}

        again = await lost(owner, assistant)
        assert again.prefix == ""
        await generate.run(again.pk, 2)
        assert len(provider.requests) == 3
    assert not await db.run(audit.check)


async def test_claim_drops_prefix_of_refused_continuation(owner, assistant, serve, valkey_client):
    """The quirk was learned after the run had been handed over."""
    await db.run(LanguageModel.objects.update, continuation="prefill")
    run = await lost(owner, assistant)
    entry = {"value": "left out", "learned": timezone.now().isoformat()}
    await db.run(LanguageModel.objects.update, quirks={"continuation": entry})
    with serve(Refusing()) as provider:
        await generate.run(run.pk, 2)

    [request] = provider.requests
    assert request["messages"][-1]["role"] == "user"
    run = await db.run(fresh, run.pk)
    assert (run.message.text, run.prefix) == (GOOD_TEXT, "")
    [restart] = [e for e in logged(valkey_client, run.pk) if e["type"] == "run.restarted"]
    assert restart.get("text", "") == ""
