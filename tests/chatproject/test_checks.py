"""System checks: settings that cannot work together are reported at the start."""

from __future__ import annotations

from chatproject import checks


def test_missing_key_and_model_are_reported(settings):
    settings.OPENAI_BASE_URL = "https://api.openai.com/v1"
    settings.OPENAI_API_KEY = ""
    assert [found.id for found in checks.check_provider()] == ["parley.W001"]
    settings.OPENAI_API_KEY = "key"
    assert checks.check_provider() == []
    settings.DEFAULT_MODEL = ""
    assert [found.id for found in checks.check_provider()] == ["parley.E001"]


def test_pool_smaller_than_its_threads_is_reported(settings):
    assert checks.check_pool() == []
    settings.DB_THREADS = settings.DATABASES["default"]["OPTIONS"]["pool"]["max_size"]
    assert [found.id for found in checks.check_pool()] == ["parley.E002"]
