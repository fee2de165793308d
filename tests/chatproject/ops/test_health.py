"""Health-check endpoints and error pages."""

from __future__ import annotations

import pytest
import redis
from django.db import OperationalError

from accounts.models import User
from chat.conversations import listing
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
