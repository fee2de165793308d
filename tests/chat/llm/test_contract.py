"""Names of openai, aiohttp and httpx2 that chat.llm relies on, private ones among them.

An upgrade that moves one of them fails here. In production nothing would fail: `Body` would read
through httpx2, slower and without pauses.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path

import aiohttp
import httpx2
import openai
import pytest
import pytest_asyncio

from chat.llm.paused_body import aiohttp_response
from tests.support.fake_llm import FakeLLM

REQUIREMENTS = Path(__file__).resolve().parents[3] / "requirements.in"


@pytest_asyncio.fixture
async def response(provider_process: FakeLLM) -> AsyncIterator[httpx2.Response]:
    """A streamed response of the client that `Provider` uses; its end comes after a release."""
    provider_process.reset()
    body = {
        "model": "stub",
        "stream": True,
        "messages": [{"role": "user", "content": "[[tokens=9 rate=0 hold=3 key=contract]]"}],
    }
    async with openai.DefaultAioHttpClient() as client:
        url = f"{provider_process.url}/chat/completions"
        async with client.stream("POST", url, json=body) as streamed:
            yield streamed


@pytest.mark.parametrize("package", ["openai", "aiohttp", "httpx2"])
def test_packages_with_private_names_are_pinned(package):
    lines = REQUIREMENTS.read_text().splitlines()
    [pin] = [line for line in lines if line.partition("==")[0].partition("[")[0] == package]
    assert pin.partition("==")[2] == metadata.version(package)


async def test_stream_of_httpx2_wraps_the_aiohttp_response(response):
    wrapped = response.stream._stream._aiohttp_response
    assert isinstance(wrapped, aiohttp.ClientResponse)
    assert aiohttp_response(response) is wrapped


async def test_other_transports_have_no_aiohttp_response():
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=b"a body"))
    async with (
        httpx2.AsyncClient(transport=transport) as client,
        client.stream("GET", "http://testserver/") as streamed,
    ):
        assert aiohttp_response(streamed) is None


async def test_buffer_of_aiohttp_is_a_deque_of_chunks(response):
    content = aiohttp_response(response).content
    assert isinstance(content, aiohttp.StreamReader)
    while not content._buffer:
        await content._wait("read")
    assert isinstance(content._buffer, deque)
    whole = b"".join(content._buffer)
    content._buffer.clear()
    content._buffer.append(whole)
    assert content.read_nowait() == whole
    assert content.exception() is None


async def test_connection_has_a_pausable_transport_until_eof(response, provider_process):
    found = aiohttp_response(response)
    transport = found.connection.transport
    assert not transport.is_closing()
    transport.pause_reading()
    provider_process.release("contract")
    transport.resume_reading()
    while not found.content.is_eof():
        await found.content.readany()
    assert found.connection is None


def test_signatures_relied_on_are_unchanged():
    assert list(inspect.signature(aiohttp.StreamReader._wait).parameters) == ["self", "func_name"]
    post = inspect.signature(openai.AsyncOpenAI.post).parameters
    assert {"path", "cast_to", "content", "options", "stream", "stream_cls"} <= post.keys()
    limits = inspect.signature(httpx2.Limits).parameters
    assert {"max_connections", "keepalive_expiry"} <= limits.keys()
    assert "response" in openai.AsyncStream.__annotations__
    assert inspect.iscoroutinefunction(openai.AsyncStream.close)
