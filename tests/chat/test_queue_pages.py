"""RQ's pages in the admin: permissions, the audit, and nothing of a job's data."""

from __future__ import annotations

from typing import Any

import django_rq
import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import NoReverseMatch, URLPattern, get_resolver, reverse
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.worker import SimpleWorker

from accounts.models import User
from chat.admin.queue_pages import without_values
from tests.accounts.test_pages import patterns

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

SECRET = "s3cret-of-a-user"
QUEUE = 4  # the number of the queue `low`: they are numbered by name

PAGES: dict[str, URLPattern] = {
    name.removeprefix("admin:django_rq_"): pattern
    for name, route, pattern in patterns(get_resolver())
    if route.startswith("admin/django_rq/")
}

# A new page of an upgrade fails the test below: add it here when its requests are safe or recorded.
READ = {
    "cron_job_detail",
    "cron_scheduler_detail",
    "dashboard_changelist",
    "deferred_jobs",
    "failed_jobs",
    "finished_jobs",
    "home",
    "home_json",
    "job_detail",
    "jobs",
    "metrics",
    "queue_details",
    "result_detail",
    "scheduled_jobs",
    "scheduler_jobs",
    "started_jobs",
    "worker_details",
    "workers",
}
CHANGE = {
    "actions",
    "clear",
    "confirm_action",
    "delete_failed_jobs",
    "delete_job",
    "enqueue_job",
    "requeue_all",
    "requeue_job",
    "stop_job",
}


def broken(**kwargs: Any) -> None:
    raise ValueError(kwargs["password"])


@pytest.fixture
def queue() -> Queue:
    queue = django_rq.get_queue("low")
    assert django_rq.settings.get_queues_list()[QUEUE]["name"] == queue.name
    return queue


@pytest.fixture
def job(queue: Queue) -> Job:
    return queue.enqueue_call(
        "tests.chat.test_queue_pages.broken",
        kwargs={"password": SECRET},
        description=SECRET,
        meta={"note": SECRET},
    )


def address(name: str, job: Job) -> str:
    numbers = {"queue_index": QUEUE, "scheduler_index": 0, "connection_index": 0}
    words = {
        "job_id": job.id,
        "result_id": "1-0",
        "key": "rq:worker:none",
        "scheduler_name": "none",
        "cron_job_name": "none",
    }
    wanted = PAGES[name].pattern.converters
    given = {key: (numbers | words)[key] for key in wanted}
    return reverse(f"admin:django_rq_{name}", kwargs=given)


def staff(*permissions: str) -> Client:
    user = User.objects.create_user(f"{len(permissions)}@example.org", is_staff=True)
    user.user_permissions.add(*Permission.objects.filter(codename__in=permissions))
    client = Client(raise_request_exception=False)
    client.force_login(user)
    return client


def test_every_page_is_known():
    assert set(PAGES) == READ | CHANGE


@pytest.mark.parametrize("name", sorted(PAGES))
def test_page_requires_its_permission(job, queue, name):
    url = address(name, job)
    clerk = staff("view_run", "change_run", "view_message")
    assert (clerk.get(url).status_code, clerk.post(url).status_code) == (403, 403)
    assert clerk.post(url, {"action": "delete", "job_ids": job.id}).status_code == 403
    reader = staff("view_queue")
    assert reader.get(url).status_code != 403
    assert reader.post(url, {"action": "delete", "job_ids": job.id}).status_code == 403
    assert queue.job_ids == [job.id]
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("name", sorted(CHANGE - {"confirm_action"}))
def test_change_of_a_queue_is_recorded(job, queue, name):
    clerk = staff("view_queue", "change_queue")
    url = address(name, job)
    clerk.post(url, {"action": "delete", "job_ids": job.id}, REMOTE_ADDR="198.51.100.7")
    entry = LogEntry.objects.get()
    assert entry.user == User.objects.get()
    assert (entry.object_repr, entry.object_id) == ("queue low", "low")
    verb = "delete" if name == "actions" else name.replace("_", " ")
    assert entry.change_message.startswith(verb)
    assert "from 198.51.100.7" in entry.change_message
    assert (job.id in entry.change_message) == (name == "actions" or "job_id" in url_words(name))


def url_words(name: str) -> set[str]:
    return set(PAGES[name].pattern.converters)


def test_staff_with_both_permissions_empty_a_queue(job, queue):
    clerk = staff("view_queue", "change_queue")
    assert clerk.post(address("clear", job)).status_code == 302
    assert queue.job_ids == []


def test_job_page_shows_no_data_of_the_job(job, queue):
    SimpleWorker([queue], connection=queue.connection, serializer=queue.serializer).work(burst=True)
    job.refresh()
    assert job.get_status() == JobStatus.FAILED
    assert SECRET in job.latest_result().exc_string
    boss = Client()
    boss.force_login(User.objects.create_superuser("boss@example.org"))
    shown = boss.get(address("job_detail", job)).content.decode()
    assert "tests.chat.test_queue_pages.broken" in shown
    assert "ValueError" in shown
    assert 'value="Requeue"' in shown
    for name in READ:
        assert SECRET not in boss.get(address(name, job)).content.decode(), name


def test_pages_of_unknown_jobs_are_not_found(job):
    boss = Client()
    boss.force_login(User.objects.create_superuser("boss@example.org"))
    unknown = f"queues/{QUEUE}/unknown/", "queues/99/", f"queues/99/{job.id}/"
    for path in (*unknown, f"workers/{QUEUE}/rq:worker:none/"):
        assert boss.get(f"/admin/django_rq/dashboard/{path}").status_code == 404
    assert boss.post("/admin/django_rq/dashboard/queues/99/empty/").status_code == 404


def test_admin_index_offers_queues_by_permission(job):
    assert "django_rq" in staff("view_queue").get("/admin/").content.decode()
    assert "django_rq" not in staff("view_run", "view_message").get("/admin/").content.decode()
    with pytest.raises(NoReverseMatch):
        reverse("admin:django_rq_dashboard_add")


def test_traceback_is_shown_without_messages():
    traceback = (
        "Traceback (most recent call last):\n"
        '  File "/app/mail.py", line 3, in send\n'
        "    raise Refused(f'{address}')\n"
        "smtplib.SMTPRecipientsRefused: {'someone@example.org': secret}\n"
        "second line: secret words\n"
        "\nDuring handling of the above exception, another exception occurred:\n\n"
        "ValueError\n"
    )
    shown = without_values(traceback)
    assert "secret" not in shown
    assert "someone" not in shown
    assert 'File "/app/mail.py", line 3, in send' in shown
    assert "smtplib.SMTPRecipientsRefused" in shown
    assert shown.endswith("ValueError")
