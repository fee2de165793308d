"""Fixtures of the tests with gateways."""

from __future__ import annotations

from tests.support.fake_llm.fixture import provider_process

__all__ = ["provider_process"]
