"""Expired sessions are deleted by the clock, a batch at a time."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.utils import timezone

from accounts import sessions
from chatproject import clock

pytestmark = pytest.mark.django_db


def test_expired_sessions_are_deleted_in_batches(monkeypatch):
    monkeypatch.setattr(sessions, "BATCH", 3)
    now = timezone.now()
    for number in range(8):
        days = -1 if number < 5 else 1
        Session.objects.create(
            session_key=f"key{number}", session_data="x", expire_date=now + timedelta(days=days)
        )
    [task] = [task for task in clock.schedule() if task.name == "clear sessions"]
    left = []
    for _ in range(3):
        task.run(now)
        left.append(Session.objects.count())
    assert left == [5, 3, 3]
    assert not Session.objects.filter(expire_date__lt=now).exists()
