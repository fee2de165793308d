"""Feedback on replies: from the buttons to the list of staff."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts.models import User
from chat.conversations import transcript
from chat.models import Conversation, Message, MessageFeedback
from chat.transfer import documents
from tests.support.conversations import add_turns

pytestmark = pytest.mark.usefixtures("valkey_url")


@pytest.fixture
def page(owner: User) -> Client:
    client = Client()
    client.force_login(owner)
    return client


@pytest.fixture
def reply(owner: User, conversation: Conversation) -> Message:
    return add_turns(owner, conversation, 2)[-1]


def pressed(page: Client, conversation: Conversation) -> list[str]:
    """The names of the rating buttons that are pressed in the last reply."""
    html = page.get(conversation.get_absolute_url()).content.decode()
    buttons = html.rpartition('<span class="rating"')[2].partition("</span>")[0]
    return [
        label
        for label in ("Good reply", "Bad reply")
        if f'aria-pressed="true" aria-label="{label}"' in buttons
    ]


def test_feedback_is_given_changed_and_removed_without_script(page, conversation, reply):
    actions = f"{conversation.get_absolute_url()}actions/"
    form = f"/messages/{reply.pk}/feedback/"
    assert pressed(page, conversation) == []
    assert page.post(actions, {"good": reply.pk})["Location"].endswith(f"#m-{reply.pk}")
    assert pressed(page, conversation) == ["Good reply"]
    assert page.post(actions, {"bad": reply.pk})["Location"] == form
    assert 'value="bad" required checked' in page.get(form).content.decode()
    response = page.post(
        form, {"rating": "bad", "reason": "wrong", "text": " <b>No</b> "}, follow=True
    )
    assert "Your feedback is saved." in response.content.decode()
    one = MessageFeedback.objects.get()
    assert (one.rating, one.reason, one.text, one.model) == (
        "bad",
        "wrong",
        "<b>No</b>",
        conversation.assistant.model,
    )
    assert "&lt;b&gt;No&lt;/b&gt;" in page.get(form).content.decode()
    part, _at = documents.json(conversation)(0)
    exported = json.loads(part)["messages"]
    assert exported[-1]["feedback"] == {"rating": "bad", "reason": "wrong", "text": "<b>No</b>"}
    assert "feedback" not in exported[1]
    page.post(actions, {"good": reply.pk})  # the reason was one for "bad"; the text stays
    one.refresh_from_db()
    assert (one.rating, one.reason, one.text) == ("good", "", "<b>No</b>")
    page.post(form, {"remove": "1"})
    page.post(actions, {"unrate": reply.pk})  # a second time
    assert (MessageFeedback.objects.count(), pressed(page, conversation)) == (0, [])


def test_feedback_of_a_script_reaches_other_tabs(page, conversation, reply, monkeypatch):
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "chat.streaming.user_channel.publish", lambda group, data: events.append(json.loads(data))
    )
    response = page.post(
        f"{conversation.get_absolute_url()}actions/",
        {"bad": reply.pk},
        headers={"Accept": "application/json"},
    )
    [event] = events
    assert (event["type"], event["message"]) == ("feedback.changed", str(reply.pk))
    assert event["rating"] == response.json()["rating"] == "bad"
    assert event["html"] == response.json()["html"]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 400),
        ({"rating": "great"}, 400),
        ({"rating": "bad", "reason": "x" * 500}, 400),
        ({"rating": "bad", "text": "x" * 2_001}, 413),
    ],
)
def test_refused_feedback_is_explained_and_kept(page, reply, fields, status):
    response = page.post(f"/messages/{reply.pk}/feedback/", fields)
    assert response.status_code == status
    assert fields.get("text", "")[:3] in response.content.decode()
    assert not MessageFeedback.objects.exists()


def test_replies_of_others_cannot_be_rated(stranger, conversation, reply):
    client = Client()
    client.force_login(stranger)
    actions = f"{conversation.get_absolute_url()}actions/"
    assert client.post(actions, {"good": reply.pk}).status_code == 404
    assert client.get(f"/messages/{reply.pk}/feedback/").status_code == 404
    assert client.get(f"/messages/{uuid4()}/feedback/").status_code == 404
    owner_page = Client()
    owner_page.force_login(conversation.owner)
    sent = reply.parent_id  # not a reply
    assert owner_page.post(f"/messages/{sent}/feedback/", {"rating": "bad"}).status_code == 404
    assert not MessageFeedback.objects.exists()


def test_ratings_need_no_query_of_their_own(owner, conversation, reply):
    MessageFeedback.objects.create(message=reply, user=owner, rating="good")
    conversation.refresh_from_db()
    with CaptureQueriesContext(connection) as queries:
        shown = transcript.excerpt(conversation)
    assert ([one.rating for one in shown.messages], len(queries)) == (["", "", "", "good"], 1)


def test_staff_see_ratings_of_each_model(client, owner, conversation):
    staff = User.objects.create_superuser("staff@example.org", "correct horse battery")
    client.force_login(staff)
    counts = []
    for turns in (2, 4):
        Message.objects.all().delete()
        for number, message in enumerate(add_turns(owner, conversation, turns)[1::2]):
            MessageFeedback.objects.create(
                message=message,
                user=owner,
                model=conversation.assistant.model,
                rating="bad" if number else "good",
                reason="wrong" if number else "",
            )
        with CaptureQueriesContext(connection) as queries:
            html = client.get(
                reverse("admin:chat_messagefeedback_changelist"), {"reason__exact": "wrong"}
            ).content.decode()
        counts.append(len(queries))
    assert counts[0] == counts[1]
    assert 'billing-number">1</td><td class="billing-number">3' in html
    assert "3 message feedback" in html
