"""Health-check endpoints of real processes, and error pages."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import redis
from django.db import OperationalError, connection
from redis import Redis

from accounts.models import User
from chat.conversations import listing
from tests.support.programs import PATIENCE, wait_until
from tests.support.stack import Stack

pytestmark = pytest.mark.django_db(transaction=True)

NOWHERE = "http://127.0.0.1:9/v1"  # the provider: no test here asks it
ALL_OK = dict.fromkeys(("database", "migrations", "redis", "worker", "clock"), True)


@pytest.fixture
def stack(tmp_path, own_valkey) -> Iterator[Stack]:
    """Processes with a Valkey of their own, behind a name and https as in production."""
    variables = {
        "REDIS_URL": own_valkey.url,
        "HTTPS": "1",
        "ALLOWED_HOSTS": "chat.example.org",
    }
    with Stack(tmp_path, provider_url=NOWHERE, environment=variables) as stack:
        yield stack


def get(stack: Stack, path: str, **headers: str) -> http.client.HTTPResponse:
    """A request to the web process by its IP address, over plain HTTP."""
    with closing(http.client.HTTPConnection("127.0.0.1", stack.port, timeout=PATIENCE)) as client:
        client.request("GET", path, headers=headers)
        response = client.getresponse()
        response.read_body = response.read()  # type: ignore[attr-defined]
        return response


def ready(stack: Stack, query: str = "") -> tuple[int, dict[str, Any]]:
    response = get(stack, f"/health/ready{query}")
    return response.status, json.loads(response.read_body)  # type: ignore[attr-defined]


def becomes(stack: Stack, status: int, **changes: bool) -> None:
    """Wait until the probe answers with this status, and all parts are OK but these."""
    expected, give_up_at = (status, ALL_OK | changes), time.monotonic() + PATIENCE
    while (found := ready(stack)) != expected:
        assert time.monotonic() < give_up_at, f"{found}, not {expected}"
        time.sleep(0.2)


def test_health_answers_any_host_over_plain_http(stack):
    stack.start("web")
    for path in ("/health", "/health/ready"):
        for host in ("10.1.2.3", "other.example:81", "_"):
            response = get(stack, path, Host=host)
            assert response.status == 200
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Set-Cookie"] is None
    assert get(stack, "/", Host="10.1.2.3").status == 400
    assert get(stack, "/", Host="chat.example.org").status == 301
    assert get(stack, "/health/seen").status == 404  # without doctor's signature
    with closing(http.client.HTTPConnection("127.0.0.1", stack.port, timeout=PATIENCE)) as client:
        client.request("POST", "/health/ready")
        response = client.getresponse()
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
        assert response.read() == b"Use GET.\n"  # as long as its Content-Length


def test_health_needs_neither_postgres_nor_redis(tmp_path):
    closed = {"DATABASE_URL": "postgres://parley@127.0.0.1:9/p", "REDIS_URL": "redis://127.0.0.1:9"}
    with Stack(tmp_path, provider_url=NOWHERE, environment=closed) as stack:
        stack.start("web")
        assert get(stack, "/health").status == 200
        began = time.monotonic()
        assert ready(stack) == (503, dict.fromkeys(ALL_OK, False))
        assert time.monotonic() - began < 10  # a second for each part, at the same time
        wait_until(lambda: "not ready: redis: " in stack.log("web"), "the reason is in the log")
        assert "not ready: database: " in stack.log("web")


def test_readiness_finds_missing_worker_and_clock(stack):
    """Neither takes the web process out of a load balancer; an alarm asks for all parts."""
    stack.start("web", "worker", "clock")
    becomes(stack, 200)
    stack.kill("worker")
    becomes(stack, 200, worker=False)
    assert ready(stack, "?all=1")[0] == 503
    stack.kill("clock")
    becomes(stack, 200, worker=False, clock=False)
    stack.start("worker", "clock")
    becomes(stack, 200)
    assert ready(stack, "?all=1")[0] == 200
    for part in ("worker", "clock"):  # the first probes came before them
        assert 1 <= stack.log("web").count(f"not ready: {part}: ") <= 2
    assert "ready again: clock" in stack.log("web")


def test_readiness_finds_a_full_redis(stack, own_valkey):
    stack.start("web", "worker", "clock")
    becomes(stack, 200)
    with Redis.from_url(own_valkey.url) as client:
        client.config_set("maxmemory", "500kb")
        # A busy machine may find it when the worker's last sign of life has expired as well.
        give_up_at = time.monotonic() + PATIENCE
        while (found := ready(stack))[0] != 503 or found[1]["redis"]:
            assert time.monotonic() < give_up_at, found
            time.sleep(0.2)
        probes = stack.log("web").count("GET /health/ready 503")
        while stack.log("web").count("GET /health/ready 503") <= probes + 3:
            ready(stack)
            time.sleep(0.3)
        assert stack.log("web").count("not ready: redis: It is full and refuses writes.") == 1
        client.config_set("maxmemory", "0")
    becomes(stack, 200)
    assert stack.log("web").count("ready again: redis") == 1


def test_readiness_answers_while_redis_is_silent(stack, own_valkey):
    """Probes do not pile up behind a silent server, and the process is ready again after it."""
    stack.start("web")
    becomes(stack, 200, worker=False, clock=False)
    os.kill(own_valkey.pid, signal.SIGSTOP)
    try:
        becomes(stack, 503, redis=False, worker=False, clock=False)
        for _ in range(3):
            began = time.monotonic()
            assert ready(stack)[0] == 503
            assert time.monotonic() - began < 5
    finally:
        os.kill(own_valkey.pid, signal.SIGCONT)
    becomes(stack, 200, worker=False, clock=False)


@contextmanager
def without_last_migration() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM django_migrations WHERE id ="
            " (SELECT max(id) FROM django_migrations WHERE app = 'chat') RETURNING app, name, applied"
        )
        row = cursor.fetchone()
        try:
            yield
        finally:
            cursor.execute(
                "INSERT INTO django_migrations (app, name, applied) VALUES (%s, %s, %s)", row
            )


def test_readiness_finds_missing_migrations(stack):
    stack.start("web")
    becomes(stack, 200, worker=False, clock=False)
    with without_last_migration():
        becomes(stack, 503, migrations=False, worker=False, clock=False)
        assert "not ready: migrations: 1 migrations are missing." in stack.log("web")
    becomes(stack, 200, worker=False, clock=False)


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
