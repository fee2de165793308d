"""/metrics: access, content, and totals of several processes."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

import httpx2
import pytest
import redis
from django.db import OperationalError
from django.test import Client
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from billing.models import Hold, LedgerCheck, ProviderEvent
from chat.runs import queue, queue_stats
from chatproject.lib import db, metrics
from chatproject.lib.mail.models import OutgoingMail
from chatproject.lib.metrics.shared import Publisher
from chatproject.ops import metrics as page
from tests.support import money
from tests.support.fake_llm.fixture import provider, provider_process
from tests.support.people import assistant, owner, session_key
from tests.support.programs import wait_until
from tests.support.reconnecting_client import LiveTab
from tests.support.stack import Stack

__all__ = ["assistant", "owner", "provider", "provider_process"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

TOKEN = "a-token-of-the-tests-alone"
BEARER = {"authorization": f"Bearer {TOKEN}"}
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "operations" / "metrics.md"


@pytest.fixture(autouse=True)
def token(settings):
    settings.METRICS_TOKEN = TOKEN


def scrape() -> dict[tuple[str, str], float]:
    """The samples of a scrape, by name and labels."""
    response = Client().get("/metrics", headers=BEARER)
    assert response.status_code == 200
    return parse(response.text)


def parse(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))):
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }  # fmt: skip


# --- Access ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "address", "networks", "trusts", "status"),
    [
        (BEARER, "203.0.113.5", "", False, 200),
        ({"authorization": f"bearer  {TOKEN}"}, "203.0.113.5", "", False, 200),
        ({}, "127.0.0.1", "", False, 404),
        ({"authorization": "Bearer wrong"}, "127.0.0.1", "", False, 404),
        ({"authorization": "Bearer "}, "127.0.0.1", "", False, 404),
        ({"authorization": f"Basic {TOKEN}"}, "127.0.0.1", "", False, 404),
        ({"authorization": "Bearer wr\u00f6ng"}, "127.0.0.1", "", False, 404),
        ({}, "10.0.0.7", "10.0.0.0/24", False, 200),
        ({}, "10.0.1.7", "10.0.0.0/24", False, 404),
        ({}, "::ffff:10.0.0.7", "10.0.0.0/24", False, 200),
        ({}, "2001:db8::7", "2001:db8::/64", False, 200),
        ({}, "", "0.0.0.0/0", False, 404),
        # Through a proxy on an allowed address, which is not the client's.
        ({"x-forwarded-for": "203.0.113.5"}, "10.0.0.7", "10.0.0.0/24", False, 404),
        ({"x-forwarded-for": ""}, "10.0.0.7", "10.0.0.0/24", False, 404),
        ({"via": "1.1 proxy"}, "10.0.0.7", "10.0.0.0/24", False, 404),
        ({"x-forwarded-for": "10.0.0.7"}, "10.0.0.7", "10.0.0.0/24", True, 200),
    ],
)
def test_only_allowed_clients_read_metrics(settings, headers, address, networks, trusts, status):
    settings.METRICS_NETWORKS = [ip_network(networks)] if networks else []
    settings.TRUST_PROXY = trusts
    response = Client(REMOTE_ADDR=address).get("/metrics", headers=headers)
    assert response.status_code == status
    if status == 404:
        assert response.content == b"Not Found\n"


def test_metrics_are_closed_without_settings(settings):
    settings.METRICS_TOKEN = ""
    assert Client().get("/metrics").status_code == 404
    assert Client().get("/metrics", headers={"authorization": "Bearer "}).status_code == 404


def test_scrape_needs_neither_host_name_nor_https(settings):
    settings.SECURE_SSL_REDIRECT = True
    settings.ALLOWED_HOSTS = ["chat.example.org"]
    response = Client().get("/metrics", headers=BEARER | {"host": "10.0.0.5:8000"})
    assert response.status_code == 200
    assert response["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response["Cache-Control"] == "no-store"
    assert Client().post("/metrics", headers=BEARER).status_code == 405


# --- Content ---------------------------------------------------------------------------------


def test_documented_metrics_are_those_that_exist():
    metrics.PROCESS.role = "web"
    try:
        Publisher().publish()
        found = {
            f"{one.name}_total" if one.type == "counter" else one.name: one
            for one in page.SiteCollector().collect()
        }
    finally:
        metrics.PROCESS.role = ""
    row = re.compile(r"^\| `(parley_\w+)` \| (\w+) \| ([^|]*)\|", re.MULTILINE)
    rows = row.findall(DOCUMENT.read_text())
    assert {name: kind for name, kind, _ in rows} == {name: one.type for name, one in found.items()}
    for name, _, labels in rows:
        documented = set(re.findall(r"`(\w+)`", labels))
        for sample in found[name].samples:
            assert set(sample.labels) - {"le"} == documented, name


def test_names_follow_the_conventions():
    for one in page.SiteCollector().collect():
        assert re.fullmatch(r"parley(_[a-z0-9]+)+", one.name)
        assert not one.name.endswith(("_ms", "_milliseconds", "_mb", "_count", "_sum", "_bucket"))
        assert one.documentation.endswith(".")
        if one.type == "histogram":
            assert one.name.endswith("_seconds")


def test_site_metrics_show_what_waits(settings):
    now = timezone.now()
    account = money.open_account(1_000)
    money.hold(account, 10)
    late = money.hold(account, 10)
    Hold.objects.filter(pk=late.pk).update(expires_at=now - timedelta(minutes=11))
    LedgerCheck.objects.create(started_at=now, entries=1, problems=[{"code": "a"}, {"code": "b"}])
    for status in ("received", "failed", "processed"):
        ProviderEvent.objects.create(
            provider="stripe", event_id=status, event_type="x", body=b"", status=status
        )
    for status, age in (("queued", 100), ("sent", 200), ("failed", 300)):
        OutgoingMail.objects.create(
            message_id=status, recipients="", status=status, due_at=now, is_delayed=True,
            created_at=now - timedelta(seconds=age),
        )  # fmt: skip
    found = scrape()
    assert found["parley_holds_active", ""] == 2
    assert found["parley_holds_overdue", ""] == 1
    assert found["parley_ledger_problems", ""] == 2
    assert found["parley_ledger_checked_timestamp_seconds", ""] >= now.timestamp()
    assert found["parley_webhooks_unprocessed", "status=received"] == 1
    assert found["parley_webhooks_unprocessed", "status=failed"] == 1
    assert found["parley_mails_waiting", ""] == 1
    assert found["parley_mails_failed", ""] == 1
    assert 100 <= found["parley_mails_oldest_seconds", ""] < 200
    assert found["parley_mail_server_failing", ""] == 1
    assert found["parley_redis_memory_bytes", ""] > 0
    assert found["parley_workers", "queue=chat"] == 0


def test_eviction_in_redis_is_seen(valkey_client):
    policy = valkey_client.config_get("maxmemory-policy")["maxmemory-policy"]
    assert scrape()["parley_redis_evicts", ""] == 0
    valkey_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert scrape()["parley_redis_evicts", ""] == 1
    finally:
        valkey_client.config_set("maxmemory-policy", policy)


def test_outage_of_one_leaves_the_other(monkeypatch):
    def lose_redis(*args: object) -> None:
        raise redis.ConnectionError("on purpose")

    def lose_postgres(*args: object) -> None:
        raise OperationalError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(queue, "length", lose_redis)
        found = scrape()
        assert (found["parley_redis_up", ""], found["parley_database_up", ""]) == (0, 1)
        assert ("parley_holds_active", "") in found
    with monkeypatch.context() as patch:
        patch.setattr(queue_stats, "active_runs", lose_postgres)
        found = scrape()
        assert (found["parley_redis_up", ""], found["parley_database_up", ""]) == (1, 0)
        assert ("parley_redis_memory_bytes", "") in found


def test_hostile_label_does_not_break_the_format():
    metrics.CLOCK_FAILURES.labels('a "task"\\\n{b}').inc()
    Publisher().publish()
    assert scrape()['parley_clock_task_failures_total', 'task=a "task"\\\n{b}'] == 1  # fmt: skip


# --- Several processes -----------------------------------------------------------------------


@pytest.mark.long
async def test_totals_cover_all_processes_and_survive_them(
    owner, assistant, provider, server_folder
):
    """Each web process gives the same totals, and none falls when processes are killed or restarted."""
    environment = {"METRICS_TOKEN": TOKEN}
    with Stack(server_folder, provider_url=provider.url, environment=environment) as stack:
        await asyncio.to_thread(stack.start, "web", "web-2", "worker", "clock")
        session = await db.run(session_key, owner)

        def of(name: str) -> dict[tuple[str, str], float]:
            response = httpx2.get(f"{stack.address(name)}/metrics", headers=BEARER, timeout=30)
            assert response.status_code == 200
            return parse(response.text)

        def ended(name: str) -> float:
            return of(name).get(
                ("parley_runs_ended_total", "cause=,code=,outcome=done"), 0.0
            )  # fmt: skip

        def are_counted(runs: int) -> bool:
            """Whether the batches of web and worker, which each sends in its own time, have arrived."""
            counters = (
                "parley_runs_stored_total",
                "parley_runs_ended_total",
                "parley_first_token_seconds_count",
                "parley_sockets_opened_total",
            )
            found = of("web-2")
            return all(
                [value for (one, _), value in found.items() if one == name] == [runs]
                for name in counters
            )

        async def chat(number: int) -> None:
            async with asyncio.timeout(60):
                end = await LiveTab(stack, session).chat(
                    "[[tokens=20 rate=0]]", client_id=f"n{number}"
                )
            assert end["type"] == "run.done"

        await chat(1)
        await asyncio.to_thread(wait_until, lambda: are_counted(1), "the run is counted")
        assert ended("web") == ended("web-2") == 1
        found = of("web")
        assert found["parley_provider_requests_total", "outcome=ok,provider=environment"] == 1
        assert found["parley_processes", "role=web"] == 2
        assert found["parley_processes", "role=worker"] == 1
        assert found["parley_processes", "role=clock"] == 1
        assert found["parley_clock_alive", ""] == 1
        assert found["parley_workers", "queue=chat"] == 1
        assert found["parley_db_pool_calls_total", "role=worker"] > 0
        assert found["parley_process_cpu_seconds_total", "role=worker"] > 0

        await asyncio.to_thread(stack.kill, "worker")
        await asyncio.to_thread(stack.terminate, "web")
        assert ended("web-2") == 1
        await asyncio.to_thread(stack.start, "web", "worker")
        await chat(2)
        await asyncio.to_thread(wait_until, lambda: are_counted(2), "both are counted")
        assert ended("web") == ended("web-2") == 2
        for name in ("web", "web-2", "worker", "clock"):
            assert TOKEN not in stack.log(name)
