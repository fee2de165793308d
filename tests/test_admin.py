"""The admin: every table opens in it, and messages cannot be changed."""

from __future__ import annotations

import time

import msgspec
import pytest
import redis
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts import api_keys
from accounts.models import AccountDeletion, Consent, Invitation, InvitationUse, LegalDocument, User
from billing.models import (
    CreditLot,
    DailyUsage,
    Hold,
    LedgerEntry,
    LotMove,
    ProviderEvent,
    ProviderRequest,
    UsageRecord,
)
from chat.conversations.api_prompt import ApiRequest
from chat.models import (
    Announcement,
    AnnouncementDismissal,
    ApiCall,
    Assistant,
    Attachment,
    ChatExport,
    ChatImport,
    ChatPreference,
    Conversation,
    ConversationShare,
    Draft,
    IdempotencyKey,
    ImportedChat,
    Message,
    MessageAttachment,
    MessageFeedback,
    MessagePart,
    ModerationRule,
    NextMessage,
    Project,
    Prompt,
    Provider,
    PublicLink,
    PushSubscription,
    Report,
    Run,
    SearchEntry,
    SearchPosition,
    UserNote,
    Webhook,
    WebhookDelivery,
)
from chat.runs import api_calls
from chatproject.lib import loop_monitor
from chatproject.lib.mail.models import OutgoingMail
from tests.support.conversations import send
from tests.support.people import assistant, conversation, owner

