"""Moderation before a run, by lists of words and by a provider's endpoint."""

from __future__ import annotations

import json
import threading

import pytest
from django.core.exceptions import ValidationError
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts import api_keys
from accounts.models import User
from billing.models import Hold
from chat.conversations.api_prompt import ApiRequest
from chat.errors import ChatError
from chat.models import Message, ModerationRule, Provider, Run
from chat.moderation import rules
from chat.runs import api_calls, start
from tests.support.conversations import client_id, send
from tests.support.provider_api import KEY, Api, api, row
from tests.support.sockets import open_tab

__all__ = ["api", "row"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


@pytest.fixture(autouse=True)
def _moderated(settings, monkeypatch):
    settings.MODERATION = True
    monkeypatch.setattr(rules, "memory", rules.Memory())


@pytest.fixture
def words() -> ModerationRule:
    return ModerationRule.objects.create(name="No badgers", words="badger*\nhoney pot")


def answering(api: Api, *, flagged: bool = True, status: int = 200) -> None:
    result = {"flagged": flagged, "categories": {"violence": flagged, "hate": False}}
    api.other = (status, "application/json", json.dumps({"results": [result]}))


def test_refused_message_of_a_form_keeps_its_text(owner, conversation, words):
    page = Client()
    page.force_login(owner)
    form = {"text": "About BADGERS & co", "client_id": client_id()}
    response = page.post(f"/c/{conversation.pk}/send/", form)
    html = response.content.decode()
    assert response.status_code == 422
    assert "“No badgers”. It was not sent, and nothing was charged." in html
    assert "About BADGERS &amp; co</textarea>" in html
    sent = send(owner, conversation, "About foxes")
    Run.objects.update(status="done", ended_at=sent.queued_at)
    edit = f"/messages/{sent.message.parent_id}/edit/"
    assert page.post(edit, {"text": "honey pot", "client_id": client_id()}).status_code == 422
    assert page.post("/c/new/", {"text": "badger", "client_id": client_id()}).status_code == 422
    Message.objects.filter(role="user").update(text="badger")  # as if imported
    answer = f"/messages/{sent.message.parent_id}/regenerate/"
    assert page.post(answer, {"client_id": client_id()}).status_code == 422
    assert (Message.objects.count(), Hold.objects.count()) == (2, 1)


def test_repetition_of_a_stored_message_is_never_refused(owner, conversation, words):
    words.is_enabled = False
    words.save()
    first = send(owner, conversation, "badger", client_id="once")
    words.is_enabled = True
    words.save()
    rules.memory._due = 0.0
    assert send(owner, conversation, "badger", client_id="once") == first
    Run.objects.update(status="done", ended_at=first.queued_at)
    with pytest.raises(ChatError, match="moderated"):
        send(owner, conversation, "badger", client_id="twice")


CALLS = [
    # Behind a message that looks like a reply, beside the content, and across two parts.
    [{"role": "user", "content": "badger"}, {"role": "assistant", "content": "Yes?"}],
    [{"role": "system", "content": "badger"}, {"role": "user", "content": "Go on"}],
    [{"role": "user", "content": "x", "name": "badger"}],
    [{"role": "user", "content": "x" * 19_995 + " honey pot"}],
]


@pytest.mark.parametrize("messages", CALLS)
def test_calls_of_the_api_are_moderated_whole(owner, assistant, words, messages):
    key, _secret = api_keys.create(owner, api_keys.Terms("Test"))
    with pytest.raises(ChatError, match="moderated"):
        api_calls.start_call(key, assistant.model, ApiRequest(messages), streamed=False)
    quoted = [{"role": "assistant", "content": "badger"}, {"role": "user", "content": "Why?"}]
    run = api_calls.start_call(key, assistant.model, ApiRequest(quoted), streamed=False)
    assert run.status == "queued"


@pytest.mark.asyncio
async def test_socket_is_told_the_rule_and_goes_on(owner, conversation, words, socket_loop):
    async with open_tab(owner) as tab:
        frame = {"type": "chat.send", "client_id": "a", "conversation": str(conversation.pk)}
        await tab.send(**frame, text="badger")
        error = await tab.receive()
        assert (error["type"], error["code"], error["ref"]) == ("error", "moderated", "a")
        assert "No badgers" in error["message"]
        await tab.send(**frame, text="fox")
        assert (await tab.receive())["type"] in ("run.queued", "conversation.updated")


def test_endpoint_decides_and_is_asked_once(owner, conversation, api, row):
    ModerationRule.objects.create(
        name="House rules", kind="endpoint", provider=row, provider_model="omni"
    )
    answering(api)
    for _turn in range(2):
        with pytest.raises(ChatError, match=r"“House rules \(violence\)”"):
            send(owner, conversation, "I will\nhurt")
    [(route, body)] = api.asked
    assert (route, json.loads(body)) == (
        "POST /v1/moderations",
        {"input": "I will\nhurt", "model": "omni"},
    )
    answering(api, flagged=False)
    assert send(owner, conversation, "I will help").status == "queued"


@pytest.mark.parametrize(
    "answer",
    [
        (500, "application/json", "{}"),
        (200, "application/json", "[" * 50_000),
        (200, "application/json", '{"results": [{"flagged": "no"}]}'),
        (200, "text/html", "<html>"),
        (302, "https://elsewhere.example", ""),
    ],
)
@pytest.mark.parametrize("on_failure", ["allow", "refuse"])
def test_failed_check_follows_its_rule(owner, conversation, api, row, answer, on_failure):
    ModerationRule.objects.create(
        name="Remote", kind="endpoint", provider=row, on_failure=on_failure
    )
    api.other = answer
    if on_failure == "allow":
        assert send(owner, conversation).status == "queued"
        return
    with pytest.raises(ChatError, match="could not be checked") as refused:
        send(owner, conversation)
    assert (refused.value.code, refused.value.retry_after) == ("unavailable", 5.0)
    assert not Message.objects.exists()


def test_silent_endpoint_ends_in_time(owner, conversation, api, row, settings):
    settings.MODERATION_SECONDS = 1
    ModerationRule.objects.create(name="Remote", kind="endpoint", provider=row)
    release = threading.Event()
    wait = api.answer
    api.answer = lambda route, body: release.wait(30) and wait(route, body)
    try:
        with pytest.raises(ChatError, match="could not be checked"):
            send(owner, conversation)
    finally:
        release.set()


def test_disabled_moderation_needs_no_query(owner, conversation, words, settings):
    settings.MODERATION = False
    with CaptureQueriesContext(connection) as queries:
        assert rules.review("badger") == rules.ALLOWED
    assert len(queries) == 0
    assert start.send(
        user=owner, conversation_id=conversation.pk, text="badger", client_id=client_id()
    ).is_new


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"words": " \n"}, "Enter at least one word."),
        ({"words": "a\n" * 1_001}, "Enter up to 1,000"),
        ({"kind": "endpoint"}, "Choose the provider"),
    ],
)
def test_rule_without_content_is_refused(fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        ModerationRule(name="x", **fields).full_clean()


def test_rule_of_the_admin_names_a_useless_line(client):
    client.force_login(User.objects.create_superuser("staff@example.org", "correct horse battery"))
    form = {"name": "x", "is_enabled": "on", "kind": "words", "on_failure": "refuse"}
    page = client.post("/admin/chat/moderationrule/add/", form | {"words": "good\n***"})
    assert "“***” has no letter or digit." in page.content.decode()
    client.post("/admin/chat/moderationrule/add/", form | {"words": "good"})
    assert rules.review("Good!").rule == "x"
    assert Provider.objects.count() == 0
    assert KEY not in page.content.decode()
