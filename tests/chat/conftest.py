"""Fixtures of the chat tests: users, a provider, and event loops as in production."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from chat.llm.connections import close_connections
from chat.streaming.ticker import close_ticker
from chat.web import run_follower
from tests.support.fake_llm import FakeLLM
from tests.support.fake_llm.fixture import other, other_process, provider, provider_process
from tests.support.people import assistant, conversation, owner, stranger

__all__ = [
    "assistant",
    "conversation",
    "other",
    "other_process",
    "owner",
    "provider",
    "provider_process",
    "stranger",
]


@pytest_asyncio.fixture
async def worker_loop(valkey_url: str, provider: FakeLLM) -> AsyncIterator[None]:
    """Let the test's event loop generate replies; close the shared clients afterwards."""
    yield
    await close_ticker()
    await close_connections()


@pytest_asyncio.fixture
async def socket_loop(valkey_url: str) -> AsyncIterator[None]:
    """Let the test's event loop serve sockets; close the shared clients afterwards."""
    yield
    await run_follower.close_clients()
