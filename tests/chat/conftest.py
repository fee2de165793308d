"""Fixtures of the chat tests: the people, a provider, and event loops like those of production."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from chat import consumers, llm, tick
from tests.stub import StubProvider
from tests.support.people import assistant, conversation, owner, stranger

__all__ = ["assistant", "conversation", "owner", "stranger"]


@pytest.fixture(scope="session")
def provider_process() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


@pytest.fixture
def provider(provider_process: StubProvider, settings) -> StubProvider:
    """The stub provider, forgetful of earlier tests, and the settings that point at it."""
    provider_process.reset()
    settings.OPENAI_BASE_URL = provider_process.url
    settings.OPENAI_API_KEY = "stub"
    return provider_process


@pytest_asyncio.fixture
async def worker_loop(valkey_url: str, provider: StubProvider) -> AsyncIterator[None]:
    """Lets the test's event loop make runs, and closes what they shared."""
    yield
    await tick.shut()
    await llm.close()


@pytest_asyncio.fixture
async def socket_loop(valkey_url: str) -> AsyncIterator[None]:
    """Lets the test's event loop serve sockets, and closes what they shared."""
    yield
    await consumers.close_clients()
