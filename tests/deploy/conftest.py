"""Fixtures of the tests of deployment."""

from __future__ import annotations

from tests.support.people import assistant, conversation, owner

__all__ = ["assistant", "conversation", "owner"]
