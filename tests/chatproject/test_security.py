"""What every answer carries against other sites, and each test that SECURITY.md names."""

from __future__ import annotations

import re

import pytest
from django.conf import settings
from django.contrib.auth.hashers import identify_hasher
from django.test import Client, override_settings
from django.urls import reverse

from accounts.models import User
from tests.support.people import owner

__all__ = ["owner"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

PASSWORD = "correct horse battery"


@pytest.fixture
def https():
    """The settings of a site with HTTPS, where they are read at each request."""
    with override_settings(SESSION_COOKIE_SECURE=True, CSRF_COOKIE_SECURE=True):
        yield


@pytest.mark.usefixtures("https")
def test_cookies_are_closed_to_scripts_and_other_sites(owner: User):
    client = Client()
    client.get(reverse("account_login"), secure=True)
    form = {"login": owner.email, "password": PASSWORD}
    client.post(reverse("account_login"), form, secure=True)
    assert {"sessionid", "csrftoken", "known_browser"} <= {*client.cookies}
    for name, cookie in client.cookies.items():
        assert cookie["samesite"] == "Lax", name
        if name in ("sessionid", "known_browser"):
            assert cookie["httponly"], name
    assert client.cookies["sessionid"]["secure"]
    assert client.cookies["csrftoken"]["secure"]
    assert client.cookies["known_browser"]["secure"]


@pytest.mark.parametrize("path", ["/", "/accounts/login/", "/settings/", "/nothing/", "/admin/"])
def test_every_page_refuses_frames_and_sends_no_referrer(owner: User, path: str):
    client = Client()
    client.force_login(owner)
    response = client.get(path)
    assert response["X-Frame-Options"] == "DENY"
    assert response["Referrer-Policy"] == "same-origin"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Cross-Origin-Opener-Policy"] == "same-origin"
    policy = response["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy


def test_form_beyond_its_size_is_refused(owner: User):
    client = Client()
    client.force_login(owner)
    body = {"text": "x" * (settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1)}
    assert client.post(reverse("chat:settings"), body).status_code in (400, 413)


def test_stored_password_is_a_slow_hash(owner: User):
    assert identify_hasher(owner.password) is not None
    assert PASSWORD not in owner.password


def test_threat_model_names_existing_tests():
    text = (settings.BASE_DIR / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 20
    for path, function in named:
        source = (settings.BASE_DIR / path).read_text()
        assert not function or f"def {function}(" in source, f"{path}::{function}"
