"""Checks at the start of every command: settings that cannot work together."""

from __future__ import annotations

from chatproject import checks


def test_a_key_that_is_missing_is_told_at_start(settings):
    settings.OPENAI_BASE_URL = "https://api.openai.com/v1"
    settings.OPENAI_API_KEY = ""
    assert [found.id for found in checks.check_provider()] == ["parley.W001"]
    settings.OPENAI_API_KEY = "key"
    assert checks.check_provider() == []
    settings.DEFAULT_MODEL = ""
    assert [found.id for found in checks.check_provider()] == ["parley.E001"]


def test_a_pool_that_is_too_small_is_told_at_start(settings):
    assert checks.check_pool() == []
    settings.DB_THREADS = settings.DATABASES["default"]["OPTIONS"]["pool"]["max_size"]
    assert [found.id for found in checks.check_pool()] == ["parley.E002"]
