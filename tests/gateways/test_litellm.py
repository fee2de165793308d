"""LiteLLM's proxy between the provider client and the fake provider: a gateway as people run it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from chat.llm.decoder import Event, Finish, TextDelta, Usage
from chat.llm.errors import Cause, ProviderBusy, ProviderError
from chat.llm.provider import Provider
from chat.llm.request import CompletionRequest
from chatproject.local.servers import free_port
from tests.support.fake_llm import FakeLLM, reply_text
from tests.support.programs import Program

pytestmark = pytest.mark.gateway

PYTHON = Path(__file__).resolve().parents[2] / ".venv-gateways/bin/python"
KEY = "sk-of-the-gateway"
PATIENCE = 120.0  # its imports take twenty seconds on a small machine

CONFIG = """
model_list:
  - model_name: story
    litellm_params: {{model: openai/stub, api_base: "{url}", api_key: upstream}}
litellm_settings: {{num_retries: 0}}
router_settings: {{num_retries: 0, disable_cooldowns: true}}
general_settings: {{master_key: {key}}}
"""


@pytest.fixture(scope="module")
def gateway(provider_process: FakeLLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a proxy that passes all requests on to the fake provider."""
    folder = tmp_path_factory.mktemp("litellm")
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(url=provider_process.url, key=KEY))
    port = free_port()
    command = [
        *(str(PYTHON), "-c", "from litellm import run_server; run_server()"),
        *("--config", str(config), "--host", "127.0.0.1", "--port", str(port)),
    ]
    # Its list of prices would come from the network.
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with Program(command, cwd=folder, env=env) as program:
        program.wait_for("Uvicorn running", PATIENCE)
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture
def key() -> str:
    return KEY


@pytest_asyncio.fixture
async def provider(gateway: str, provider_process: FakeLLM, key: str) -> AsyncIterator[Provider]:
    provider_process.reset()
    connections = Provider(base_url=gateway, api_key=key, retry_delay=0.01)
    yield connections
    await connections.close()


def request(text: str, model: str = "story") -> CompletionRequest:
    return CompletionRequest(
        model=model, messages=[{"role": "user", "content": text}], max_tokens=500
    )


async def reply(provider: Provider, text: str, model: str = "story") -> list[Event]:
    async with aclosing(provider.stream(request(text, model))) as stream:
        return [event async for batch in stream for event in batch]


async def failure(provider: Provider, text: str, model: str = "story") -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await reply(provider, text, model)
    return caught.value


async def test_stream_has_text_finish_and_usage(provider):
    text = "[[tokens=80 rate=0]] Hello"
    events = await reply(provider, text)
    assert "".join(one.text for one in events if isinstance(one, TextDelta)) == reply_text(80, text)
    assert [one for one in events if isinstance(one, Finish)] == [Finish("stop")]
    [usage] = [one for one in events if isinstance(one, Usage)]
    assert (usage.prompt_tokens > 0, usage.completion_tokens) == (True, 80)


async def test_stop_ends_the_reply_at_the_source(provider, provider_process):
    stream = provider.stream(request("[[tokens=100000 rate=100]] Endless"))
    await anext(stream)
    await stream.aclose()
    await asyncio.to_thread(provider_process.wait, aborted=1)


@pytest.mark.parametrize("key", ["sk-wrong"])
async def test_wrong_key_is_named(provider, provider_process):
    assert (await failure(provider, "Hello")).cause == "key"
    assert provider_process.calls == []


@pytest.mark.parametrize(
    ("text", "model", "cause", "requests"),
    [
        ("Hello", "nosuch", "model", 0),
        ("[[status=400 code=content_filter]] Hello", "story", "content", 1),
        ("[[status=429 code=insufficient_quota]] Hello", "story", "quota", 1),
        ("[[status=401 code=invalid_api_key]] Hello", "story", "key", 1),
    ],
    ids=["model", "content", "quota", "key_of_the_gateway"],
)
async def test_refusal_keeps_its_cause(
    provider, provider_process, text: str, model: str, cause: Cause, requests: int
):
    error = await failure(provider, text, model)
    assert (error.cause, error.retryable) == (cause, False)
    assert len(provider_process.calls) == requests


async def test_busy_provider_is_asked_again(provider, provider_process):
    text = "[[status=429 code=rate_limit_exceeded retry_after=0.1 fail=1 tokens=5 rate=0]] Hello"
    events = await reply(provider, text)
    assert "".join(one.text for one in events if isinstance(one, TextDelta)) == reply_text(5, text)
    assert len(provider_process.calls) == 2


async def test_retry_after_of_the_source_arrives(provider):
    error = await failure(provider, "[[status=429 code=rate_limit_exceeded retry_after=77]] Hello")
    assert isinstance(error, ProviderBusy)
    assert error.retry_after == 77
