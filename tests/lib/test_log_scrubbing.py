"""No log has the key of a mailed link or of a session."""

from __future__ import annotations

import io
import logging
import logging.config
import time
from copy import deepcopy
from typing import Any

import pytest
from django.conf import settings as project_settings
from django.test import Client

from chatproject import serve
from chatproject.lib import log_scrubbing
from chatproject.lib.log_scrubbing import scrub, scrub_path

KEY = "MQ:1vPabc:s3cr3t-Key_of-a-link"


@pytest.fixture
def log(monkeypatch):
    """What the project's handlers write, and the loggers as the project configures them."""
    config: Any = deepcopy(project_settings.LOGGING)
    stream = io.StringIO()
    config["handlers"]["stderr"]["stream"] = stream
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    logging.config.dictConfig(config)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize(
    "text",
    [
        f"Not Found: /accounts/confirm-email/{KEY}/",
        f"Not Found: /accounts/password/reset/key/1-{KEY}/",
        f"Not Found: /accounts/invitation/{KEY}/",
        f"Not Found: /accounts/login/link/{KEY}/",
        f"GET //accounts//password/reset//key//1-{KEY} 404 3 ms",
        f"/accounts/Confirm-Email/{KEY}",
        f"/accounts/confirm-email/ab {KEY} pasted with a space",
        f"/accounts/confirm-email/\t{KEY} pasted with a tab",
        f"/accounts/confirm-email/\u2028{KEY}",
        f"/accounts/confirm-email{KEY}",
        f"/accounts/confirm-email/\x00{KEY}/",
        f"Not Found: /accounts/confirm-email/({KEY})/",
        f"Not Found: /accounts/password/reset/key/~{KEY}/",
        f'Not Found: /accounts/password/reset/key/"1-{KEY}"/',
        f"Not Found: /accounts/password/reset/key/ 1-{KEY}/",
        f"GET /accounts/password/reset/key/%20%201-{KEY}/ 404 3 ms",
        f"next=%2Faccounts%2Fconfirm-email%2F{KEY}%2F",
        f"/accounts/confirm%2Demail/{KEY}/",
        f"/accounts/confirm%252Demail/{KEY}/",
        f"Referer checking failed - https://x/accounts/password/reset/key/1-{KEY}/ does not match",
        f"headers [(b'cookie', b'sessionid={KEY}; csrftoken={KEY}')]",
        f"{{'sessionid': '{KEY}', 'csrfmiddlewaretoken': '{KEY}'}}",
        f"DETAIL:  Key (session_key)=({KEY}) already exists.",
    ],
)
def test_secrets_are_scrubbed_from_text(text):
    assert "s3cr3t" not in scrub(text)
    assert "[key]" in scrub(text)
    assert scrub(scrub(text)) == scrub(text)


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("Authorization: Bearer s3cr3t-token-of-a-client", "Bearer [key]"),
        ("headers {'Authorization': 'Basic dXNlcjpzM2NyM3Q='}s3cr3t"[:-6], "Basic [key]"),
        ("Incorrect API key provided: sk-proj-s3cr3t12345", "[key]"),
        ("no webhook has the secret whsec_s3cr3t12345", "[key]"),
        ("{'password': 's3cr3t', 'password1': \"s3cr3t\"}", "[key]"),
        ("api_key=s3cr3t-of-a-provider&x=1", "api_key=[key]"),
        ("X-Api-Key: s3cr3t-of-a-provider", "[key]"),
        ("cannot connect to redis://:s3cr3t@redis.example.org:6379/0", "redis://:[key]@"),
        ("postgres://parley:s3cr3t@10.0.0.5/parley is down", "parley:[key]@10.0.0.5"),
        ("550 <s3cr3t.name+tag@mail.example.org> is unknown", "<[address]>"),
        ("DETAIL:  Key (email)=(s3cr3t@example.org) already exists.", "(email)=([key])"),
        ("DETAIL:  Key (title)=(my s3cr3t (really)) already exists.", "(title)=([key])"),
        (
            "violates check constraint DETAIL:  Failing row contains (1, my s3cr3t, (x), null).\nNext",
            "Failing row contains ([row]\nNext",
        ),
        ('CONTEXT:  JSON data, line 1: {"text": "my s3cr3t ...', "JSON data, line 1: [row]"),
        ('invalid input syntax for type uuid: "my s3cr3t"\nLINE 1', "type uuid: [row]\nLINE 1"),
        ("CONTEXT:  unnamed portal parameter $2 = 'my s3cr3t'", "parameter $2 = '[row]"),
        ("DETAIL:  Failing row contains (1, my\n s3cr3t).\nNext", "contains ([row]\nNext"),
        ('invalid input value for enum mood: "my s3cr3t"', "enum mood: [row]"),
        ('DETAIL:  Token "s3cr3t" is invalid.', "Token [row]"),
        ("authorization: Token s3cr3t-of-a-client", "Token [key]"),
        ("[(b'x-api-key', b's3cr3t'), (b'a', b'b')]", "b'x-api-key', b'[key]'"),
        ("{'password': 's3cr3t of three words', 'a': 1}", "{'password': '[key]', 'a': 1}"),
        (
            "new_password1=s3cr3t&client_secret=s3cr3t&a=1",
            "new_password1=[key]&client_secret=[key]",
        ),
        ("access_token: s3cr3t, SECRET_KEY=s3cr3t", "access_token: [key], SECRET_KEY=[key]"),
        ("Not Found: /x%3Fpassword%3Ds3cr3t", "[key]"),
        ("Not Found: /pass%77ord=s3cr3t", "[key]"),
        ("Stripe-Signature: t=1,v1=s3cr3t", "[key]"),
        ("invalid key gsk_s3cr3t12345", "[key]"),
        ("invalid key AIzaSyA-s3cr3t12345678901234", "[key]"),
    ],
)
def test_quoted_secrets_and_rows_are_scrubbed(text, mark):
    assert "s3cr3t" not in scrub(text)
    assert mark in scrub(text)
    assert scrub(scrub(text)) == scrub(text)


