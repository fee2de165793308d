"""The fixtures `provider`, a fake provider that the settings name, and `other`, a second one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_llm import FakeLLM


@pytest.fixture(scope="session")
def provider_process() -> Iterator[FakeLLM]:
    """The process that all tests of the session share."""
    with FakeLLM() as llm:
        yield llm


@pytest.fixture
def provider(provider_process: FakeLLM, settings) -> FakeLLM:
    """The fake provider, reset after earlier tests."""
    provider_process.reset()
    settings.OPENAI_BASE_URL = provider_process.url
    settings.OPENAI_API_KEY = "fake"
    return provider_process


@pytest.fixture(scope="session")
def other_process() -> Iterator[FakeLLM]:
    """The process of the second provider, which all tests of the session share."""
    with FakeLLM() as llm:
        yield llm


@pytest.fixture
def other(other_process: FakeLLM) -> FakeLLM:
    """A second fake provider, reset after earlier tests."""
    other_process.reset()
    return other_process
