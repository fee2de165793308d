"""The health of providers over the last hour, on their list and pages."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from chat.models import Conversation, Message, Provider, Run
from chat.runs.provider_health import LAST_HOUR, MOST, last_hour
from tests.support.people import assistant, owner

__all__ = ["assistant", "owner"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


@pytest.fixture
def add_run(owner, assistant):
    def add(provider: Provider, cause: str = "", *, wait: float = 0.5, minutes: int = 5) -> None:
        conversation = Conversation.objects.create(
            owner=owner, assistant=assistant, updated_at=timezone.now()
        )
        message = Message.objects.create(conversation=conversation, role="assistant")
        ended = timezone.now() - timedelta(minutes=minutes)
        started = ended - timedelta(seconds=20)
        Run.objects.create(
            conversation=conversation,
            message=message,
            user=owner,
            client_id=str(message.pk),
            assistant=assistant,
            model=assistant.model,
            provider=provider,
            status="failed" if cause else "done",
            error_cause=cause,
            started_at=started,
            first_token_at=None if cause else started + timedelta(seconds=wait),
            ended_at=ended,
        )

    return add


def test_replies_failures_and_times_are_counted(admin_client, add_run):
    busy = Provider.objects.create(name="Busy", base_url="https://busy.example.org/v1")
    idle = Provider.objects.create(name="Idle", base_url="https://idle.example.org/v1")
    for wait in (1.0, 2.0, 3.0):
        add_run(busy, wait=wait)
    add_run(busy, "quota", minutes=9)
    add_run(busy, "quota", minutes=8)
    add_run(busy, "key", minutes=2)
    add_run(busy, "timeout", minutes=61)

    health = last_hour()[busy.pk]

    assert (health.replies, health.failures) == (6, {"quota": 2, "key": 1})
    assert health.median == pytest.approx(2)
    assert health.slow == pytest.approx(2.9)
    assert health.last_cause == "key"
    assert health.last_success is not None
    page = admin_client.get(reverse("admin:chat_provider_changelist")).content.decode()
    assert "6 replies; 2 failed: quota; 1 failed: key; first token 2.0 s" in page
    assert page.count("No replies in the last hour") == 1
    page = admin_client.get(reverse("admin:chat_provider_change", args=[busy.pk]))
    assert "Failed: quota" in page.content.decode()
    page = admin_client.get(reverse("admin:chat_provider_change", args=[idle.pk]))
    assert "No replies in the last hour." in page.content.decode()


@pytest.mark.parametrize("has_runs", [True, False])
def test_list_asks_once_for_all_providers(admin_client, add_run, has_runs):
    rows = [
        Provider.objects.create(name=name, base_url=f"https://{name}.example.org/v1")
        for name in ("one", "two", "three")
    ]
    for row in rows if has_runs else []:
        add_run(row)

    with CaptureQueriesContext(
        connection,
    ) as queries:
        admin_client.get(reverse("admin:chat_provider_changelist"))

    assert sum("percentile_cont" in query["sql"] for query in queries) == 1


def test_health_is_read_from_the_index(add_run):
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")
        cursor.execute(f"EXPLAIN {LAST_HOUR}", [MOST])
        plan = str(cursor.fetchall())
        cursor.execute("RESET enable_seqscan")

    assert "run_ended" in plan
