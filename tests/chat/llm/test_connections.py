"""Connections to several providers, as their rows say: replaced when a row changes, closed when idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from chat.llm import connections
from chat.llm.connections import Connections, close_connections, current_connections
from chat.llm.errors import ProviderRefused
from chat.llm.provider import Provider as Client
from chat.llm.request import CompletionRequest
from chat.models import Provider
from tests.support.fake_llm import FakeLLM
from tests.support.proxy import Proxy

KEY = "sk-first-0123456789"


@pytest.fixture
def stub(provider_process: FakeLLM) -> FakeLLM:
    provider_process.reset()
    return provider_process


@pytest_asyncio.fixture
async def opened() -> AsyncIterator[Connections]:
    yield current_connections()
    await close_connections()
    await close_connections()  # closing nothing is fine


def row(stub: FakeLLM, **fields) -> Provider:
    return Provider(**{"pk": 1, "name": "First", "base_url": stub.url, "key": KEY} | fields)


async def ask(client: Client, text: str = "[[tokens=1]]") -> None:
    request = CompletionRequest("stub", [{"role": "user", "content": text}], max_tokens=100)
    async with aclosing(client.stream(request)) as stream:
        async for _ in stream:
            pass


async def test_each_row_has_its_own_address_key_and_headers(opened, stub, other):
    second = row(other, pk=2, name="Second", key="sk-second", headers={"X-Team": "blue"})
    for provider in (row(stub), second):
        with opened.use(provider) as client:
            await ask(client)
    (first,) = stub.headers
    assert first["Authorization"] == f"Bearer {KEY}"
    assert "X-Team" not in first
    (last,) = other.headers
    assert (last["Authorization"], last["X-Team"]) == ("Bearer sk-second", "blue")


async def test_row_without_address_follows_the_environment(opened, stub, settings):
    settings.OPENAI_BASE_URL, settings.OPENAI_API_KEY = stub.url, "the-sites-key"
    client = opened.open(Provider())
    assert opened.open(Provider()) is client
    await ask(client)
    settings.OPENAI_API_KEY = "another-key"
    await ask(opened.open(Provider()))
    sent = [headers["Authorization"] for headers in stub.headers]
    assert sent == ["Bearer the-sites-key", "Bearer another-key"]


async def test_key_may_come_from_a_variable(opened, stub, monkeypatch, tmp_path):
    (tmp_path / "key").write_text("from-a-file\n")
    monkeypatch.setenv("FIRST_API_KEY", "from-the-environment")
    monkeypatch.setenv("SECOND_API_KEY_FILE", str(tmp_path / "key"))
    for name in ("FIRST_API_KEY", "SECOND_API_KEY"):
        await ask(opened.open(row(stub, key="", key_variable=name)))
    sent = [headers["Authorization"] for headers in stub.headers]
    assert sent == ["Bearer from-the-environment", "Bearer from-a-file"]


async def test_changed_row_leaves_running_reply_alone(opened, stub, other):
    text = "[[tokens=4 rate=0 hold=2 key=one]]"
    with opened.use(row(stub)) as before:
        reading = asyncio.create_task(ask(before, text))
        await asyncio.to_thread(stub.wait, held=1)
        with opened.use(row(other)) as after:
            await ask(after)
        stub.release("one")
        await asyncio.wait_for(reading, 10)
        assert not before._client.is_closed()
    await asyncio.sleep(0)
    await asyncio.gather(*opened._closing)
    assert before._client.is_closed()
    assert not after._client.is_closed()
    assert len(other.requests) == 1


async def test_idle_connections_are_closed(opened, stub, monkeypatch):
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.05)
    with opened.use(row(stub)) as client:
        await ask(client)
        await asyncio.sleep(0.2)
        assert not client._client.is_closed()  # in use
    async with asyncio.timeout(10):
        while not client._client.is_closed():
            await asyncio.sleep(0.01)
    with opened.use(row(stub)) as again:
        await ask(again)
    assert again is not client


def test_each_event_loop_has_its_own_connections(stub):
    async def use() -> Client:
        client = current_connections().open(row(stub))
        await ask(client)
        await close_connections()
        return client

    assert asyncio.run(use()) is not asyncio.run(use())


async def test_disabled_provider_is_not_asked(opened, stub):
    with pytest.raises(ProviderRefused) as caught, opened.use(row(stub, enabled=False)):
        pass
    assert "First is disabled" in caught.value.detail


async def test_undecryptable_key_is_reported_clearly(opened, stub, settings):
    provider = row(stub)
    settings.SECRET_KEY = "another secret of this installation, long enough"
    with pytest.raises(ProviderRefused) as caught, opened.use(provider):
        pass
    assert caught.value.reason == "key"
    assert "First cannot be decrypted" in caught.value.detail
    assert "ENCRYPTION_KEYS" in caught.value.detail


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key": "", "key_variable": "LOST_API_KEY"}, "key"),
        ({"key": "sk-\N{EN DASH}-copied"}, "key"),
        ({"key": "two\nlines"}, "key"),
        ({"base_url": "http://127.0.0.1:99999/v1"}, "address"),
        ({"base_url": "http://127.0.0.1:port/v1"}, "address"),
        ({"base_url": "http://[::1/v1"}, "address"),
        ({"base_url": "http://127.0.0.1:1/v1/chat/completions"}, "address"),
    ],
    ids=["unreadable file", "dash", "two lines", "high port", "no port", "bracket", "route"],
)
async def test_unusable_row_is_refused(opened, stub, monkeypatch, fields, reason):
    monkeypatch.setenv("LOST_API_KEY_FILE", "/no/such/file")
    with pytest.raises(ProviderRefused) as caught, opened.use(row(stub, **fields)):
        pass
    assert caught.value.reason == reason
    assert "provider First" in caught.value.detail


async def test_secrets_stay_out_of_the_log(opened, stub, caplog):
    caplog.set_level("DEBUG")
    provider = row(stub, headers={"X-Secret": "a-header-nobody-may-see"})
    with opened.use(provider) as client, pytest.raises(ProviderRefused) as caught:
        await ask(client, "[[status=400 echo]] a-header-nobody-may-see")
    assert KEY not in caught.value.detail
    assert "nobody-may-see" not in caught.value.detail
    assert KEY not in caplog.text
    assert "nobody-may-see" not in caplog.text


# --- Proxies ----------------------------------------------------------------------------------


async def test_requests_go_through_the_rows_proxy(opened, stub):
    with Proxy(user="parley", password="pass word") as proxy:
        address = proxy.url.replace("//", "//parley:pass%20word@")
        await ask(opened.open(row(stub, proxy=address)))
        assert proxy.targets == [f"{stub.url}/chat/completions"]
    assert len(stub.requests) == 1


async def test_environments_proxy_leaves_loopback_alone(opened, stub, monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Proxy() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        await ask(opened.open(row(stub)))
        local = stub.url.replace("127.0.0.1", "localhost")
        await ask(opened.open(row(stub, base_url=local)))
        assert proxy.targets == []
        await ask(opened.open(row(stub, base_url="http://model.example.org/v1")))
        assert proxy.targets == ["http://model.example.org/v1/chat/completions"]
    assert len(stub.requests) == 2
