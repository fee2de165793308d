"""Health pages, checks at start, and the catalogue that a new installation begins with."""

from __future__ import annotations

import pytest
import redis
from django.core.management import call_command
from django.db import OperationalError

from accounts.models import User
from billing.models import CreditPackage, ModelPrice
from chat.conversations import listing
from chat.models import Assistant, LanguageModel
from chatproject import checks
from chatproject.ops import health

pytestmark = pytest.mark.django_db(transaction=True)


def test_health_answers_without_a_session(client):
    response = client.get("/health")
    assert (response.status_code, response.content) == (200, b"ok\n")


def test_ready_when_everything_answers(client):
    response = client.get("/health/ready")
    assert response.json() == {"database": True, "redis": True}
    assert response.status_code == 200


def test_not_ready_while_redis_is_away(client, monkeypatch):
    monkeypatch.setattr(health, "sync_client", lambda: redis.Redis(port=9))
    response = client.get("/health/ready")
    assert response.json() == {"database": True, "redis": False}
    assert response.status_code == 503


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (OperationalError("on purpose"), 503, "unavailable"),
        (redis.ConnectionError("on purpose"), 503, "unavailable"),
        (ValueError("on purpose"), 500, "internal"),
    ],
)
def test_a_fault_gets_a_page_in_words_and_programs_a_code(client, monkeypatch, fault, status, code):
    def fail(*args: object, **options: object) -> None:
        raise fault

    client.raise_request_exception = False
    client.force_login(User.objects.create_user("owner@example.org"))
    monkeypatch.setattr(listing, "sidebar", fail)
    response = client.get("/")
    assert response.status_code == status
    assert "<h1>" in response.text
    assert "on purpose" not in response.text
    response = client.get("/", headers={"accept": "application/json"})
    assert response.status_code == status
    assert response.json()["code"] == code


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


def test_the_catalogue_has_one_assistant_and_one_model_however_often_it_is_made(settings):
    settings.DEFAULT_MODEL, settings.DEFAULT_MODEL_CONTEXT = "small", 2048
    call_command("create_catalogue")
    call_command("create_catalogue")
    assistant = Assistant.objects.get()
    assert assistant.model == LanguageModel.objects.get()
    assert (assistant.model.provider_model, assistant.model.max_output_tokens) == ("small", 512)
    assert len(assistant.suggestions) == 3
    assert ModelPrice.objects.get().model == "small"
    assert [
        (found.slug, found.prices.get().amount_minor) for found in CreditPackage.objects.all()
    ] == [
        ("small", 500),
        ("medium", 2_000),
        ("large", 5_000),
    ]


def test_the_catalogue_follows_a_new_default_and_leaves_what_staff_chose(settings):
    settings.DEFAULT_MODEL = "first"
    call_command("create_catalogue")
    settings.DEFAULT_MODEL = "second"
    call_command("create_catalogue")
    assistant = Assistant.objects.get()
    assert assistant.model.name == "second"
    Assistant.objects.update(model=LanguageModel.objects.get(name="first"))
    call_command("create_catalogue")
    assistant.refresh_from_db()
    assert assistant.model.name == "first"
