"""Reports of replies: from the form to the decision of staff."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse

from accounts.models import User
from chat.models import Conversation, Message, Report
from chatproject.lib.admin import NOTHING
from tests.support.conversations import add_turns

pytestmark = pytest.mark.usefixtures("valkey_url")


@pytest.fixture
def reply(owner: User, conversation: Conversation) -> Message:
    return add_turns(owner, conversation, 2)[-1]


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def test_report_is_made_once_and_shows_its_state(owner, stranger, reply):
    page, address = signed_in(owner), f"/messages/{reply.pk}/report/"
    assert address in page.get(f"/messages/{reply.pk}/feedback/").content.decode()
    assert "Why do you report it?" in page.get(address).content.decode()
    assert page.post(address, {"reason": "nothing"}).status_code == 400
    assert page.post(address, {"reason": "hate", "text": "x" * 2_001}).status_code == 413
    done = page.post(address, {"reason": "hate", "text": "Look"}, follow=True).content.decode()
    assert "The staff will look at this reply." in done
    page.post(address, {"reason": "other", "text": "Again"})
    one = Report.objects.get()
    assert (one.reason, one.text, one.status, one.model) == (
        "hate",
        "Look",
        "open",
        reply.run.model,
    )
    assert "Its state: Open." in page.get(address).content.decode()
    assert signed_in(stranger).post(address, {"reason": "hate"}).status_code == 404
    assert page.post(f"/messages/{reply.parent_id}/report/", {"reason": "hate"}).status_code == 404


def test_staff_take_decide_and_reopen_reports(owner, reply):
    one = Report.objects.create(message=reply, user=owner, reason="hate", text="Look")
    boss = User.objects.create_superuser("boss@example.org", "correct horse battery")
    second = User.objects.create_superuser("second@example.org", "correct horse battery")
    pages = signed_in(boss), signed_in(second)
    queue = reverse("admin:chat_report_changelist")

    def act(page: Client, action: str, state: str = "all") -> str:
        form = {"action": action, "_selected_action": [one.pk]}
        response = page.post(f"{queue}?state={state}", form, follow=True)
        one.refresh_from_db()
        return response.content.decode()

    address = reverse("admin:chat_report_change", args=[one.pk])
    shown = pages[0].get(address).content.decode()
    assert 'name="step" value="uphold"' in shown
    assert 'name="step" value="reopen"' not in shown
    assert "Answer 1" in shown
    assert "Question 1" in shown
    act(pages[0], "assign")
    assert (one.status, one.assignee) == ("review", boss)
    assert "1 report" in pages[0].get(f"{queue}?state=mine").content.decode()
    assert "0 reports" in pages[1].get(f"{queue}?state=mine").content.decode()
    # By a button of its page, which stores the note as well, and leads back to the queue.
    closed = pages[1].post(address, {"note": "Warned", "step": "uphold"})
    one.refresh_from_db()
    assert (one.status, one.closed_at is not None, one.note) == ("upheld", True, "Warned")
    assert closed["Location"] == queue
    assert "closed or changed meanwhile" in act(pages[0], "dismiss")
    assert one.status == "upheld"
    assert "0 reports" in pages[0].get(queue).content.decode()  # the queue has open ones alone
    act(pages[1], "reopen")
    assert (one.status, one.closed_at, one.assignee) == ("open", None, None)
    messages = list(LogEntry.objects.order_by("pk").values_list("user", "change_message"))
    assert messages == [
        (boss.pk, "Looked at the text"),
        (boss.pk, "Status: open → review"),
        (second.pk, f"Changed. Note: {NOTHING} → Warned."),
        (second.pk, "Status: review → upheld"),
        (second.pk, "Status: upheld → open"),
    ]
