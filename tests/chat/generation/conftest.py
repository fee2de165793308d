"""Fixtures of the tests of runs that call tools."""

from __future__ import annotations

import pytest
import pytest_asyncio

from chat.models import Assistant, LanguageModel
from chat.tools import registry
from chatproject.lib import db
from tests.support.effects import TOOLS, Effects, tools


@pytest.fixture
def effects(monkeypatch) -> Effects:
    """Register the tools of tests/support/effects.py."""
    made = Effects()
    registry.builtin_tools()
    for name, tool in tools(made).items():
        monkeypatch.setitem(registry._registered, name, tool)
    return made


@pytest_asyncio.fixture
async def with_tools(assistant, effects) -> None:
    def store() -> None:
        Assistant.objects.filter(pk=assistant.pk).update(tools=TOOLS)
        LanguageModel.objects.filter(pk=assistant.model_id).update(tools=True)

    await db.run(store)
