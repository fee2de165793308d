"""Fixtures of chat tests: an owner with a conversation, another user, an assistant."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from django.test import Client

from accounts.models import User
from billing.models import ModelPrice
from chat.models import Assistant, Conversation, LanguageModel
from tests.support.conversations import begin


@pytest.fixture
def assistant(transactional_db: None) -> Assistant:
    """An assistant whose model has a price."""
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
    """The owner of `conversation`."""
    return User.objects.create_user("owner@example.org", "correct horse battery")


@pytest.fixture
def stranger(transactional_db: None) -> User:
    """A user with no access to anything of the owner's."""
    return User.objects.create_user("stranger@example.org", "correct horse battery")


@pytest.fixture
def conversation(owner: User, assistant: Assistant) -> Conversation:
    """An empty conversation of the owner with the assistant."""
    return begin(owner, assistant)


def session_key(user: User) -> str:
    """Sign the user in and return the key of the new session."""
    client = Client()
    client.force_login(user)
    return client.cookies["sessionid"].value
