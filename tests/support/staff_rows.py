"""Rows in every table of the admin as long as those of a real site: names, addresses, amounts, errors."""

from __future__ import annotations

from typing import Any, get_args

from allauth.socialaccount.models import SocialAccount
from django.contrib import admin
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Group
from django.db import connection, models
from django.utils import timezone

from accounts import api_keys
from accounts.models import (
    AccountDeletion,
    Consent,
    Invitation,
    InvitationUse,
    LegalDocument,
    SignupGrant,
    User,
)
from billing.credits import MICRO
from billing.models import ModelPrice
from chat.documents.models import Document, StatisticsLink
from chat.insights.models import Category, Insight, InsightJob, InsightType
from chat.llm.errors import Cause
from chat.models import (
    Announcement,
    AnnouncementDismissal,
    ApiCall,
    Assistant,
    ChatExport,
    ChatImport,
    ChatPreference,
    ConversationShare,
    IdempotencyKey,
    LanguageModel,
    Message,
    MessageFeedback,
    MessagePart,
    ModerationRule,
    Prompt,
    Provider,
    PublicLink,
    Report,
    Run,
    UserNote,
    Webhook,
)
from chat.tools.models import McpConnection, McpServer, McpTool
from chatproject.lib.mail.models import OutgoingMail
from tests.support import billing_rows
from tests.support.conversations import begin

SENTENCE = (
    "Müller-Lüdenscheidt asked 北京市朝阳区 about Αθήνα, שלום and मुंबई after the outage; see "
    "https://status.example.org/incidents/2026-11-30T07-04-30Z/long-address-without-a-break"
)
VALUES = {
    "email": "wolfeschlegelsteinhausenbergerdorff.accounts-payable+{pk}@subsidiary.example.org",
    "first_name": "Żółć Αλέξανδρος วรรณพร",
    "last_name": "Wolfeschlegelsteinhausenbergerdorff 北京市朝阳区",
    "model": "openrouter/meta-llama/Llama-3.3-70B-Instruct-Turbo-Free:extended-{pk}",
    "provider_model": "openrouter/meta-llama/Llama-3.3-70B-Instruct-Turbo-Free:extended-{pk}",
    "base_url": "https://inference-gateway.europe-west4.example.org:8443/openai/deployments/{pk}/v1",
    "name": "Customer support, internationale Fassung für 北京 {pk}",
    "code": "WELCOME-BACK-OF-AUTUMN-{pk}",
    "slug": "customer-support-international-{pk}",
    "action": "change monthly spending limit",
    "error_code": "context_length_exceeded",
    "event_type": "customer.subscription.pending_update_applied",
}
# Texts of a form of their own, which no person types.
KEPT = {
    *("password", "key_variable", "encrypted_key", "encrypted_headers", "encrypted_proxy"),
    *("currency", "key", "series", "purpose", "username", "provider", "worker"),
}
SHORT = 20  # characters: columns that hold no more are left as they are
FACTOR = 12_345  # times as many credits, and as much money
TOKENS = 1_234_567


def make() -> User:
    """Fill every table of the admin; return a superuser."""
    boss = User.objects.create_superuser("boss@example.org", "correct horse battery")
    leaver = User.objects.create_user("leaver@example.org")
    AccountDeletion.objects.create(user=leaver, by=boss, due_at=timezone.now())
    account = billing_rows.make()
    user = User.objects.get(pk=account.user_id)
    SignupGrant.objects.get_or_create(user=user)
    api_keys.create(user, api_keys.Terms(name=SENTENCE[:60], limit_month=MICRO))
    terms = LegalDocument.objects.create(kind="terms", language="en", version=1, text=SENTENCE)
    SocialAccount.objects.create(user=user, provider="oidc", uid="7" * 191)
    Consent.objects.create(user=user, kind="terms", version=1, document=terms)
    invitation = Invitation.objects.create(
        email=user.email, expires_at=timezone.now(), note=SENTENCE[:90]
    )
    InvitationUse.objects.create(user=user, invitation=invitation)
    user.groups.add(Group.objects.create(name="Support"))
    _make_runs(user)
    OutgoingMail.objects.create(
        message_id="<1@example.org>", recipients="0" * 64, status="failed", due_at=timezone.now()
    )
    LogEntry.objects.log_actions(boss.pk, [user], CHANGE, change_message=SENTENCE)
    user.emailaddress_set.create(email=user.email)
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")  # records are never changed
    try:
        for model in admin.site._registry:
            if model._meta.managed:
                _lengthen(model)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SET session_replication_role = DEFAULT")
    boss.refresh_from_db()
    return boss