@pytest.mark.parametrize(
    "part",
    [
        "Key (a)=(",
        "Key (",
        "Failing row contains (\n",
        "invalid input syntax for type ",
        "reset/key/ ",
    ],
)
def test_hostile_text_is_scrubbed_in_time(part):
    """Clients choose parts of log lines, such as the path of a page that is not found."""
    begun = time.perf_counter()
    scrubbed = scrub(part * (1_000_000 // len(part)))
    assert time.perf_counter() - begun < 2
    assert len(scrubbed) < 100_000


def test_control_characters_are_escaped():
    assert scrub("a\x1b[2Kb\rc\x9bd\ud800\n\te") == "a\\x1b[2Kb\\rc\\x9bd\\ud800\n\te"


def test_secrets_of_the_settings_are_scrubbed_anywhere(settings):
    settings.OPENAI_API_KEY = "an.unusual(form)*of-key"
    settings.STRIPE_WEBHOOK_SECRETS = ["one of two secrets", "short"]
    settings.DATABASES["default"]["PASSWORD"] = "of the database"
    log_scrubbing.known_secrets.cache_clear()
    try:
        text = "x an.unusual(form)*of-key y one of two secrets z short of the database"
        assert scrub(text) == "x [key] y [key] z short [key]"
    finally:
        log_scrubbing.known_secrets.cache_clear()


@pytest.mark.parametrize(
    "text",
    [
        "DETAIL:  Key (id)=(01a22a75-a691-74b9-ad5b-693e5c05071c) is not present in table",
        "the basic rules; a bearer of news; risk-free task_123456789",
        "mail 7, attempt 1 of 12 failed",
        "listening on http://127.0.0.1:8000",
        "run_ended input_tokens=5 first_token_seconds=0.2 code=key",
    ],
)
def test_ids_and_words_are_kept(text):
    assert scrub(text) == text


@pytest.mark.parametrize(
    "text",
    ["/accounts/confirm-email/ 200 4 ms", "/chats/?q=100%25", "reset key of the lease", "/a%0Ab"],
)
def test_other_text_is_kept(text):
    assert scrub(text) == text


def test_access_log_has_no_keys_and_one_line():
    path = f"/accounts/confirm%2Demail/{KEY}%0Afaked line/"
    scrubbed = scrub_path(path)
    assert "s3cr3t" not in scrubbed
    assert "\n" not in scrubbed
    assert scrub_path("/c/%0A/") == "/c/%0A/"


async def test_access_log_line_keeps_status(caplog):
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def nothing(*_: Any) -> Any:
        return None

    scope = {
        "type": "http",
        "method": "GET",
        "raw_path": f"/accounts/confirm-email/{KEY}/".encode(),
    }
    with caplog.at_level(logging.INFO, "chatproject.access"):
        await serve.log_access(application)(scope, nothing, nothing)
    [line] = caplog.messages
    assert line.startswith("GET /accounts/confirm-email/[key] 200")


@pytest.mark.django_db
@pytest.mark.usefixtures("valkey_url")
@pytest.mark.parametrize("debug", [False, True])
def test_requests_leave_no_key_in_the_log(log, capsys, monkeypatch, settings, debug):
    settings.DEBUG = debug
    client = Client(enforce_csrf_checks=True, raise_request_exception=False)
    links = [f"/accounts/confirm-email/{KEY}/", f"/accounts/password/reset/key/1-{KEY}/"]
    for link in links:
        client.get(link)
        client.get(f"{link}nowhere/")
        client.post(link)  # refused: without a CSRF token
        client.post(
            "/accounts/login/", HTTP_REFERER=f"https://elsewhere.example{link}", secure=True
        )
    monkeypatch.setattr("accounts.views.ConfirmEmailView.get", lambda *_, **__: 1 / 0)
    assert client.get(links[0]).status_code == 500
    written = log.getvalue()
    assert "ZeroDivisionError" in written
    assert "[key]" in written
    assert "s3cr3t" not in written + "".join(capsys.readouterr())
