"""The admin shows no text of messages to staff without the right to view messages."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Permission
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from chat.models import (
    Announcement,
    AnnouncementDismissal,
    ApiCall,
    ChatExport,
    ChatImport,
    ChatPreference,
    Conversation,
    ConversationShare,
    IdempotencyKey,
    Message,
    MessageFeedback,
    MessagePart,
    ModerationRule,
    Prompt,
    Provider,
    PublicLink,
    Report,
    Run,
    Webhook,
)
from tests.support.conversations import begin, send

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

WORD = "xylophone"
MODELS = [
    model for model in apps.get_app_config("chat").get_models() if model in admin.site._registry
]
FIELDS = ("prefix", "prefix_reasoning", "error_message")


@pytest.fixture
def run(owner: User, assistant) -> Run:
    """A run all of whose texts hold WORD."""
    chat = begin(owner, assistant, title=f"About the {WORD}")
    run = send(owner, chat, f"Play the {WORD}")
    Run.objects.filter(pk=run.pk).update(
        **dict.fromkeys(FIELDS, f"A {WORD}"), error_code="internal"
    )
    Message.objects.filter(pk=run.message_id).update(text=WORD, html=f"<p>{WORD}</p>")
    MessagePart.objects.create(message=run.message, position=0, kind="reasoning", data={"t": WORD})
    Provider.objects.get_or_create(name="Second")
    ChatPreference.objects.create(user=owner)
    ChatExport.objects.create(owner=owner, beat_at=timezone.now())
    announcement = Announcement.objects.create(text="News")
    AnnouncementDismissal.objects.create(announcement=announcement, user=owner)
    MessageFeedback.objects.create(message=run.message, user=owner, rating="bad")
    Report.objects.create(message=run.message, user=owner, reason="other")
    ModerationRule.objects.create(name="Words", words="badger")
    Prompt.objects.create(title="Prompt", text="Text")
    ApiCall.objects.create(run=run, conversation=chat, request=WORD, created_at=timezone.now())
    IdempotencyKey.objects.create(user=owner, key="key", digest="0" * 64)
    ConversationShare.objects.create(conversation=chat, owner=owner, email="r@example.org")
    PublicLink.objects.create(conversation=chat, owner=owner, title=WORD)
    Webhook.objects.create(owner=owner, name=WORD, url=f"https://example.org/{WORD}", host="x")
    ChatImport.objects.create(
        owner=owner, file_name=WORD, notes=[[WORD, WORD]], size=1, beat_at=timezone.now()
    )
    return run


def staff_with(client, *refused: str):
    """A browser of staff with all permissions but these."""
    user = User.objects.create_user("clerk@example.org", "correct horse battery", is_staff=True)
    user.user_permissions.set(Permission.objects.exclude(codename__in=refused))
    client.force_login(user)
    return client


@pytest.fixture
def clerk(client):
    return staff_with(client, "view_message", "change_message", "delete_message", "add_message")


def addresses(run: Run) -> list[str]:
    """All pages of chat's admin, and those of others that name a chat."""
    found = [
        reverse("admin:index"),
        reverse("admin:app_list", args=["chat"]),
        reverse("chat_live_queue"),
    ]
    for model in MODELS:
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        row = model._default_manager.order_by("pk").last()
        found += [
            reverse(f"{name}_changelist"),
            reverse(f"{name}_changelist") + "?q=play",
            reverse(f"{name}_changelist") + "?all=&o=1.-2.3",
            reverse(f"{name}_add"),
            *(reverse(f"{name}_{page}", args=[row.pk]) for page in ("change", "history", "delete")),
        ]
        for field in model._meta.fields:
            if field.is_relation:
                query = (
                    f"app_label=chat&model_name={model._meta.model_name}&field_name={field.name}"
                )
                found.append(f"{reverse('admin:autocomplete')}?{query}&term=")
    found.append(reverse("admin:accounts_user_delete", args=[run.user_id]))
    found.append(reverse("admin:accounts_user_history", args=[run.user_id]))
    return found


def test_no_page_shows_text_without_the_permission(run, clerk):
    statuses = set()
    for address in addresses(run):
        response = clerk.get(address, follow=True)
        statuses.add(response.status_code)
        assert WORD not in response.content.decode(), address
    assert 200 in statuses
    deleted = clerk.post(reverse("admin:accounts_user_changelist"), {
        "action": "delete_selected", "_selected_action": [run.user_id],
    })  # fmt: skip
    assert WORD not in deleted.content.decode()


def test_text_is_shown_with_the_permission(run, client):
    staff = staff_with(client)
    for row in (run, run.conversation, run.message, MessagePart.objects.get()):
        url = reverse(f"admin:chat_{row._meta.model_name}_change", args=[row.pk])
        assert WORD in staff.get(url).content.decode(), url
    changelist = reverse("admin:chat_conversation_changelist")
    assert WORD in staff.get(changelist, {"q": WORD}).content.decode()
    assert staff.get(changelist, {"title__contains": WORD}).status_code == 200


@pytest.mark.parametrize(("model", "fields"), [(Conversation, ("title",)), (Run, FIELDS)])
def test_text_cannot_be_probed_without_the_permission(run, clerk, model, fields):
    """By a search, or a filter in the address, that finds a row or not."""
    changelist = reverse(f"admin:chat_{model._meta.model_name}_changelist")
    row = str(model.objects.get().pk)
    assert row in clerk.get(changelist).content.decode()
    assert row not in clerk.get(changelist, {"q": WORD}).content.decode()
    for field in fields:
        for lookup in ("", "__contains", "__startswith", "__regex", "__gt"):
            for value in (WORD, f"A {WORD}"):
                response = clerk.get(changelist, {f"{field}{lookup}": value}, follow=True)
                assert response.status_code in (400, 403), (field, lookup)
    for relation in ("message__text", "conversation__title", "messages__text", "runs__prefix"):
        response = clerk.get(changelist, {f"{relation}__contains": WORD}, follow=True)
        assert response.status_code == 400 or "?e=1" in str(response.redirect_chain), relation


def test_every_text_column_is_guarded():
    """A new column of text in these tables must be named in `text_fields`, or hold none."""
    harmless = {
        *("client_id", "status", "worker", "finish_reason"),
        *("error_code", "error_cause", "model_snapshot", "reasoning_effort", "titled_by"),
    }
    for model in (Conversation, Run):
        guarded = set(vars(type(admin.site.get_model_admin(model)))["text_fields"])
        kinds = {"CharField", "TextField", "JSONField"}
        columns = {f.name for f in model._meta.fields if f.get_internal_type() in kinds}
        assert columns - harmless == guarded
