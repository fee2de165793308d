"""System checks: settings that cannot work together are reported at the start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from chatproject import checks
from tests.support.programs import environment


def test_missing_key_and_model_are_reported(settings):
    settings.OPENAI_BASE_URL = "https://api.openai.com/v1"
    settings.OPENAI_API_KEY = ""
    assert [found.id for found in checks.check_provider()] == ["parley.W001"]
    settings.OPENAI_API_KEY = "key"
    assert checks.check_provider() == []
    settings.DEFAULT_MODEL = ""
    assert [found.id for found in checks.check_provider()] == ["parley.E001"]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "https://api.example.org/v1/chat/completions",
        "https://api.example.org/v1/models",
        "https://api.example.org/v1?key=1",
    ],
)
def test_unusable_base_url_is_reported_by_its_text(settings, value):
    settings.OPENAI_BASE_URL = value
    [found] = checks.check_provider()
    assert found.id == "parley.E005"
    assert found.msg.startswith("OPENAI_BASE_URL: The base URL ")


@pytest.mark.parametrize("value", ["", "https://api.example.org/v1/chat/completions"])
def test_no_process_starts_with_an_unusable_base_url(value):
    started = subprocess.run(
        [sys.executable, "-m", "chatproject.serve", "--port", "0"],
        env=environment(OPENAI_BASE_URL=value),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert started.returncode == 1
    assert started.stderr.startswith("serve: OPENAI_BASE_URL: The base URL ")


def test_pool_smaller_than_its_threads_is_reported(settings):
    assert checks.check_pool() == []
    settings.DB_THREADS = settings.DATABASES["default"]["OPTIONS"]["pool"]["max_size"]
    assert [found.id for found in checks.check_pool()] == ["parley.E002"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ["parley.E003"]),
        ({"ACCOUNT_EMAIL_VERIFICATION": "mandatory"}, []),
        ({"SIGNUP_CREDITS": 0}, []),
        ({"SIGNUP": "approval"}, []),
        ({"BILLING": False}, []),
        ({"ALLOW_UNVERIFIED_CREDITS": True}, []),
    ],
)
def test_credits_for_unverified_addresses_are_refused(settings, changes, found):
    settings.ALLOW_UNVERIFIED_CREDITS = False
    for name, value in changes.items():
        setattr(settings, name, value)
    assert [one.id for one in checks.check_signup_credits()] == found


@pytest.mark.parametrize(
    "program",
    [
        ["-m", "chatproject.serve", "--port", "0"],
        ["manage.py", "rqworker", "low"],
        ["manage.py", "clock"],
    ],
    ids=["web", "worker", "clock"],
)
def test_no_process_starts_with_refused_settings(program):
    started = subprocess.run(
        [sys.executable, *program],
        env=environment(ALLOW_UNVERIFIED_CREDITS="0", EMAIL_URL="console://"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert started.returncode == 1
    assert "ALLOW_UNVERIFIED_CREDITS=1" in started.stderr
    assert "EMAIL_URL=console:// writes mails to the log" in started.stderr


def test_console_mail_is_for_development_only(settings):
    settings.MAIL_TRANSPORT = "django.core.mail.backends.console.EmailBackend"
    assert [one.id for one in checks.check_mail()] == ["parley.E004"]
    settings.DEBUG = True
    assert checks.check_mail() == []
