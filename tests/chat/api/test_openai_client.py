"""The openai client against running processes: replies, tools, streams, errors, hang-ups and killed workers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from accounts import api_keys
from accounts.models import ApiKey, User
from billing.ledger import audit
from billing.models import Account, UsageRecord
from chat.models import ApiCall, Conversation, LanguageModel, Run
from tests.chat.api.test_requests import png
from tests.support.fake_llm import FakeLLM, reply_text
from tests.support.fake_llm.fixture import provider, provider_process
from tests.support.fake_llm.replies import CALL_ARGUMENTS
from tests.support.people import assistant, owner
from tests.support.programs import wait_until
from tests.support.stack import Stack

__all__ = ["assistant", "owner", "provider", "provider_process"]

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url", "assistant"),
]

MODEL = "stub-model"
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
def stack(provider: FakeLLM, server_folder) -> Iterator[Stack]:
    """A web process, a worker and the clock."""
    with Stack(server_folder, provider_url=provider.url) as running:
        running.start("web", "worker", "clock")
        yield running


@pytest.fixture
def secret(owner: User) -> str:
    return api_keys.create(owner, api_keys.Terms(name="Test"))[1]


@pytest.fixture
def client(stack: Stack, secret: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.base}/v1", api_key=secret, max_retries=0, timeout=60) as made:
        yield made


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]} | fields


def balance(user: User) -> int:
    return int(Account.objects.get(user=user).balance)


def micro(usage: Any) -> int:
    """The cost that an answer names, in micro-credits."""
    return int(Decimal(str(usage.cost)) * 1_000_000)


def test_client_gets_replies_tools_and_errors(client: OpenAI, owner: User, provider, secret):
    before = balance(owner)
    # Not streamed.
    text = "[[tokens=30 rate=0 reasoning=3]] Hello"
    whole = client.chat.completions.create(
        **ask(text, max_completion_tokens=50, temperature=0.3, seed=7, stop=["END"], user="me")
    )
    [choice] = whole.choices
    assert (choice.message.content, choice.finish_reason) == (reply_text(30, text), "stop")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 33
    assert balance(owner) == before - micro(whole.usage) < before
    sent = provider.requests[-1]
    assert (sent["temperature"], sent["seed"], sent["stop"]) == (0.3, 7, ["END"])
    assert [message["role"] for message in sent["messages"]] == ["user"]  # and no system prompt
    assert "user" not in sent
    # An image, and a format.
    LanguageModel.objects.update(vision=True)
    part: Any = {"type": "image_url", "image_url": {"url": png()}}
    asked: Any = ask("", response_format={"type": "json_object"})
    asked["messages"][0]["content"] = [{"type": "text", "text": text}, part]
    assert client.chat.completions.create(**asked).choices[0].message.content == reply_text(
        30, text
    )
    assert provider.requests[-1]["messages"][0]["content"][1] == part
    assert provider.requests[-1]["response_format"] == {"type": "json_object"}
    # Streamed, with the usage.
    before = balance(owner)
    options: Any = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            **ask(text, max_tokens=10), stream=True, stream_options=options
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == reply_text(30, text)[: len("".join(pieces))]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert balance(owner) == before - micro(chunks[-1].usage) < before
    # Tools, in both ways, and the answer to a call.
    tools = ask("[[tokens=2 calls=2 rate=0]] Weather?", tools=[WEATHER], tool_choice="auto")
    called = client.chat.completions.create(**tools).choices[0]
    assert called.finish_reason == "tool_calls"
    assert called.message.tool_calls is not None
    calls: Any = called.message.tool_calls
    assert [(one.id, one.function.name, one.function.arguments) for one in calls] == [
        (f"call_{index}", "weather", CALL_ARGUMENTS) for index in (0, 1)
    ]
    arguments, ids = ["", ""], ["", ""]
    reason = ""
    for chunk in client.chat.completions.create(**tools, stream=True):
        reason = chunk.choices[0].finish_reason or reason
        for delta in chunk.choices[0].delta.tool_calls or ():
            assert delta.function is not None
            arguments[delta.index] += delta.function.arguments or ""
            ids[delta.index] += delta.id or ""
    assert (arguments, ids, reason) == ([CALL_ARGUMENTS] * 2, ["call_0", "call_1"], "tool_calls")
    answered = [
        *tools["messages"],
        called.message.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": one.id, "content": "4 °C"} for one in calls),
    ]
    last = client.chat.completions.create(**(tools | {"messages": answered}))
    assert last.choices[0].finish_reason == "stop"
    assert [one["role"] for one in provider.requests[-1]["messages"]][1:] == [
        *("assistant", "tool", "tool"),
    ]
    # Errors: before the first word with their status, later as an event.
    errors = [
        (ask("[[status=500]] x"), openai.InternalServerError, "provider_error"),
        (ask("Hi", model="gpt-nothing"), openai.NotFoundError, "model_not_found"),
        (ask("Hi", n=3), openai.BadRequestError, "unsupported_parameter"),
    ]
    for asked, kind, code in errors:
        for stream in (False, True):
            with pytest.raises(kind) as refused:
                client.chat.completions.create(**asked, stream=stream)
            assert refused.value.code == code
            assert refused.value.request_id
    before = balance(owner)
    cut = ask("[[tokens=30 rate=0 cut=10]] x")
    with pytest.raises(openai.APIStatusError) as broken:
        client.chat.completions.create(**cut)
    assert broken.value.status_code == 502
    assert balance(owner) == before  # nothing was delivered
    with pytest.raises(openai.APIError) as interrupted:
        list(client.chat.completions.create(**cut, stream=True))
    assert interrupted.value.code == "provider_error"
    assert balance(owner) < before
    # A reply without text, which the caller may have brought about, costs what was read and written.
    for finish in ("stop", "length"):
        before = balance(owner)
        thoughts = ask(f"[[tokens=0 reasoning=9 rate=0 finish={finish}]] x", stop=["the"])
        empty = client.chat.completions.create(**thoughts)
        assert (empty.choices[0].message.content, empty.choices[0].finish_reason) == ("", finish)
        assert balance(owner) == before - micro(empty.usage) < before
    before = balance(owner)
    with pytest.raises(openai.APIError):
        list(
            client.chat.completions.create(
                **ask("[[tokens=0 reasoning=9 rate=0 finish=content_filter]] x"), stream=True
            )
        )
    assert balance(owner) < before  # the reasoning was delivered
    check_responses(client, owner)
    wrong = client.with_options(api_key=secret[:-1] + "_")
    with pytest.raises(openai.AuthenticationError):
        wrong.models.list()
    assert [model.id for model in client.models.list()] == [MODEL]
    check_records(owner)


def check_responses(client: OpenAI, owner: User) -> None:
    """The stateless form of responses: whole, streamed, with tools, and its refusals."""
    text = "[[tokens=20 rate=0 reasoning=2]] Hello"
    before = balance(owner)
    whole = client.responses.create(model=MODEL, input=text, instructions="Be kind.")
    assert (whole.output_text, whole.status) == (reply_text(20, text), "completed")
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert whole.usage is not None
    assert whole.usage.output_tokens == 22
    assert balance(owner) == before - micro(whole.usage)
    tool: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
    asked: Any = [{"role": "user", "content": "[[tokens=3 calls=1 rate=0]] Weather?"}]
    with client.responses.stream(model=MODEL, input=asked, tools=[tool]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-1] == "response.completed"
    assert {"response.output_text.delta", "response.function_call_arguments.done"} <= {*kinds}
    [message, call] = final.output
    assert message.type == "message"
    assert call.type == "function_call"
    assert (call.name, call.arguments) == ("weather", CALL_ARGUMENTS)
    answer = {"type": "function_call_output", "call_id": call.call_id, "output": "4 °C"}
    items: Any = [*asked, *(item.model_dump(exclude_none=True) for item in final.output), answer]
    assert client.responses.create(model=MODEL, input=items, tools=[tool]).status == "completed"
    short = client.responses.create(model=MODEL, input=text, max_output_tokens=5, store=True)
    assert short.status == "incomplete"
    events = list(
        client.responses.create(model=MODEL, input="[[tokens=30 rate=0 cut=10]] x", stream=True)
    )
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    refused: list[dict[str, Any]] = [
        {"previous_response_id": "resp_1"},
        {"input": []},
        {"background": True},
    ]
    for wrong in refused:
        with pytest.raises(openai.BadRequestError):
            client.responses.create(**({"model": MODEL, "input": "Hi"} | wrong))


def check_records(owner: User) -> None:
    """Every call has its request, a hidden conversation, and a record with its key; the ledger is consistent."""
    key = ApiKey.objects.get()
    ended = Run.objects.exclude(status__in=Run.ACTIVE)
    assert ApiCall.objects.count() == Run.objects.count() == ended.count()
    assert not Conversation.objects.filter(temporary=False).exists()
    assert {*UsageRecord.objects.values_list("api_key", flat=True)} == {key.pk}
    charged = sum(UsageRecord.objects.values_list("charged", flat=True))
    assert key.spent == key.spent_in_month == charged > 0
    assert Account.objects.get(user=owner).held == 0
    assert audit.check() == []


def test_many_streams_lose_nothing(stack: Stack, secret: str, owner: User):
    count = 20

    async def one(client: AsyncOpenAI, number: int) -> None:
        text = f"[[tokens=40 rate=20]] number {number}"
        stream = await client.chat.completions.create(**ask(text), stream=True)
        got = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(got) == reply_text(40, text)

    async def all_of_them() -> None:
        async with AsyncOpenAI(
            base_url=f"{stack.base}/v1", api_key=secret, max_retries=0, timeout=120
        ) as client:
            await asyncio.gather(*(one(client, number) for number in range(count)))
            with pytest.raises(openai.APITimeoutError):
                await client.with_options(timeout=0.5).chat.completions.create(
                    **ask("[[first=30 key=late]] late")
                )

    asyncio.run(all_of_them())
    # The call whose client gave up is stopped.
    wait_until(lambda: Run.objects.filter(status="stopped").count() == 1, "the run is stopped")
    assert Run.objects.filter(status="done").count() == count


def test_hang_up_stops_and_settles_the_run(client: OpenAI, owner: User, provider: FakeLLM):
    before = balance(owner)
    with client.chat.completions.create(**ask("[[tokens=500 rate=20]] x"), stream=True) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    wait_until(lambda: Run.objects.get().status == "stopped", "the run is stopped")
    run = Run.objects.get()
    assert run.charged is not None
    assert 0 < run.charged == before - balance(owner)
    assert run.completion_tokens is not None
    assert run.completion_tokens < 400
    provider.wait(aborted=1)
    # So does the call of a key that is revoked: a thief reads no further.
    run.delete()
    with client.chat.completions.create(**ask("[[tokens=500 rate=20]] y"), stream=True) as stream:
        next(chunk for chunk in stream if chunk.choices[0].delta.content)
        api_keys.revoke(ApiKey.objects.get(), by=owner)
        with pytest.raises(openai.APIError) as stopped:
            list(stream)
    assert stopped.value.code == "stopped"
    wait_until(lambda: Run.objects.get().status == "stopped", "the run is stopped")
    assert audit.check() == []


@pytest.mark.long
def test_killed_worker_costs_time_or_an_error(
    stack: Stack, client: OpenAI, owner: User, provider: FakeLLM
):
    text = "[[tokens=30 rate=10 key={}]] kill"
    sentences: list[str] = []

    def kill(delivered: Callable[[], object] = lambda: True) -> None:
        provider.wait(active=1)
        wait_until(delivered, "some tokens are delivered")
        stack.kill("worker")
        stack.start("worker")

    async def killed(key: str, **fields: Any) -> Any:
        asked = asyncio.to_thread(
            lambda: client.chat.completions.create(**ask(text.format(key), **fields))
        )
        task = asyncio.create_task(asked)
        await asyncio.to_thread(kill)
        return await task

    async def streamed(key: str) -> tuple[str, str]:
        got: list[str] = []

        def read() -> str:
            try:
                for chunk in client.chat.completions.create(**ask(text.format(key)), stream=True):
                    got.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 # kept after an error
            except openai.APIError as error:
                sentences.append(error.message)
                return str(error.code)
            return ""

        task = asyncio.create_task(asyncio.to_thread(read))
        await asyncio.to_thread(kill, lambda: len("".join(got)) > 20)
        return await task, "".join(got)

    # Not streamed: another attempt makes the reply.
    whole = asyncio.run(killed("a"))
    assert whole.choices[0].message.content == reply_text(30, text.format("a"))
    # A model that cannot continue: an error, and what was delivered is paid.
    code, got = asyncio.run(streamed("b"))
    run = Run.objects.order_by("-pk").first()
    assert run is not None
    assert (code, run.status, run.error_code) == ("unavailable", "failed", "unavailable")
    assert "Send the request again." in sentences[0]
    assert got
    assert reply_text(30, text.format("b")).startswith(got)
    assert run.charged
    # One that can: the same stream goes on.
    LanguageModel.objects.update(continuation="prefill")
    code, got = asyncio.run(streamed("c"))
    assert (code, got) == ("", reply_text(30, text.format("c")))
    assert Account.objects.get(user=owner).held == 0
    assert audit.check() == []


def test_stopped_web_process_ends_calls_with_an_error(
    stack: Stack, client: OpenAI, owner: User, provider: FakeLLM
):
    """Calls in flight may end; after the drain time a stream is charged for its text, and a whole reply is free."""
    stack.terminate("web")
    stack.change_environment(WEB_DRAIN_SECONDS="2")
    stack.start("web")
    before = balance(owner)

    def streamed(text: str) -> tuple[str, openai.APIError | None]:
        got = ""
        try:
            for chunk in client.chat.completions.create(**ask(text), stream=True):
                got += chunk.choices[0].delta.content or ""
        except openai.APIError as error:
            return got, error
        return got, None

    def whole() -> openai.APIStatusError:
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(**ask("[[tokens=500 rate=20]] whole"))
        return refused.value

    async def play() -> tuple[Any, ...]:
        short = "[[tokens=30 rate=15]] short"
        calls = [
            asyncio.create_task(asyncio.to_thread(streamed, short)),
            asyncio.create_task(asyncio.to_thread(streamed, "[[tokens=500 rate=20]] long")),
            asyncio.create_task(asyncio.to_thread(whole)),
        ]
        await asyncio.to_thread(provider.wait, active=3)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(stack.terminate, "web")
        return tuple(await asyncio.gather(*calls)), short

    ((ended, no_error), (part, error), refused), short = asyncio.run(play())
    assert (ended, no_error) == (reply_text(30, short), None)
    assert (len(part) > 20, error.code, error.type) == (True, "unavailable", "server_error")
    assert (refused.status_code, refused.code) == (503, "unavailable")
    assert int(refused.response.headers["retry-after"]) >= 1
    assert refused.request_id
    wait_until(lambda: not Run.objects.active().exists(), "the runs have ended")
    runs = {run.api_call.request.split("]] ")[1][:5]: run for run in Run.objects.all()}
    assert runs["whole"].charged == 0
    assert (runs["whole"].status, runs["whole"].error_code) == ("stopped", Run.INTERRUPTED)
    assert runs['long"'].charged > 0
    assert balance(owner) == before - sum(run.charged or 0 for run in runs.values())
    assert Account.objects.get(user=owner).held == 0
    assert audit.check() == []


def test_spending_limit_of_a_key_is_exact(stack: Stack, owner: User):
    """Calls that begin at the same time spend no more than their key may: each hold counts."""
    key, secret = api_keys.create(owner, api_keys.Terms(name="Test", limit_total=60_000))

    async def one(client: AsyncOpenAI, number: int) -> bool:
        try:
            await client.chat.completions.create(
                **ask(f"[[tokens=60 rate=0]] number {number}", max_tokens=60)
            )
        except openai.RateLimitError as error:
            assert error.code == "insufficient_quota"  # noqa: PT017
            return False
        return True

    async def all_of_them() -> list[bool]:
        async with AsyncOpenAI(
            base_url=f"{stack.base}/v1", api_key=secret, max_retries=0
        ) as client:
            return await asyncio.gather(*(one(client, number) for number in range(12)))

    rounds = 0
    while any(
        asyncio.run(all_of_them())
    ):  # USER_CONCURRENCY of them at a time, and further ones wait
        rounds += 1
        assert rounds < 10
    key.refresh_from_db()
    assert 30_000 < key.spent <= 60_000
    assert json.loads(ApiCall.objects.all()[0].request)["max_tokens"] == 60
