"""Requests of the OpenAI-compatible API that get no reply: each wrong one has an error in OpenAI's shape."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from PIL import Image

from accounts import api_keys
from accounts.models import User
from billing.ledger import signup
from billing.models import Hold, ModelPrice
from chat.api import bodies
from chat.api.errors import QUOTA
from chat.conversations.api_prompt import ApiRequest
from chat.models import Assistant, LanguageModel, ModerationRule, Run
from chat.moderation import rules
from chat.runs import api_calls
from chat.web import run_follower
from chatproject.asgi import application
from chatproject.lib import db
from chatproject.lib.env import Limit
from tests.support import money
from tests.support.people import assistant, owner

__all__ = ["assistant", "owner"]

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url", "assistant"),
]

HI = [{"role": "user", "content": "Hi"}]


def key_of(user: User, **terms: Any) -> str:
    return api_keys.create(user, api_keys.Terms(**{"name": "Test"} | terms))[1]


def asking(secret: str | None) -> httpx2.AsyncClient:
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=application),
        base_url="http://testserver/v1",
        headers=headers,
    )


@pytest_asyncio.fixture
async def client(owner: User) -> AsyncIterator[httpx2.AsyncClient]:
    """A client with a key of the owner's."""
    async with asking(await db.run(key_of, owner)) as made:
        yield made
    await run_follower.close_clients()


def png(width: int = 2, height: int = 2) -> str:
    data = io.BytesIO()
    Image.new("RGB", (width, height)).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "stub-model", "messages": HI} | fields


def image(url: Any) -> list[dict[str, Any]]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [{"type": "text", "text": "Look"}, part]}]


def call(**fields: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}} | fields


# Body, status, code and param.
WRONG: list[tuple[Any, int, str, str | None]] = [
    (b"{", 400, "invalid_json", None),
    (b"\xff", 400, "invalid_json", None),
    ([], 400, "invalid_value", None),
    ({"messages": HI}, 400, "missing_required_parameter", "model"),
    ({"model": "stub-model"}, 400, "missing_required_parameter", "messages"),
    (body(messages=[]), 400, "empty_array", "messages"),
    (body(messages="Hi"), 400, "invalid_value", "messages"),
    (body(messages=["Hi"]), 400, "invalid_value", "messages[0]"),
    (body(messages=[{"content": "Hi"}]), 400, "invalid_value", "messages[0].role"),
    (
        body(messages=[{"role": "function", "content": ""}]),
        400,
        "invalid_value",
        "messages[0].role",
    ),
    (body(messages=[*HI, {"role": "user"}]), 400, "invalid_value", "messages[1].content"),
    (
        body(messages=[{"role": "user", "content": [1]}]),
        400,
        "invalid_value",
        "messages[0].content[0].type",
    ),
    (
        body(messages=[{"role": "tool", "content": "x"}]),
        400,
        "invalid_value",
        "messages[0].tool_call_id",
    ),
    (body(messages=[{"role": "assistant"}]), 400, "invalid_value", "messages[0].content"),
    (
        body(messages=[{"role": "assistant", "tool_calls": [call(id=None)]}]),
        400,
        "invalid_value",
        "messages[0].tool_calls[0]",
    ),
    (body(messages=image(png())), 400, "no_vision", "messages[0].content[1].image_url"),
    (body(model=1), 400, "invalid_value", "model"),
    (body(model="gpt-nothing"), 404, "model_not_found", "model"),
    (body(model="a\0"), 404, "model_not_found", "model"),
    (body(n=2), 400, "unsupported_parameter", "n"),
    (body(temperature=2.5), 400, "invalid_value", "temperature"),
    (body(temperature="hot"), 400, "invalid_value", "temperature"),
    (body(max_tokens=0), 400, "invalid_value", "max_tokens"),
    (body(stop=["x"] * 17), 400, "invalid_value", "stop"),
    (body(stream="yes"), 400, "invalid_value", "stream"),
    (body(stream_options={"include_usage": True}), 400, "invalid_value", "stream_options"),
    (body(stream=True, stream_options={"x": 1}), 400, "unknown_parameter", "stream_options.x"),
    (body(colour="blue"), 400, "unknown_parameter", "colour"),
    (body(logprobs=True), 400, "unsupported_parameter", "logprobs"),
    (body(functions=[]), 400, "unsupported_parameter", "functions"),
    (body(modalities=["text", "audio"]), 400, "unsupported_parameter", "modalities"),
    (body(reasoning_effort="huge"), 400, "invalid_value", "reasoning_effort"),
    (body(tools=[{"type": "custom"}]), 400, "unsupported_parameter", "tools[0].type"),
    (
        body(tools=[{"type": "function", "function": {"name": "a b"}}]),
        400,
        "invalid_value",
        "tools[0].function.name",
    ),
]


