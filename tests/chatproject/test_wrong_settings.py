"""Each variable with a wrong value is one sentence that names it, at each entry point."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from chatproject.lib import env
from chatproject.lib.server.limits import Limits
from chatproject.local.run import choose_port, documented_variables, processes_per_role
from chatproject.local.servers import BASE_DIR
from tests.support.programs import environment

GARBAGE = "\N{SNOWMAN} https:// 1 maybe\x07"

# Texts that are shown or compared only: any characters are as good as others.
ANY_TEXT = {
    "SECRET_KEY",
    "SECRET_KEY_FALLBACKS",
    "SITE_NAME",
    "OIDC_NAME",
    "SELLER_NAME",
    "SELLER_ADDRESS",
    "SELLER_TAX_ID",
}
# Names that only another program can judge; `doctor` asks it.
JUDGED_ELSEWHERE = {
    "DEFAULT_MODEL": "the provider",
    "TITLE_MODEL": "the catalogue",
    "HOST": "the resolver, when the web server starts",
    "STATIC_ROOT": "collectstatic",
    "OIDC_CLIENT_SECRET": "the issuer",
    "OIDC_SCOPES": "the issuer",
    "OIDC_GROUPS_CLAIM": "the issuer",
    "STRIPE_WEBHOOK_SECRETS": "the signature of a webhook",
    "RAZORPAY_WEBHOOK_SECRETS": "the signature of a webhook",
}

SETTINGS = str(BASE_DIR / "chatproject" / "settings.py")


def read_all() -> None:
    """Read every variable as the processes do at their start."""
    runpy.run_path(SETTINGS)
    Limits.from_environment()
    choose_port()
    processes_per_role()
    env.text("HOST", "127.0.0.1")


@pytest.fixture
def _environment(monkeypatch):
    """The variables of the tests, which the settings' file may change."""
    for name, value in os.environ.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_environment")
@pytest.mark.parametrize("name", documented_variables())
def test_garbage_in_any_variable_is_refused_by_name(name, monkeypatch):
    monkeypatch.setenv(name, GARBAGE)
    with pytest.raises(ImproperlyConfigured) as refused:
        read_all()
    sentence = str(refused.value)
    assert name in sentence or (name == "ENV_FILE" and "https:" in sentence)
    assert "\n" not in sentence


@pytest.mark.usefixtures("_environment")
@pytest.mark.parametrize("name", documented_variables())
def test_printable_nonsense_is_refused_or_a_text(name, monkeypatch):
    """Without the control character, only texts accept it."""
    monkeypatch.setenv(name, "nonsense, with spaces")
    if name in ANY_TEXT or name in JUDGED_ELSEWHERE:
        read_all()
        return
    with pytest.raises(ImproperlyConfigured) as refused:
        read_all()
    assert name in str(refused.value) or name == "ENV_FILE"


COMMANDS = {
    "web": ["-m", "chatproject.serve", "--port", "0"],
    "worker": ["manage.py", "rqworker", "chat", "--serializer", "rq.serializers.JSONSerializer"],
    "clock": ["manage.py", "clock"],
    "migrate": ["manage.py", "migrate"],
    "catalogue": ["manage.py", "create_catalogue"],
    "shell": ["manage.py", "shell", "-c", "pass"],
}


def refusal(command: list[str], **variables: str) -> str:
    """The output of a program that does not start; fails unless it is a sentence."""
    started = subprocess.run(
        [sys.executable, *command],
        cwd=BASE_DIR,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert started.returncode == 1, started.stderr
    assert "Traceback" not in started.stderr
    assert started.stdout == ""
    return started.stderr


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_entry_point_shows_a_traceback(command):
    output = refusal(command, LOG_LEVEL="LOUD")
    assert re.fullmatch(r"(serve|manage\.py): LOG_LEVEL='LOUD': write one of DEBUG, .*\n", output)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TIME_ZONE": "Mars/Olympus"}, "TIME_ZONE='Mars/Olympus' is no time zone"),
        (
            {"ALLOWED_HOSTS": "https://chat.example.org"},
            "ALLOWED_HOSTS: 'https://chat.example.org'",
        ),
        ({"CSRF_TRUSTED_ORIGINS": "chat.example.org"}, "CSRF_TRUSTED_ORIGINS must begin with http"),
        ({"SITE_URL": "https://chat.example.org/parley"}, "SITE_URL: write scheme, host"),
        ({"PORT": "80000"}, "PORT='80000'"),
        ({"HOST": "no such host"}, "cannot listen on no such host"),
        ({"SECRET_KEY_FILE": "/"}, "SECRET_KEY_FILE: the file cannot be read"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_web_server_refuses_in_one_sentence(variables, words):
    output = refusal(["-m", "chatproject.serve"], **variables)
    assert words in output
    assert output.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_env_file_in_another_encoding_is_refused(tmp_path: Path, encoding: str):
    path = tmp_path / "site.env"
    path.write_text("SITE_NAME=Café\r\n", encoding=encoding)
    output = refusal(COMMANDS["clock"], ENV_FILE=str(path))
    assert re.fullmatch(rf"manage\.py: {path}: the file is .*UTF-8.*\n", output)


def test_make_run_refuses_in_one_sentence(tmp_path: Path):
    path = tmp_path / "site.env"
    path.write_bytes("PORT=8000\r\n".encode("utf-16"))
    output = refusal(["-m", "chatproject.local", "run"], ENV_FILE=str(path))
    assert "UTF-16" in output


def test_unreachable_postgres_is_one_sentence():
    output = refusal(COMMANDS["catalogue"], DATABASE_URL="postgres://parley@127.0.0.1:9/parley")
    assert "manage.py: Postgres gave no connection. Run manage.py doctor" in output
