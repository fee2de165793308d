"""Forms and sockets from a wrong address: the page, and the setting that the log names."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import Client, RequestFactory

from chatproject import checks
from chatproject.lib import origins
from chatproject.local.servers import BASE_DIR
from tests.support.programs import environment

OWN: dict[str, Any] = {"HTTP_HOST": "chat.example.org"}
PAGE = "https://chat.example.org"


@pytest.fixture(autouse=True)
def site(settings, caplog) -> Any:
    settings.ALLOWED_HOSTS = ["chat.example.org"]
    settings.CSRF_TRUSTED_ORIGINS = []
    origins._reported.clear()
    caplog.set_level(logging.WARNING)
    return settings


def post(**headers: str) -> Any:
    client = Client(enforce_csrf_checks=True)
    client.cookies["csrftoken"] = "t" * 32
    form = {"csrfmiddlewaretoken": "t" * 32, "login": "a@example.org", "password": "x"}
    return client.post("/accounts/login/", form, **OWN | headers)


@pytest.mark.parametrize(
    ("headers", "advice"),
    [
        ({"HTTP_ORIGIN": PAGE}, "TRUST_PROXY=1"),
        ({"HTTP_ORIGIN": "http://chat.example.org:8000"}, "proxy_set_header Host"),
        ({"HTTP_ORIGIN": "https://other.example.org"}, "CSRF_TRUSTED_ORIGINS"),
        ({"HTTP_ORIGIN": "null"}, "Sandboxed pages"),
        ({"HTTP_ORIGIN": "http://[x"}, "malformed"),
        ({"wsgi.url_scheme": "https", "HTTP_REFERER": "https://secret@other.example.org/secret"}, "CSRF_TRUSTED_ORIGINS"),
        ({"wsgi.url_scheme": "https", "HTTP_REFERER": "http://chat.example.org/"}, "redirect http to https"),
        ({"wsgi.url_scheme": "https"}, "programs may leave it out"),
    ],
)  # fmt: skip
def test_form_from_a_wrong_origin_names_the_setting(headers, advice, caplog):
    response = post(**headers)
    assert response.status_code == 403
    html = response.content.decode()
    assert "Wrong address" in html
    assert "session has changed" not in html
    assert advice in caplog.text
    [ours] = [record for record in caplog.records if record.name == origins.__name__]
    assert "secret" not in ours.getMessage()


def test_origin_is_logged_once(caplog):
    for _ in range(3):
        post(HTTP_ORIGIN=PAGE)
        post(HTTP_ORIGIN="https://other.example.org")
    named = [record for record in caplog.records if record.name == origins.__name__]
    assert len(named) == 2


def test_made_up_origins_do_not_fill_the_log(caplog):
    request = RequestFactory().get("/", **OWN)
    for number in range(3 * origins.MAX_REPORTED):
        origins.report_refusal(request, f"https://{number}.example.org")
    assert len(caplog.records) == origins.MAX_REPORTED


def test_host_that_is_not_allowed_is_named(caplog):
    request = RequestFactory().get("/", HTTP_HOST="www.example.org")
    origins.report_refusal(request, "https://chat.example.org")
    assert "add www.example.org to ALLOWED_HOSTS" in caplog.text


def test_line_break_in_an_origin_forges_no_line(caplog):
    request = RequestFactory().get("/", **OWN)
    origins.report_refusal(request, "https://evil.example\nforged")
    assert "\nforged" not in caplog.text


@pytest.mark.django_db
def test_old_token_is_a_page_that_expired(caplog):
    client = Client(enforce_csrf_checks=True)
    response = client.post("/accounts/login/", {"login": "a@example.org"}, **OWN)
    assert response.status_code == 403
    assert "Page expired" in response.content.decode()


# --- A site below a path, and HSTS ---------------------------------------------------------------


def test_script_name_is_refused_at_the_start(settings):
    assert checks.check_path() == []
    settings.FORCE_SCRIPT_NAME = "/chat"
    [found] = checks.check_path()
    assert found.id == "parley.E010"
    with pytest.raises(ImproperlyConfigured, match="not below a path"):
        checks.require()


HEADER = """
import django
django.setup()
from django.test import Client
print(Client().get("/health", secure=True).headers["Strict-Transport-Security"])
"""


@pytest.mark.parametrize(
    ("variables", "header"),
    [
        ({}, "max-age=31536000"),
        ({"HSTS_SECONDS": "3600"}, "max-age=3600"),
        (
            {"HSTS_SUBDOMAINS": "1", "HSTS_PRELOAD": "1"},
            "max-age=31536000; includeSubDomains; preload",
        ),
    ],
)
def test_hsts_is_for_this_host_alone(variables, header):
    printed = hsts(**variables)
    assert printed.stdout.strip() == header, printed.stderr


@pytest.mark.parametrize(
    "variables",
    [{}, {"HSTS_SUBDOMAINS": "1", "HSTS_SECONDS": "3600"}, {"HSTS_SUBDOMAINS": "1", "HTTPS": "0"}],
)
def test_preload_without_its_conditions_is_refused(variables):
    assert "HSTS_PRELOAD=1 requires" in hsts(HSTS_PRELOAD="1", **variables).stderr


def hsts(**variables: str) -> subprocess.CompletedProcess[str]:
    """A process of its own prints the header of a site with these variables."""
    of = {"HTTPS": "1", "DJANGO_SETTINGS_MODULE": "chatproject.settings", **variables}
    return subprocess.run(
        [sys.executable, "-c", HEADER],
        env=environment(**of),
        cwd=BASE_DIR,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_wrong_host_is_named_on_the_page(caplog):
    response = Client().get("/accounts/login/", HTTP_HOST="other.example.org")
    assert response.status_code == 400
    assert "does not use this address" in response.content.decode()
    assert "add 'other.example.org' to ALLOWED_HOSTS" in caplog.text