def _make_runs(user: User) -> None:
    """A run of each outcome, and of each cause of a failure."""
    model = LanguageModel.objects.create(
        name="Stub", provider_model="stub-model", context_tokens=8_000, max_output_tokens=2_000
    )
    model.provider = Provider.objects.create(
        name="Gateway", base_url="https://one.example.org/v1", notes=SENTENCE
    )
    model.save()
    assistant = Assistant.objects.create(slug="parley", name="Parley", model=model)
    ChatPreference.objects.create(user=user, model=model)
    now = timezone.now()
    announcement = Announcement.objects.create(text=SENTENCE, audience="staff", html=SENTENCE)
    AnnouncementDismissal.objects.create(announcement=announcement, user=user)
    ModerationRule.objects.create(name=SENTENCE[:100], words=SENTENCE)
    Prompt.objects.create(title=SENTENCE[:60], text=SENTENCE)
    ChatImport.objects.create(owner=user, size=123_456_789, error=SENTENCE[:300], beat_at=now)
    ChatExport.objects.create(owner=user, size=123_456_789, error=SENTENCE[:300], beat_at=now)
    outcomes: list[dict[str, Any]] = [
        {"status": status, "ended_at": None if status in Run.ACTIVE else now}
        for status in Run.Status
    ]
    outcomes += [
        {"status": "failed", "error_code": "provider_error", "error_cause": cause, "ended_at": now}
        for cause in get_args(Cause)
    ]
    for number, outcome in enumerate(outcomes):
        conversation = begin(user, assistant, title=SENTENCE[:100])
        message = Message.objects.create(conversation=conversation, role="assistant", text=SENTENCE)
        Report.objects.create(message=message, user=user, reason="other", text=SENTENCE)
        MessageFeedback.objects.create(
            message=message, user=user, model=model, rating="bad", reason="other", text=SENTENCE
        )
        MessagePart.objects.create(
            message=message, position=0, kind="reasoning", data={"text": SENTENCE}
        )
        Run.objects.create(
            conversation=conversation,
            message=message,
            user=user,
            client_id=f"long-{number}",
            assistant=assistant,
            model=model,
            provider=model.provider,
            prompt_tokens=TOKENS,
            completion_tokens=TOKENS,
            charged=MICRO,
            **outcome,
        )
    call = Run.objects.order_by("pk").last()
    assert call is not None
    ApiCall.objects.create(run=call, conversation=call.conversation, request="{}", created_at=now)
    IdempotencyKey.objects.create(user=call.user, key="key", digest="0" * 64)
    chat = call.conversation
    ConversationShare.objects.create(conversation=chat, owner=call.user, email="r@example.org")
    PublicLink.objects.create(conversation=chat, owner=call.user)
    UserNote.objects.create(user=user, text="A note", created_by="user")
    server = McpServer.objects.create(name="Server", slug="server", url="https://example.org/mcp")
    McpTool.objects.create(server=server, name="find")
    McpConnection.objects.create(server=server, user=user, asked_at=now)
    _make_insights(user, model)
    Webhook.objects.create(owner=user, name="Hook", url="https://example.org", host="example.org")


def _make_insights(user: User, model: LanguageModel) -> None:
    """A bought category of insights with its type, and a job of one insight."""
    document = Document.objects.create(
        owner=user, name="Minutes", format="text", kind="text", size=9, sha256="0" * 64,
        status="ready",
    )  # fmt: skip
    StatisticsLink.objects.create(document=document, owner=user, sections=["totals"], language="en")
    category = Category.objects.create(slug="minutes", name="Minutes", description="All", price=1)
    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    asked = InsightType.objects.create(
        category=category, key="one", name="One", prompt="Hm", schema=schema
    )
    job = InsightJob.objects.create(
        owner=user, document=document, category=category, model=model, language="en", price=1,
        total=1, delivered=1, charged=1, status="done", ended_at=timezone.now(),
    )  # fmt: skip
    Insight.objects.create(
        job=job, type=asked, key="one", name="One", position=0, prompt="Hm", schema=schema,
        status="done", data={"text": SENTENCE},
    )  # fmt: skip


def _lengthen(model: type[models.Model]) -> None:
    """Change the texts and amounts of a table's rows to long ones."""
    rows, columns = model._base_manager, model._meta.concrete_fields
    amounts = [
        field.name
        for field in columns
        if isinstance(field, models.BigIntegerField) and not field.primary_key
    ]
    if amounts and model is not ModelPrice:
        rows.update(**{name: models.F(name) * FACTOR for name in amounts})
    texts = [
        field
        for field in columns
        if isinstance(field, (models.CharField, models.TextField))
        and not (field.choices or field.primary_key or field.name in KEPT)
        and (field.max_length or 1_000) > SHORT
    ]
    for row in rows.filter() if texts else []:
        changed = {
            field.name: VALUES.get(field.name, f"{{pk}} {SENTENCE}").format(pk=row.pk)[
                : field.max_length
            ]
            for field in texts
        }
        rows.filter(pk=row.pk).update(**changed)
