"""The staff page "System status": readiness with reasons, and the findings of the quick checks."""

from __future__ import annotations

import pytest
import redis
from django.contrib.auth.models import Permission
from django.urls import reverse
from redis.backoff import NoBackoff
from redis.retry import Retry

from accounts.models import User
from chatproject.ops import readiness
from chatproject.ops.doctor import redis_server

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

URL = "/admin/status/"


@pytest.fixture
def staff(client):
    user = User.objects.create_user("staff@example.org", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_status"))
    client.force_login(user)
    return client


def test_page_shows_readiness_and_findings(staff):
    page = staff.get(URL)
    assert page.status_code == 200
    assert "No worker takes messages: they stay queued." in page.text
    assert "The site stays reachable meanwhile." in page.text
    assert "at present with 200" in page.text
    assert "Run manage.py create_catalogue" in page.text
    assert "All are applied" in page.text
    assert URL in staff.get(reverse("admin:index")).text


def test_page_reports_an_unreachable_redis(staff, monkeypatch, settings):
    client = redis.Redis(port=9, retry=Retry(NoBackoff(), 0))
    monkeypatch.setattr(readiness, "sync_client", lambda: client)
    settings.REDIS_URL = "redis://127.0.0.1:9/0"
    page = staff.get(URL).text
    assert "Redis is unreachable: " in page
    assert "<strong>503</strong>" in page
    assert redis_server.UNREACHABLE in page


def test_page_requires_its_permission(client):
    client.force_login(User.objects.create_user("some@example.org", is_staff=True))
    assert client.get(URL).status_code == 403
    assert URL not in client.get(reverse("admin:index")).text
    client.force_login(User.objects.create_user("user@example.org"))
    assert client.get(URL).status_code == 302