__all__ = ["assistant", "conversation", "owner"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

# The tables of billing are opened in tests/billing/test_admin.py, which fills all of them.
# Hidden are indexes that only the program reads, and what belongs to a user alone: unsent texts, the
# grouping of chats, and the secrets of browsers.
HIDDEN = (
    Attachment,  # of the messages, whose text only some members of staff may read
    Draft,
    ImportedChat,
    MessageAttachment,
    NextMessage,
    Project,
    PushSubscription,
    SearchEntry,
    SearchPosition,
    UserNote,
    WebhookDelivery,
)
OURS = [
    model
    for label in ("accounts", "chat")
    for model in apps.get_app_config(label).get_models()
    if model not in HIDDEN
]
GENERATED = (
    "chatexport",
    "chatimport",
    "conversation",
    "message",
    "messagefeedback",
    "messagepart",
    "run",
)


@pytest.fixture
def staff(client):
    user = User.objects.create_superuser("staff@example.org", "correct horse battery")
    client.force_login(user)
    return client


@pytest.fixture
def row(owner, conversation):
    """A run, with a row in each table."""
    run = send(owner, conversation, "Hello there")
    Provider.objects.create(name="Hello")
    Prompt.objects.create(title="Hello", text="Hello")
    key = api_keys.create(owner, api_keys.Terms(name="Hello"))[0]
    api_calls.start_call(
        key, run.model, ApiRequest([{"role": "user", "content": "Hi"}]), streamed=False
    )
    IdempotencyKey.objects.create(user=owner, key="hello", digest="0" * 64)
    ConversationShare.objects.create(conversation=conversation, owner=owner, email="r@example.org")
    PublicLink.objects.create(conversation=conversation, owner=owner)
    Webhook.objects.create(owner=owner, name="Hello", url="https://example.org", host="example.org")
    ChatPreference.objects.create(user=owner)
    terms = LegalDocument.objects.create(kind="terms", language="en", version=1, text="Hello")
    invitation = Invitation.objects.create(email="hello@example.org", expires_at=timezone.now())
    InvitationUse.objects.create(user=owner, invitation=invitation)
    Consent.objects.create(user=owner, kind="terms", version=1, document=terms)
    AccountDeletion.objects.create(user=owner, due_at=timezone.now())
    ChatImport.objects.create(owner=owner, size=1, beat_at=timezone.now())
    ChatExport.objects.create(owner=owner, size=1, beat_at=timezone.now())
    made = Announcement.objects.create(text="Hello")
    AnnouncementDismissal.objects.create(announcement=made, user=owner)
    ModerationRule.objects.create(name="Hello", words="hello")
    Report.objects.create(message=run.message, user=owner, reason="other")
    MessageFeedback.objects.create(
        message=run.message, user=owner, model=run.model, rating="bad", text="Hello"
    )
    MessagePart.objects.create(
        message=run.message, position=0, kind="reasoning", data={"text": "Hm."}
    )
    return run


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_every_table_is_registered_and_opens(staff, row, model):
    assert admin.site.is_registered(model)
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
    for query in ({"q": "hello"}, {}):
        assert staff.get(reverse(f"{name}_changelist"), query).status_code == 200
    one = model.objects.first()
    assert one is not None
    assert staff.get(reverse(f"{name}_change", args=[one.pk])).status_code == 200


# Tables of the catalogue, which stay short.
SHORT = ("billing_modelprice", "billing_packageprice")


def test_lists_read_no_distinct_values(staff, row):
    found = []
    for model in admin.site._registry:
        if not model._meta.managed:
            continue
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"
        with CaptureQueriesContext(connection) as captured:
            assert staff.get(reverse(name)).status_code == 200
        found += [
            (name, query["sql"])
            for query in captured
            if "SELECT DISTINCT" in query["sql"]
            and not any(f'"{t}"' in query["sql"] for t in SHORT)
        ]
    assert found == []


# Tables that grow with each message, request, payment or look of staff.
LARGE = {
    *(ApiCall, Conversation, IdempotencyKey, Message, MessagePart, Run),
    *(CreditLot, DailyUsage, Hold, LedgerEntry, LotMove, UsageRecord),
    *(LogEntry, OutgoingMail, ProviderEvent, ProviderRequest),
}


@pytest.mark.parametrize("model", sorted(LARGE, key=str), ids=lambda model: model.__name__)
def test_large_list_is_sorted_by_indexes_alone(rf, model):
    """Whatever an address asks for: a sort of a million rows takes seconds."""
    model_admin = admin.site.get_model_admin(model)
    indexed = {"pk"} | {
        one.name for one in model._meta.fields if one.primary_key or one.unique or one.db_index
    }
    indexed |= {
        one.fields[0].lstrip("-")
        for one in model._meta.indexes
        if one.fields and one.condition is None
    }
    for number in range(len(model_admin.list_display) + 1):
        for sign in ("", "-"):
            request = rf.get("/", {"o": f"{sign}{number}"} if number else {})
            request.user = User(is_superuser=True, is_active=True, is_staff=True)
            query = model_admin.get_changelist_instance(request).queryset.query
            assert str(query.order_by[0]).lstrip("-") in indexed, (number, query.order_by)


def test_filter_of_conversations_hides_personal_assistants(staff, row, owner):
    Assistant.objects.create(
        slug="mine", name="My secret plans", model=row.model, personal=True, owner=owner
    )
    html = staff.get(reverse("admin:chat_conversation_changelist")).content.decode()
    assert row.assistant.name in html
    assert "My secret plans" not in html


def test_staff_prompt_is_named_by_title(staff, owner):
    form = {"title": "Summary", "text": "Summarise {{text}}"}
    page = staff.post(reverse("admin:chat_prompt_add"), form, follow=True)
    assert ">Summary</a>” was added" in page.content.decode()
    assert "Diary" not in str(Prompt.objects.create(owner=owner, title="Diary", text="x"))


def test_index_links_to_daily_pages(staff):
    html = (
        staff.get(reverse("admin:index")).content.decode().split("admin-pages")[1].split("</ul>")[0]
    )
    for name in ("languagemodel", "assistant", "prompt", "announcement", "moderationrule"):
        assert reverse(f"admin:chat_{name}_changelist") in html


@pytest.mark.parametrize("name", GENERATED)
def test_generated_rows_cannot_be_added_or_deleted(staff, row, name):
    model = apps.get_model("chat", name)
    assert staff.get(reverse(f"admin:chat_{name}_add")).status_code == 403
    url = reverse(f"admin:chat_{name}_delete", args=[model.objects.first().pk])
    assert staff.post(url, {"post": "yes"}).status_code == 403
    assert model.objects.exists()


def test_message_cannot_be_changed(staff, row):
    asked = row.message.parent
    url = reverse("admin:chat_message_change", args=[asked.pk])
    assert staff.post(url, {"text": "Something else"}).status_code == 403
    assert Message.objects.get(pk=asked.pk).text == "Hello there"


def test_only_queue_pages_may_run_inline_scripts(staff, row):
    response = staff.get("/admin/django_rq/dashboard/")
    assert response.status_code == 200
    assert "'unsafe-inline'" in response.headers["Content-Security-Policy"]
    elsewhere = staff.get("/admin/")
    assert "unsafe-inline" not in elsewhere.headers["Content-Security-Policy"]


def test_admin_is_for_staff_only(client, owner):
    client.force_login(owner)
    assert client.get("/admin/").status_code == 302
    assert client.get("/admin/django_rq/dashboard/stats.json").status_code in (401, 403)


# --- The live queue ---------------------------------------------------------------------------


def test_live_queue_shows_queue_workers_and_blocks(staff, owner, conversation, valkey_client):
    send(owner, conversation)
    where = {"task": "ticker", "where": "chat/streaming/ticker.py:1 slow"}
    block = loop_monitor.Block(
        process="host:1", role="worker", at=time.time(), milliseconds=250.0, **where
    )
    unknown = msgspec.structs.replace(block, task="", where="")
    valkey_client.lpush(loop_monitor.BLOCKS, *map(msgspec.json.encode, (block, unknown)))
    page = staff.get(reverse("chat_live_queue")).content.decode()
    assert "owner@example.org" in page
    assert "No worker is running" in page
    assert "chat/streaming/ticker.py:1 slow" in page
    assert "250 ms" in page
    assert "Unknown: no Python code was sampled" in page
    assert reverse("chat_live_queue") in staff.get("/admin/chat/").content.decode()


def test_live_queue_reports_an_unreachable_redis(staff, monkeypatch):
    monkeypatch.setattr(loop_monitor, "sync_client", lambda: redis.Redis(port=9))
    page = staff.get(reverse("chat_live_queue"))
    assert page.status_code == 200
    assert "Redis is unreachable" in page.content.decode()


def test_live_queue_requires_permission_to_view_runs(client):
    client.force_login(User.objects.create_user("some@example.org", is_staff=True))
    assert client.get(reverse("chat_live_queue")).status_code == 403
