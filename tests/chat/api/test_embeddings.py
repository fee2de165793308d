"""Embeddings by the API: the openai client, refusals, exact money, and killed or stopped web processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import openai
import pytest
from django.core.exceptions import ValidationError
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from openai import AsyncOpenAI, OpenAI

from accounts import api_keys
from accounts.models import ApiKey, User
from billing.ledger import audit, expiry
from billing.models import Account, Hold, ModelPrice, UsageRecord
from chat.conversations import offers
from chat.models import LanguageModel, Provider, Run
from tests.chat.api.test_openai_client import balance, micro
from tests.chat.api.test_requests import asking, key_of
from tests.support.fake_llm import FakeLLM
from tests.support.fake_llm.embeddings import FLOAT_ONLY, vector_of
from tests.support.fake_llm.fixture import provider, provider_process
from tests.support.people import assistant, owner
from tests.support.programs import wait_until
from tests.support.stack import Stack

__all__ = ["assistant", "owner", "provider", "provider_process"]

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url", "assistant"),
]

MODEL = "text-embedding-fake"
PRICE = 7_000_000  # micro-credits per million tokens: 7 for a token


def add_model(name: str = MODEL, **fields: Any) -> LanguageModel:
    ModelPrice.objects.create(model=name, in_per_m=PRICE, cached_in_per_m=PRICE, out_per_m=0)
    sizes = {"dimensions": 8, "max_inputs": 5, "context_tokens": 512}
    return LanguageModel.objects.create(
        name=name, provider_model=name, kind="embedding", **(sizes | fields)
    )


@pytest.fixture
def model(assistant: Any) -> LanguageModel:
    return add_model()


@pytest.fixture
def stack(provider: FakeLLM, server_folder) -> Iterator[Stack]:
    """A web process: a call needs no worker."""
    with Stack(server_folder, provider_url=provider.url) as running:
        running.change_environment(WEB_DRAIN_SECONDS="1")
        running.start("web")
        yield running


def test_client_gets_vectors_for_exact_cost(
    stack: Stack, owner: User, provider: FakeLLM, model: LanguageModel
):
    add_model(FLOAT_ONLY)
    key, secret = api_keys.create(owner, api_keys.Terms(name="Test"))
    with OpenAI(base_url=f"{stack.base}/v1", api_key=secret, max_retries=0, timeout=60) as client:
        check_calls(stack, owner, provider, key, client)


def check_calls(stack: Stack, owner: User, provider: FakeLLM, key: ApiKey, client: OpenAI) -> None:
    before = balance(owner)
    spent = 0
    # The client asks for base64 by default, and decodes it; each input has other tokens.
    inputs: Any
    for inputs, tokens, name in (
        ("Hello there", 2, MODEL),
        (["One", "two words", "and three words"], 6, MODEL),
        ([11, 12, 13], 3, MODEL),
        ([[11, 12], [13]], 3, MODEL),
        ("Hello there", 2, FLOAT_ONLY),
    ):
        texts = [inputs] if isinstance(inputs, str) or isinstance(inputs[0], int) else inputs
        options: tuple[dict[str, Any], ...]
        options = ({}, {"encoding_format": "float"}, {"dimensions": 4, "user": "me"})
        for fields in options:
            made = client.embeddings.create(model=name, input=inputs, **fields)
            size = fields.get("dimensions", 8)
            assert [one.embedding for one in made.data] == [vector_of(one, size) for one in texts]
            assert [one.index for one in made.data] == list(range(len(texts)))
            assert (made.model, made.usage.prompt_tokens) == (name, tokens)
            assert micro(made.usage) == 7 * tokens
            spent += 7 * tokens
            assert balance(owner) == before - spent
    sent = provider.requests[-1]
    assert (sent["dimensions"], "user" in sent) == (4, False)
    assert provider.connections < 5  # they are kept
    # Without a report the tokens are estimated; a temporary error is tried again.
    counted = client.embeddings.create(model=MODEL, input="[[nousage=1]] word")
    assert counted.usage.prompt_tokens == 5
    client.embeddings.create(model=MODEL, input="[[status=503 fail=1]]")
    assert {*UsageRecord.objects.values_list("purpose", "api_key", "source")} == {
        ("embed", key.pk, "provider"),
        ("embed", key.pk, "counted"),
    }
    # Errors of the provider, before and in place of an answer: nothing is charged, nothing stays held.
    before = balance(owner)
    for text, status, code in (
        ("[[status=400]]", 400, "provider_refused"),
        ("[[status=500]]", 502, "provider_error"),
        ("[[garbage=0]]", 502, "provider_error"),
    ):
        with pytest.raises(openai.APIStatusError) as refused:
            client.embeddings.create(model=MODEL, input=text)
        assert (refused.value.status_code, refused.value.code) == (status, code)
    assert (balance(owner), Account.objects.get(user=owner).held) == (before, 0)
    # A client that hangs up ends the call at the provider, and pays what was sent there, by estimate.
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).embeddings.create(model=MODEL, input="[[headers=30]]")
    wait_until(lambda: Account.objects.get(user=owner).held == 0, "the hold is settled")
    provider.wait(aborted=1)
    [abandoned] = UsageRecord.objects.filter(source="counted", input_tokens=4)
    assert balance(owner) == before - abandoned.charged < before
    before = balance(owner)
    # At the end of the process the call is answered; after a kill the clock releases its hold.
    ends_call(stack, client, provider, stack.terminate)
    assert Account.objects.get(user=owner).held == 0
    stack.start("web")
    ends_call(stack, client, provider, stack.kill)
    held = Hold.objects.get(status="active")
    assert held.amount == Account.objects.get(user=owner).held > 0
    assert expiry.release_holds(timezone.now() + timedelta(minutes=11)) == 1
    assert balance(owner) == before
    key.refresh_from_db()
    charged = sum(UsageRecord.objects.values_list("charged", flat=True))
    assert key.spent == charged == sum(hold.settled or 0 for hold in Hold.objects.all())
    assert not Run.objects.exists()
    assert audit.check() == []
    # The pages that show what was used.
    page = Client()
    page.force_login(owner)
    history = page.get(reverse("billing:history")).content.decode()
    assert "Embeddings" in history
    assert MODEL in history
    assert MODEL in page.get(reverse("billing:usage")).content.decode()


def ends_call(stack: Stack, client: OpenAI, provider: FakeLLM, end: Any) -> None:
    """End the web process while a call waits for its provider."""
    provider.wait(active=0)

    def call() -> openai.APIError:
        with pytest.raises(openai.APIError) as failed:
            client.embeddings.create(model=MODEL, input="[[headers=4]] late")
        return failed.value

    async def play() -> openai.APIError:
        calling = asyncio.create_task(asyncio.to_thread(call))
        await asyncio.to_thread(provider.wait, active=1)
        await asyncio.to_thread(end, "web")
        return await calling

    error = asyncio.run(play())
    if end == stack.terminate:
        assert isinstance(error, openai.InternalServerError)
        assert (error.status_code, error.code) == (503, "unavailable")
        assert "Traceback" not in stack.log("web")
        assert "Unclosed" not in stack.log("web")


WRONG: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"input": []}, 400, "empty_array", "input"),
    ({"input": ""}, 400, "invalid_value", "input[0]"),
    ({"input": ["a", ""]}, 400, "invalid_value", "input[1]"),
    ({"input": ["a", 1]}, 400, "invalid_value", "input"),
    ({"input": [[1], [-1]]}, 400, "invalid_value", "input"),
    ({"input": [True]}, 400, "invalid_value", "input"),
    ({"input": ["a"] * 6}, 400, "invalid_value", "input"),
    ({"input": [[1] * 513]}, 400, "context_length_exceeded", "input[0]"),
    ({"input": "a" * 5_000}, 400, "context_length_exceeded", "input[0]"),
    ({"encoding_format": "hex"}, 400, "invalid_value", "encoding_format"),
    ({"dimensions": 0}, 400, "invalid_value", "dimensions"),
    ({"dimensions": 10**7}, 400, "invalid_value", "input"),
    ({"colour": 1}, 400, "unknown_parameter", "colour"),
    ({"model": "stub-model"}, 400, "model_not_supported", "model"),
    ({"model": "nothing"}, 404, "model_not_found", "model"),
    ({"model": "hidden"}, 404, "model_not_found", "model"),
    ({"model": "unpriced"}, 404, "model_not_found", None),
]


@pytest.mark.asyncio
async def test_wrong_request_is_refused_and_free(owner: User, model: LanguageModel):
    from chatproject.lib import db

    def prepare() -> tuple[str, str, str]:
        add_model("hidden", restricted=True)
        fields = {"dimensions": 8, "kind": "embedding", "provider_model": "unpriced"}
        LanguageModel.objects.create(name="unpriced", **fields)
        keys = [key_of(owner), key_of(owner, scopes=["read"]), key_of(owner, limit_total=20)]
        assert [one.model.name for one in offers.offered(owner)] == ["Stub"]
        assert not offers.is_usable(owner, model)
        return keys[0], keys[1], keys[2]

    whole, reads, poor = await db.run(prepare)
    async with asking(whole) as client:
        for wrong, status, code, param in WRONG:
            answer = await client.post("/embeddings", json={"model": MODEL, "input": "Hi"} | wrong)
            error = answer.json()["error"]
            found = (answer.status_code, error["code"], error["param"])
            assert found == (status, code, param), (wrong, error)
        listed = (await client.get("/models")).json()["data"]
        assert [one["id"] for one in listed] == ["stub-model", MODEL]
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
        answer = await client.post("/chat/completions", json=chat)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_supported")
    for secret, status, code in (
        (reads, 403, "missing_scope"),
        (poor, 429, "insufficient_quota"),
    ):
        async with asking(secret) as client:
            answer = await client.post("/embeddings", json={"model": MODEL, "input": "Hi"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert not await db.run(Hold.objects.exists)


def test_spending_limit_counts_embeddings_in_flight(stack: Stack, owner: User, model, provider):
    """Each of these may cost 217 micro-credits, and costs 14."""
    key, secret = api_keys.create(owner, api_keys.Terms(name="Test", limit_total=600))

    async def one(client: AsyncOpenAI) -> bool:
        try:
            await client.embeddings.create(model=MODEL, input="[[headers=1]] a")
        except openai.RateLimitError as error:
            assert error.code == "insufficient_quota"  # noqa: PT017
            return False
        return True

    async def play() -> list[bool]:
        async with AsyncOpenAI(
            base_url=f"{stack.base}/v1", api_key=secret, max_retries=0
        ) as client:
            return await asyncio.gather(*(one(client) for _ in range(3)))

    answers = asyncio.run(play())
    key.refresh_from_db()
    assert key.spent == 14 * sum(answers)
    assert 1 <= sum(answers) < 3


def test_staff_add_a_model_for_embeddings(admin_client: Client, assistant: Any):
    add = reverse("admin:chat_languagemodel_add")
    form = {"name": "Vectors", "provider_model": "vectors", "provider": "", "enabled": "on"}
    form |= {"context_tokens": "512", "max_output_tokens": "4096", "kind": "embedding"}
    page = admin_client.post(add, form).content.decode()
    assert "Enter the size of its vectors." in page
    provider = Provider.objects.create(name="Environment")
    form |= {"dimensions": "1024", "max_inputs": "", "provider": str(provider.pk)}
    assert admin_client.post(add, form).status_code == 302
    model = LanguageModel.objects.get(name="Vectors")
    assert (model.kind, model.dimensions, model.max_inputs) == ("embedding", 1024, 2048)
    # It is no choice for an assistant, and a model of one cannot become one of these.
    change = reverse("admin:chat_assistant_change", args=[assistant.pk])
    assert "Vectors (" not in admin_client.get(change).content.decode()
    assistant.model.kind, assistant.model.dimensions = "embedding", 8
    with pytest.raises(ValidationError):
        assistant.model.full_clean()
