"""Health-check endpoints and error pages."""

from __future__ import annotations

import pytest
import redis
from django.db import OperationalError

from accounts.models import User
from chat.conversations import listing
from chatproject.ops import health

pytestmark = pytest.mark.django_db(transaction=True)


def test_health_needs_no_session(client):
    response = client.get("/health")
    assert (response.status_code, response.content) == (200, b"ok\n")


def test_ready_reports_database_and_redis(client, monkeypatch):
    response = client.get("/health/ready")
    assert (response.status_code, response.json()) == (200, {"database": True, "redis": True})
    monkeypatch.setattr(health, "sync_client", lambda: redis.Redis(port=9))
    response = client.get("/health/ready")
    assert (response.status_code, response.json()) == (503, {"database": True, "redis": False})


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OperationalError("on purpose"), 503, "unavailable"),
        (redis.ConnectionError("on purpose"), 503, "unavailable"),
        (ValueError("on purpose"), 500, "internal"),
    ],
)
def test_exception_becomes_a_page_or_a_code(client, monkeypatch, error, status, code):
    """People get a page in words, programs a JSON object with an error code."""

    def fail(*args: object, **options: object) -> None:
        raise error

    client.raise_request_exception = False
    client.force_login(User.objects.create_user("owner@example.org"))
    monkeypatch.setattr(listing, "sidebar", fail)
    page = client.get("/")
    assert page.status_code == status
    assert "<h1>" in page.text
    assert "on purpose" not in page.text
    answer = client.get("/", headers={"accept": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
