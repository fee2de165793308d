"""Alerts without Prometheus: the rules, and how an alert is sent, repeated and posted."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import django_rq
import pytest
import redis
from django.core import mail
from django.utils import timezone
from rq import SimpleWorker

from billing.models import LedgerCheck
from billing.payments.mail import notify_staff
from chat.runs import queue
from chatproject.lib import metrics
from chatproject.lib.metrics.shared import Publisher
from chatproject.ops import alerts, jobs
from chatproject.ops.alerts import COOLDOWN, AlertCheck, Figures
from chatproject.ops.metrics import SiteCollector

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey_url")]

PROMETHEUS = Path(__file__).resolve().parents[3] / "deploy" / "prometheus" / "alerts.yml"
START = timezone.now()


@pytest.fixture(autouse=True)
def recipients(settings):
    settings.ALERT_EMAIL = ["ops@example.org"]
    LedgerCheck.objects.create(started_at=START, entries=0)


def minutes(number: float) -> datetime:
    return START + timedelta(minutes=number)


def sent() -> list[str]:
    """The names of the alerts that were mailed, without those about the test's missing workers."""
    names = [message.subject.partition(": ")[2] for message in mail.outbox]
    return [name for name in names if "Worker" not in name or name == "ParleyWorkersDie"]


# --- The rules -------------------------------------------------------------------------------


def test_names_are_those_of_prometheus():
    names = [rule.name for rule in alerts.RULES]
    assert len(set(names)) == len(names)
    assert set(names) <= set(re.findall(r"- alert: (\w+)", PROMETHEUS.read_text()))


def test_rules_read_existing_metrics():
    existing = {
        f"{one.name}_total" if one.type == "counter" else one.name
        for one in SiteCollector().collect()
    }
    asked: set[str] = set()

    class Recorder(Figures):
        def value(self, name: str, **labels: str) -> float:
            asked.add(f"parley_{name}")
            return 0.0

        def has(self, name: str) -> bool:
            asked.add(f"parley_{name}")
            return True

        def increase(self, name: str, **labels: str) -> float:
            asked.add(f"parley_{name}")
            return 0.0

    for rule in alerts.RULES:
        rule.fires(Recorder(START, {}, None))
    assert len(asked) > 15
    assert asked <= existing


def test_lasting_cause_is_sent_once_per_cooldown():
    check = AlertCheck()
    check.check(minutes(0))
    assert mail.outbox == []  # workers are missing for less than a minute
    for minute in (1, 2, 3, 60):
        check.check(minutes(minute))
    names = [message.subject for message in mail.outbox]
    assert names.count("Parley: ParleyNoWorker") == 1
    assert mail.outbox[0].to == ["ops@example.org"]
    assert "Start one" in mail.outbox[0].body


def test_restarted_clock_does_not_repeat_an_alert(valkey_client):
    LedgerCheck.objects.create(started_at=START, entries=1, problems=[{"code": "x"}])
    AlertCheck().check(minutes(0))
    AlertCheck().check(minutes(1))
    assert sent() == ["ParleyLedgerMismatch"]
    key = f"{alerts.PREFIX}:ParleyLedgerMismatch"
    assert 0 < valkey_client.ttl(key) <= COOLDOWN.total_seconds()
    valkey_client.delete(key)  # as after the cooldown
    AlertCheck().check(minutes(241))
    assert sent() == ["ParleyLedgerMismatch"] * 2


def test_cause_that_ends_in_time_is_not_sent(monkeypatch):
    check = AlertCheck()
    for minute, oldest in ((0, 1000), (9, 1000), (9.5, 0), (10, 1000), (19, 1000)):
        state = alerts_state(oldest)
        monkeypatch.setattr("chatproject.ops.site_metrics.outbox.state", lambda now, s=state: s)
        check.check(minutes(minute))
    assert sent() == []
    check.check(minutes(20))
    assert sent() == ["ParleyMailsWait"]


def alerts_state(oldest: float) -> Any:
    from chatproject.lib.mail.outbox import OutboxState

    return OutboxState(waiting=1, failed=0, oldest=oldest, is_delayed=False)