@pytest.mark.asyncio
async def test_wrong_body_names_its_field(client: httpx2.AsyncClient):
    for wrong, status, code, param in WRONG:
        content = wrong if isinstance(wrong, bytes) else json.dumps(wrong).encode()
        answer = await client.post("/chat/completions", content=content)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (status, code, param), wrong
        assert error["message"]
        assert error["type"] == "invalid_request_error"
        assert len(answer.headers["x-request-id"]) >= 8
    assert not await db.run(Run.objects.exists)


@pytest.mark.asyncio
async def test_wrong_image_names_its_part(client: httpx2.AsyncClient):
    await db.run(lambda: LanguageModel.objects.update(vision=True))
    for url, code in (
        ("https://example.org/cat.png", "invalid_image_url"),
        ("data:image/svg+xml;base64,AAAA", "invalid_image_url"),
        ("data:image/png;base64,AAAA", "invalid_image"),
        (5, "invalid_value"),
    ):
        answer = await client.post("/chat/completions", json=body(messages=image(url)))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


@pytest.mark.asyncio
async def test_address_and_method_have_clear_errors(client: httpx2.AsyncClient, monkeypatch):
    for method, path, status, code in (
        ("GET", "/chat/completions", 405, "method_not_allowed"),
        ("OPTIONS", "/models", 405, "method_not_allowed"),
        ("POST", "/images/generations", 404, "unknown_url"),
        ("GET", "/models/gpt-nothing", 404, "model_not_found"),
    ):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    monkeypatch.setattr(bodies, "MAX_BODY_BYTES", 100)
    answer = await client.post("/chat/completions", content=b" " * 101)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.asyncio
async def test_key_without_the_right_is_refused(owner: User, settings):
    refusals: list[tuple[str | None, int, str]] = [
        (None, 401, "missing_api_key"),
        ("sk-parley-wrong", 401, "invalid_api_key"),
        (await db.run(key_of, owner, scopes=["read"]), 403, "missing_scope"),
    ]
    for secret, status, code in refusals:
        async with asking(secret) as client:
            for answer in (
                await client.post("/chat/completions", json=body()),
                await client.get("/models"),
                await client.get("/models/stub-model"),
            ):
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (status, code)
                assert ("www-authenticate" in answer.headers) == (status == 401)
    settings.SECURE_SSL_REDIRECT = True
    async with asking(await db.run(key_of, owner)) as client:
        answer = await client.get("/models")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "https_required")


@pytest.mark.asyncio
async def test_models_are_those_of_the_user(client: httpx2.AsyncClient, owner: User):
    def add(name: str, **fields: Any) -> LanguageModel:
        ModelPrice.objects.create(model=name, in_per_m=1, cached_in_per_m=1, out_per_m=1)
        return LanguageModel.objects.create(name=name, provider_model=name, **fields)

    await db.run(add, "hidden", restricted=True)
    await db.run(add, "org/large")
    answer = await client.get("/models")
    assert [one["id"] for one in answer.json()["data"]] == ["stub-model", "org/large"]
    assert answer.headers["x-ratelimit-limit-requests"] == "300"
    assert answer.headers["x-ratelimit-remaining-requests"] == "299"
    assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
    assert answer.headers["ratelimit-limit"] == "300"
    assert answer.headers["ratelimit-remaining"] == "299"
    assert 1 <= int(answer.headers["ratelimit-reset"]) <= 60
    assert (await client.get("/models/org/large")).json()["object"] == "model"
    assert (await client.get("/models/hidden")).status_code == 404
    assert (await client.get("/models/%00")).status_code == 404
    refused = await client.post("/chat/completions", json=body(model="hidden"))
    assert refused.status_code == 404


