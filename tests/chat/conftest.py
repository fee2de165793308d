"""A fixed cast for chat: an owner with a conversation, a stranger, an assistant, a provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio
import redis

from accounts.models import User
from billing.models import ModelPrice
from chat.llm.provider import close_provider
from chat.models import Assistant, Conversation, LanguageModel
from chat.streaming.ticker import close_ticker
from chat.web import run_follower
from tests.chat.helpers import begin
from tests.stub import StubProvider


@pytest.fixture
def assistant(transactional_db: None) -> Assistant:
    model = LanguageModel.objects.create(
        name="Stub", provider_model="stub-model", context_tokens=8_000, max_output_tokens=2_000
    )
    # In micro-credits: 20 credits per million tokens in, 10 cached, 80 out.
    ModelPrice.objects.create(
        model="stub-model",
        in_per_m=20_000_000,
        cached_in_per_m=10_000_000,
        out_per_m=80_000_000,
        effective_from=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return Assistant.objects.create(
        slug="parley", name="Parley", system_prompt="Be brief.", model=model
    )


@pytest.fixture
def owner(transactional_db: None) -> User:
    return User.objects.create_user("owner@example.org", "correct horse battery")


@pytest.fixture
def stranger(transactional_db: None) -> User:
    return User.objects.create_user("stranger@example.org", "correct horse battery")


@pytest.fixture
def conversation(owner: User, assistant: Assistant) -> Conversation:
    return begin(owner, assistant)


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
    await close_ticker()
    await close_provider()


@pytest_asyncio.fixture
async def socket_loop(valkey_url: str) -> AsyncIterator[None]:
    """Lets the test's event loop serve sockets, and closes what they shared."""
    yield
    await run_follower.close_clients()


@pytest.fixture
def valkey_client(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        yield client
