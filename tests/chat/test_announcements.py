"""Announcements: written by staff, seen by their audience, closed by each user."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from chat import announcements
from chat.models import Announcement

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey_url")]


@pytest.fixture(autouse=True)
def _read_at_once(monkeypatch) -> None:
    monkeypatch.setattr(announcements, "REFRESH", 0.0)
    announcements.memory.due = 0.0


@pytest.fixture
def published(monkeypatch) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    monkeypatch.setattr(announcements, "publish", lambda *message: found.append(message))
    return found


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def add(text: str, **fields: Any) -> Announcement:
    return Announcement.objects.create(text=text, html=f"<p>{text}</p>", **fields)


def seen(user: User) -> list[str]:
    return [one.text for one in announcements.for_user(user)]


def test_staff_write_announcements_that_open_pages_show(
    owner, published, django_capture_on_commit_callbacks
):
    staff = signed_in(User.objects.create_superuser("staff@example.org", "correct horse battery"))
    fields = {
        "text": "**New** <script>alert(1)</script> [model](javascript:x)",
        "level": "warning",
        "audience": "all",
        "starts_at_0": "2026-01-01",
        "starts_at_1": "00:00",
        "is_dismissible": "on",
    }
    add_page = reverse("admin:chat_announcement_add")
    wrong = fields | {"ends_at_0": "2025-01-01", "ends_at_1": "00:00"}
    assert "It must end after it starts." in staff.post(add_page, wrong).content.decode()
    wrong = fields | {"audience": "groups"}
    assert "Choose the groups that see it." in staff.post(add_page, wrong).content.decode()
    assert (Announcement.objects.count(), published) == (0, [])
    with django_capture_on_commit_callbacks(execute=True):
        assert staff.post(add_page, fields).status_code == 302
    assert published == [("everyone", b'{"type":"announcements.changed"}')]
    page = signed_in(owner)
    for path in ("/", "/settings/", "/announcements/"):
        html = page.get(path).content.decode()
        assert "announcement-warning" in html
        assert "<strong>New</strong>" in html
        assert "<script>alert" not in html
        assert 'href="javascript' not in html
    assert "announcement-warning" not in page.get("/", headers={"X-Swap": "1"}).content.decode()


def test_each_audience_sees_its_announcements_in_their_time(owner, stranger):
    team = Group.objects.create(name="team")
    owner.groups.add(team)
    stranger.is_staff = True
    stranger.save()
    now = timezone.now()
    add("all", starts_at=now - timedelta(hours=3))
    add("later", starts_at=now + timedelta(hours=1))
    add("over", starts_at=now - timedelta(hours=2), ends_at=now - timedelta(seconds=1))
    add("team", starts_at=now - timedelta(hours=1), audience="groups").groups.add(team)
    add("staff", starts_at=now - timedelta(minutes=1), audience="staff")
    assert seen(owner) == ["team", "all"]
    assert seen(stranger) == ["staff", "all"]


def test_closed_announcement_stays_closed_for_its_user(owner, stranger, published):
    one = add("soft")
    fixed = add("fixed", is_dismissible=False)
    page, address = signed_in(owner), "/announcements/dismiss/"
    form = {"announcement": one.pk, "next": "/settings/"}
    assert page.post(address, form)["Location"] == "/settings/"
    assert published == [(f"user.{owner.pk}", b'{"type":"announcements.changed"}')]
    assert page.post(address, form | {"next": "//evil.example"})["Location"] == "/"  # once more
    assert (seen(owner), seen(stranger)) == (["fixed"], ["fixed", "soft"])
    for number in (fixed.pk, 0, "x", "9" * 30, "²"):
        assert page.post(address, {"announcement": number}).status_code == 404
    hidden = add("staff", audience="staff")
    assert page.post(address, {"announcement": hidden.pk}).status_code == 404


def test_pages_without_announcements_need_no_query(owner, monkeypatch):
    monkeypatch.setattr(announcements, "REFRESH", 60.0)
    counts = []
    for _turn in range(2):
        with CaptureQueriesContext(connection) as queries:
            assert seen(owner) == []
        counts.append(len(queries))
    assert counts == [1, 0]


def test_clock_publishes_beginnings_and_ends(published):
    now = timezone.now()
    add("soon", starts_at=now + timedelta(seconds=15), ends_at=now + timedelta(seconds=35))
    publication = announcements.Publication()
    counts = []
    for seconds in range(0, 60, 10):
        publication.publish_due(now + timedelta(seconds=seconds))
        counts.append(len(published))
    assert counts == [0, 0, 1, 1, 2, 2]
