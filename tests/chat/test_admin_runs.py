"""Staff read messages, which is logged, and stop runs and ask them again."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import urlencode

import pytest
import redis
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from chat.conversations.transcript import MESSAGES_SHOWN
from chat.models import Message, Provider, Run
from chat.runs import finish
from chat.streaming import leases
from chat.streaming.leases import stop_requested
from tests.support.conversations import add_turns, begin, send
from tests.support.runs import fresh, mark_running

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def desk(*permissions: str) -> Client:
    """Return the browser of a member of staff with these permissions."""
    clerk = User.objects.create_user("clerk@example.org", is_staff=True)
    clerk.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(clerk)
    return client


def logged() -> list[tuple[str, str, str]]:
    rows = LogEntry.objects.order_by("pk").select_related("user")
    return [(row.user.email, row.object_repr, row.change_message) for row in rows]


def fail(run: Run) -> None:
    finish.end(
        run_id=run.pk,
        attempt=run.attempt,
        status=Run.Status.QUEUED,
        seq=9,
        outcome=finish.failed("internal"),
    )


# --- Reading ----------------------------------------------------------------------------------


def test_messages_are_shown_in_pages_and_logged(owner, conversation):
    add_turns(owner, conversation, 70)
    browser = desk("view_conversation", "view_message")
    url = reverse("admin:chat_conversation_messages", args=[conversation.pk])
    change = reverse("admin:chat_conversation_change", args=[conversation.pk])
    assert url in browser.get(change).content.decode()
    opened = ("clerk@example.org", str(conversation), "Looked at the text")
    assert logged() == [opened]
    page = browser.get(url)
    assert len(page.context["part"].messages) == MESSAGES_SHOWN
    assert "Answer 69" in page.content.decode()
    assert "Question 19<" not in page.content.decode()
    earlier = browser.get(f"{url}?before={page.context['part'].earlier}")
    assert "Question 19<" in earlier.content.decode()
    assert len(earlier.context["part"].messages) == 140 - MESSAGES_SHOWN
    look = ("clerk@example.org", str(conversation), "Looked at the messages")
    assert logged() == [opened, look, look]


@pytest.mark.parametrize("permissions", [["view_conversation"], ["view_message"], []])
def test_messages_need_both_permissions(owner, conversation, permissions):
    browser = desk(*permissions)
    url = reverse("admin:chat_conversation_messages", args=[conversation.pk])
    assert browser.get(url).status_code == 403
    assert logged() == []


def test_pages_of_message_and_run_are_logged(owner, conversation):
    run = send(owner, conversation)
    browser = desk("view_run", "view_message")
    for row in (run.message, run):
        url = reverse(f"admin:chat_{row._meta.model_name}_change", args=[row.pk])
        assert browser.get(url).status_code == 200
    assert [entry[1:] for entry in logged()] == [
        (str(run.message), "Looked at the text"),
        (str(run), "Looked at the text"),
    ]


def test_run_page_without_text_is_not_logged(owner, conversation):
    run = send(owner, conversation)
    url = reverse("admin:chat_run_change", args=[run.pk])
    page = desk("view_run").get(url).content.decode()
    assert "/stop/" not in page
    assert logged() == []


# --- Stopping ---------------------------------------------------------------------------------


def test_staff_stop_queued_run(client, owner, conversation):
    run = send(owner, conversation)
    browser = desk("view_run", "change_run")
    url = reverse("admin:chat_run_stop", args=[run.pk])
    assert url in browser.get(reverse("admin:chat_run_change", args=[run.pk])).content.decode()
    assert "owner@example.org reads that the staff" in browser.get(url).content.decode()
    assert fresh(run.pk).status == "queued"
    browser.post(url)
    stopped = fresh(run.pk)
    assert (stopped.status, stopped.error_code, stopped.charged) == (
        "stopped",
        "stopped_by_staff",
        0,
    )
    assert logged() == [("clerk@example.org", str(run), "Stopped")]
    client.force_login(owner)
    page = client.get(conversation.get_absolute_url()).content.decode()
    assert (
        "The staff of this site stopped this reply before it started. Nothing was charged." in page
    )
    assert "You stopped" not in page
    browser.post(url)
    assert len(logged()) == 1  # it had ended


def test_staff_stop_running_run_of_deleted_conversation(owner, conversation):
    run = send(owner, conversation)
    mark_running(run)
    conversation.deleted_at = conversation.updated_at
    conversation.save()
    desk("view_run", "change_run").post(reverse("admin:chat_run_stop", args=[run.pk]))
    assert stop_requested([run.pk]) == {run.pk}
    ended = finish.end(
        run_id=run.pk,
        attempt=1,
        status=Run.Status.RUNNING,
        seq=9,
        outcome=finish.Outcome(status=Run.Status.STOPPED, text="So far"),
    )
    assert "The staff of this site stopped this reply. The text so far is saved." in ended.html
    assert fresh(run.pk).error_code == "stopped_by_staff"


def test_run_that_ends_before_the_stop_is_done(owner, conversation):
    run = send(owner, conversation)
    mark_running(run)
    desk("view_run", "change_run").post(reverse("admin:chat_run_stop", args=[run.pk]))
    outcome = finish.Outcome(status=Run.Status.DONE, text="All of it")
    finish.end(run_id=run.pk, attempt=1, status=Run.Status.RUNNING, seq=9, outcome=outcome)
    done = fresh(run.pk)
    assert (done.status, done.error_code) == ("done", "")


def test_stop_without_redis_changes_nothing(owner, conversation, monkeypatch):
    run = send(owner, conversation)
    mark_running(run)
    browser = desk("view_run", "change_run")
    monkeypatch.setattr(leases, "sync_client", lambda: redis.Redis(port=9))
    page = browser.post(reverse("admin:chat_run_stop", args=[run.pk]), follow=True)
    assert page.context["messages"]
    assert (fresh(run.pk).status, fresh(run.pk).error_code) == ("running", "")
    assert logged() == []


# --- Asking again -----------------------------------------------------------------------------


def test_staff_ask_failed_run_again_once(owner, conversation):
    run = send(owner, conversation)
    fail(run)
    browser = desk("view_run", "change_run")
    url = reverse("admin:chat_run_again", args=[run.pk])
    assert url in browser.get(reverse("admin:chat_run_change", args=[run.pk])).content.decode()
    assert "their usual price apply" in browser.get(url).content.decode()
    assert Run.objects.count() == 1
    browser.post(url)
    browser.post(url)
    again = Run.objects.exclude(pk=run.pk).get()
    assert (again.user, again.status) == (owner, "queued")
    assert again.message.parent_id == run.message.parent_id
    assert Message.objects.filter(role="user").count() == 1
    assert logged() == [("clerk@example.org", str(run), f"Asked again: {again}")]


def test_only_last_failed_run_is_asked_again(owner, conversation):
    run = send(owner, conversation)
    browser = desk("view_run", "change_run")
    url = reverse("admin:chat_run_again", args=[run.pk])
    browser.post(url)  # it is queued
    fail(run)
    newer = send(owner, conversation)
    fail(newer)
    browser.post(url)
    assert Run.objects.count() == 2
    browser.post(reverse("admin:chat_run_again", args=[newer.pk]))
    assert Run.objects.count() == 3


def test_user_who_may_not_send_is_not_asked_for(owner, conversation):
    run = send(owner, conversation)
    fail(run)
    User.objects.filter(pk=owner.pk).update(is_active=False)
    page = desk("view_run", "change_run").post(
        reverse("admin:chat_run_again", args=[run.pk]), follow=True
    )
    assert "Not asked again" in page.content.decode()
    assert Run.objects.count() == 1


@pytest.mark.parametrize("page", ["stop", "again"])
@pytest.mark.parametrize("permissions", [["view_run"], ["view_message"], []])
def test_runs_are_changed_with_the_permission_alone(owner, conversation, page, permissions):
    run = send(owner, conversation)
    url = reverse(f"admin:chat_run_{page}", args=[run.pk])
    browser = desk(*permissions)
    assert browser.get(url).status_code == 403
    assert browser.post(url).status_code == 403
    assert fresh(run.pk).status == "queued"


# --- Filtering --------------------------------------------------------------------------------


def test_runs_are_filtered_by_outcome_cause_and_period(owner, conversation):
    first, other = send(owner, conversation), send(owner, begin(owner, conversation.assistant))
    provider = Provider.objects.create(name="Gateway", base_url="https://one.example.org/v1")
    now = timezone.now()
    Run.objects.filter(pk=first.pk).update(
        status="failed",
        ended_at=now,
        error_code="provider_error",
        error_cause="quota",
        provider=provider,
        queued_at=now - timedelta(days=400),
    )
    browser = desk("view_run")
    url = reverse("admin:chat_run_changelist")
    page = browser.get(url).content.decode()
    filters = {
        "status__exact=failed": {first.pk},
        "status__exact=queued": {other.pk},
        "error_code=provider_error": {first.pk},
        "error_cause=quota": {first.pk},
        "error_cause=key": set(),
        f"provider__id__exact={provider.pk}": {first.pk},
        f"model__id__exact={first.model_id}": {first.pk, other.pk},
        urlencode({"queued_at__gte": now - timedelta(days=7)}): {other.pk},
        f"user__id__exact={owner.pk}": {first.pk, other.pk},
        f"conversation__id__exact={conversation.pk}": {first.pk},
    }
    for query, found in filters.items():
        shown = browser.get(f"{url}?{query}")
        assert shown.status_code == 200, query
        assert {run.pk for run in shown.context["cl"].result_list} == found, query
    for choice in ("error_cause=quota", "error_code=provider_error", "status__exact=failed"):
        assert f"?{choice}" in page
    for odd in ("provider__id__exact=x", "queued_at__gte=never", "status__exact=%00", "p=-1"):
        assert browser.get(f"{url}?{odd}").status_code in (200, 302, 400), odd


def test_list_of_runs_reads_no_distinct_values(owner, conversation):
    fail(send(owner, conversation))
    browser = desk("view_run")
    with CaptureQueriesContext(connection) as captured:
        html = browser.get("/admin/chat/run/?error_code=internal").content.decode()
    assert "1 run" in html
    assert "error_cause=quota" in html
    assert not [one["sql"] for one in captured if 'SELECT DISTINCT "chat_run"."error' in one["sql"]]