def test_growth_of_counters_is_judged(valkey_client):
    publisher, check = Publisher(), AlertCheck()

    def turn(minute: int, *, failed: int = 0, done: int = 0, key: int = 0) -> None:
        metrics.RUNS_ENDED.labels("failed", "provider_error", "busy").inc(failed)
        metrics.RUNS_ENDED.labels("done", "", "").inc(done)
        metrics.PROVIDER_REQUESTS.labels("a", "key").inc(key)
        publisher.publish()
        check.check(minutes(minute))

    turn(0, failed=100, done=10)  # from before: no growth
    turn(1, failed=4, done=20)  # too few
    turn(2, failed=2, done=900)  # a small share
    turn(3)
    turn(5)
    assert sent() == []
    turn(6, failed=200)
    turn(7)
    assert sent() == []
    turn(8)
    assert sent() == ["ParleyRunsFail"]
    turn(9, key=1)
    assert sent() == ["ParleyRunsFail", "ParleyProviderSetUp"]


def test_lost_redis_is_one_alert_and_no_growth(monkeypatch):
    publisher, check = Publisher(), AlertCheck()
    metrics.SLOW_RUNS.inc(50)
    publisher.publish()
    check.check(minutes(0))

    def fail(*args: object) -> None:
        raise redis.ConnectionError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(queue, "length", fail)
        for minute in (1, 2, 3):
            check.check(minutes(minute))
    check.check(minutes(4))
    assert sent() == ["ParleyRedisUnreachable"]


def test_nothing_is_checked_without_recipients(settings, monkeypatch):
    settings.ALERT_EMAIL = []
    monkeypatch.setattr(alerts, "SiteCollector", lambda: 1 / 0)
    AlertCheck().check(minutes(0))


# --- The message -----------------------------------------------------------------------------


class Receiver(HTTPServer):
    """A receiver of webhooks on loopback. `statuses` are its next answers, then 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hook/s3cr3t-path"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:  # the name is http.server's
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(json.loads(body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def receiver(settings, monkeypatch) -> Iterator[Receiver]:
    monkeypatch.setattr(jobs, "PAUSES", (0.0, 0.0))
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        settings.ALERT_WEBHOOK_URL = server.url
        yield server
        server.shutdown()
        thread.join()


def work() -> None:
    """Do the jobs of the queue `low`."""
    low = django_rq.get_queue("low")
    SimpleWorker([low], connection=low.connection, serializer=low.serializer).work(burst=True)


def test_alert_is_posted_by_a_job(receiver, settings):
    settings.ALERT_EMAIL = []
    LedgerCheck.objects.create(started_at=START, entries=1, problems=[{"code": "x"}])
    AlertCheck().check(minutes(0))
    assert receiver.bodies == []
    work()
    [body] = receiver.bodies
    assert list(body) == ["text"]
    assert body["text"].startswith("Parley: ParleyLedgerMismatch\nThe check of the ledger found")


def test_alert_about_money_is_posted_too(receiver, settings):
    settings.BILLING_ALERT_EMAIL = ["billing@example.org"]
    notify_staff("A payment is disputed", "Order 7.")
    assert [message.to for message in mail.outbox] == [["billing@example.org"]]
    work()
    assert receiver.bodies == [{"text": "Parley: A payment is disputed\nOrder 7."}]


@pytest.mark.parametrize(
    ("statuses", "tries"), [([503, 500], 3), ([500, 500, 500], 3), ([404], 1), ([], 1)]
)
def test_failed_post_is_repeated_and_hides_its_url(receiver, caplog, statuses, tries):
    receiver.statuses = statuses.copy()
    jobs.post_alert("A subject", "A text")
    assert len(receiver.bodies) == tries
    assert caplog.text.count("was not posted") == len(statuses)
    assert "s3cr3t" not in caplog.text


def test_unreachable_receiver_is_given_up(settings, monkeypatch, caplog):
    monkeypatch.setattr(jobs, "PAUSES", (0.0, 0.0))
    settings.ALERT_WEBHOOK_URL = "http://127.0.0.1:9/s3cr3t"
    jobs.post_alert("A subject", "A text")
    assert caplog.text.count("ConnectError") == 3
    assert "s3cr3t" not in caplog.text
