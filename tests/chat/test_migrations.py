"""Migrations on the rows of the previous release."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from chat.models import LanguageModel, Provider

pytestmark = pytest.mark.django_db(transaction=True)

BEFORE = ("chat", "0006_error_cause")


def migrate(*targets: tuple[str, str]) -> Any:
    """Migrate to these states, by default to the newest; return the models of then."""
    executor = MigrationExecutor(connection)
    newest = [node for node in executor.loader.graph.leaf_nodes() if node[0] == "chat"]
    return executor.migrate([*targets] or newest).apps


@pytest.mark.long
def test_earlier_models_belong_to_the_environments_provider():
    try:
        model = migrate(BEFORE).get_model("chat", "LanguageModel")
        for name in ("first", "second"):
            model.objects.create(name=name, provider_model=name)
    finally:
        migrate()
    provider = Provider.objects.get()
    assert (provider.name, provider.is_environment) == ("Environment", True)
    assert LanguageModel.objects.filter(provider=provider).count() == 2
