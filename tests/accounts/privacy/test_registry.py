"""Each table, key and file that can hold personal data is registered, or declared free of it."""

from __future__ import annotations

import re
from pathlib import Path

from django.apps import apps
from django.conf import settings

from accounts.models import User
from chatproject.lib import personal_data

ADVICE = (
    "Register the table in the registry of its app (accounts/privacy/registry.py, billing/privacy.py,"
    " chat/privacy/registry.py): as a PersonalTable, with the document of the export and the way in which the purge"
    " erases it, or by declare_impersonal with the reason. Give tests/support/leaver.py a row of it."
)


def models():
    return [
        model
        for model in apps.get_models(include_auto_created=True)
        if model._meta.managed or model._meta.db_table
    ]


def test_every_table_is_registered_or_impersonal():
    known = {table.model for table in personal_data.tables()} | set(personal_data.impersonal())
    assert {model._meta.label for model in models()} - known == set(), ADVICE
    assert known - {model._meta.label for model in models()} == set()
    both = {table.model for table in personal_data.tables()} & set(personal_data.impersonal())
    assert both == set()


def test_tables_with_a_path_to_a_user_are_personal():
    personal = {User._meta.label, *(table.model for table in personal_data.tables())}
    # A model of staff names its author; groups of models and announcements name no user.
    found = {
        f"{model._meta.label}.{field.name}"
        for model in models()
        if model._meta.label in personal_data.impersonal()
        for field in model._meta.concrete_fields
        if field.is_relation and field.related_model._meta.label in personal
    }
    assert found - {"chat.Assistant_groups.assistant"} == set(), ADVICE


def test_registered_tables_are_exported_or_give_a_reason():
    for table in personal_data.tables():
        assert bool(table.document) != bool(table.reason), table.model
        names = {field.name for field in table.kind._meta.concrete_fields}
        assert set(table.omitted) <= names, table.model
    steps = {name for name, _step in personal_data.steps()}
    assert {table.erased_by for table in personal_data.tables()} - {""} <= steps


def test_registered_keys_are_those_of_the_glossary():
    text = (Path(settings.BASE_DIR) / "docs" / "glossary.md").read_text()
    rows = text[text.index("## Keys in Redis") :]
    prefixes = {
        prefix
        for row in re.findall(r"^\| (`.+?) \|", rows, re.MULTILINE)
        for prefix in re.findall(r"`([^`]+)`", row)
    }
    assert set(personal_data.keys()) == prefixes, ADVICE