@pytest.mark.asyncio
async def test_limits_answer_with_429(client: httpx2.AsyncClient, owner: User, settings):
    poor = await db.run(key_of, owner, limit_month=10)
    async with asking(poor) as limited:
        answer = await limited.post("/chat/completions", json=body())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (429, "insufficient_quota")
    assert "spending limit" in error["message"]
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"api_requests": Limit(((1, 600),), False)}
    assert (await client.get("/models")).status_code == 200
    answer = await client.get("/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert answer.json()["error"]["type"] == "requests"
    assert 1 <= int(answer.headers["retry-after"]) <= 600
    assert (answer.headers["ratelimit-limit"], answer.headers["ratelimit-remaining"]) == ("1", "0")
    assert not await db.run(Run.objects.exists)


@pytest.mark.asyncio
async def test_figures_are_for_keys_with_usage(client: httpx2.AsyncClient, owner: User, assistant):
    """Of the account; below /v1 and in the REST API."""
    model = LanguageModel.objects.filter(pk=assistant.model_id)

    def spend_all() -> None:
        account = signup.account_of(owner.pk)
        money.adjust(account, -account.balance)

    await db.run(spend_all)

    async def sentences(*scopes: str) -> list[str]:
        secret = await db.run(lambda: key_of(owner, scopes=[*scopes, "models", "write"]))
        asked = {"model": "stub-model", "input": "Hi"}
        async with asking(secret) as program:
            await db.run(lambda: model.update(kind="embedding"))
            answers = [await program.post("/embeddings", json=asked)]
            await db.run(lambda: model.update(kind="chat"))
            answers.append(await program.post("/chat/completions", json=body()))
            rest = await program.post("http://testserver/api/v1/runs", json={"text": "Hi"})
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, QUOTA)
        assert (rest.status_code, rest.json()["code"]) == (402, "insufficient_credits")
        return [*(one.json()["error"]["message"] for one in answers), rest.json()["message"]]

    assert all("and you have 0" in one for one in await sentences("usage"))
    general = "Your credits do not cover this message. Buy credits, or send less."
    assert await sentences() == [general] * 3


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f"} | function}


def flat(description: str) -> dict[str, Any]:
    return {"type": "function", "name": "f", "description": description}


def schema(field: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": field}}


def answers(made: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": made}}


@pytest.mark.asyncio
async def test_moderated_request_is_refused_and_free(
    client: httpx2.AsyncClient, settings, monkeypatch
):
    settings.MODERATION = True
    monkeypatch.setattr(rules, "memory", rules.Memory())
    await db.run(lambda: ModerationRule.objects.create(name="No badgers", words="badger*"))
    for path, asked in (
        ("/chat/completions", body(messages=[{"role": "user", "content": "Of BADGERS"}])),
        ("/responses", {"model": "stub-model", "input": "Of badgers"}),
        ("/chat/completions", body(tools=[tool(description="Feeds badgers")])),
        ("/chat/completions", body(tools=[tool(name="badgers")])),
        ("/chat/completions", body(tools=[tool(parameters=schema({"enum": ["badger"]}))])),
        ("/chat/completions", body(response_format=answers(schema({"description": "Badger"})))),
        ("/chat/completions", body(response_format=answers({"properties": {"badgers": {}}}))),
        ("/responses", {"model": "stub-model", "input": "Hi", "tools": [flat("Of badgers")]}),
    ):
        for stream in (False, True):
            answer = await client.post(path, json=asked | {"stream": stream})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "content_policy_violation")
            assert error["type"] == "invalid_request_error"
            assert "No badgers" in error["message"]
    assert not await db.run(Run.objects.exists)
    assert not await db.run(Hold.objects.exists)


@pytest.mark.asyncio
async def test_every_text_of_a_call_is_held_for(owner: User, assistant: Assistant):
    def most(message: dict[str, Any]) -> int:
        model = LanguageModel.objects.get(pk=assistant.model_id)
        key, _secret = api_keys.create(owner, api_keys.Terms("Test"))
        request = ApiRequest([message], max_tokens=10)
        return int(api_calls.start_call(key, model, request, streamed=False).most)

    short = await db.run(most, {"role": "user", "content": "x"})
    hidden = "word " * 10_000
    for message in (
        {"role": "user", "content": "x", "name": hidden},
        {"role": "tool", "content": "x", "tool_call_id": hidden},
    ):
        assert await db.run(most, message) > 10 * short
