"""Fixtures of tests that start the project's processes."""

from __future__ import annotations

from tests.support.fake_llm.fixture import provider, provider_process
from tests.support.people import assistant, owner

__all__ = ["assistant", "owner", "provider", "provider_process"]
