"""A user with a row in every table that can hold personal data, each with WORD in its texts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from allauth.account.models import EmailAddress, EmailConfirmation
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount, SocialToken
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Group, Permission
from django.core.mail import send_mail
from django.db import connection, models
from django.test import Client
from django.utils import timezone

from accounts import api_keys
from accounts.models import Consent, Invitation, InvitationUse, LegalDocument, SignupGrant, User
from accounts.signup import hash_of
from billing.ledger import expiry
from chat.conversations import search_index
from chat.documents.models import (
    Block,
    Chunk,
    ConversationDocument,
    Dataset,
    Document,
    DocumentIndex,
    StatisticsLink,
    TableResult,
)
from chat.documents.retrieval import words
from chat.insights.models import Category, Insight, InsightJob
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
    MessageAttachment,
    MessageFeedback,
    MessagePart,
    NextMessage,
    Project,
    Prompt,
    PublicLink,
    PushSubscription,
    Report,
    Run,
    UserNote,
    Webhook,
    WebhookDelivery,
)
from chat.tools.models import McpConnection, McpServer, RunStep
from chatproject.lib import personal_data, private_files
from chatproject.lib.personal_data import PersonalTable
from tests.support import billing_rows
from tests.support.conversations import add_turns, begin
from tests.support.files import attach

WORD = "xylophone"
ADDRESS = "leaving.person@example.org"

# Columns with a rule of the database, or that the software chooses.
FIXED = {
    *("status", "currency", "provider", "model", "language", "slug", "client_id", "kind", "seq"),
    *(
        "file",
        "thumbnail",
        "file_name",
        "sha256",
        "content_type",
        "state",
        "role",
        "rating",
        "code",
    ),
    *("created_by", "step"),
    *("hash", "source", "period", "set_by", "provider_model", "theme", "text_size", "key"),
    *("package_name", "tax_rate", "customer_ref", "payment_method_ref", "prefix", "message_id"),
}


def make(assistant: Assistant, other: User) -> User:
    """Create the user. A chat of `other` has the user's shared assistant."""
    now = timezone.now()
    account = billing_rows.make()
    user = User.objects.get(pk=account.user_id)
    user.email, user.first_name = ADDRESS, WORD
    user.set_password("correct horse battery")
    user.save()
    expiry.release_holds(now + timedelta(hours=1))
    _make_account(user, other)
    chat = _make_chats(user, assistant, now)
    own = Assistant.objects.create(
        slug="own", name=WORD, system_prompt=WORD, model=assistant.model, owner=user, personal=True
    )
    theirs = begin(other, own)
    for bound, address in ((user, ADDRESS), (None, f"2.{ADDRESS}")):
        ConversationShare.objects.create(
            conversation=theirs, owner=other, email=address, user=bound
        )
    EmailAddress.objects.create(user=user, email=f"2.{ADDRESS}")
    _make_files(user, chat, now)
    for row in (chat, user, account):
        LogEntry.objects.log_actions(other.pk, [row], CHANGE, change_message=f"{WORD} of {ADDRESS}")
    for table in personal_data.tables():
        _mark(table, user)
    with connection.cursor() as cursor:  # of records that are never changed
        cursor.execute("SET session_replication_role = replica")
        cursor.execute("UPDATE billing_auditrecord SET target = 'account of ' || %s", [ADDRESS])
        cursor.execute("UPDATE billing_usagerecord SET assistant = %s", [WORD])
        cursor.execute("UPDATE billing_dailyusage SET assistant = %s", [WORD])
        cursor.execute("SET session_replication_role = DEFAULT")
    return User.objects.get(pk=user.pk)


def _make_account(user: User, other: User) -> None:
    SignupGrant.objects.create(user=user, address_hash=hash_of(ADDRESS))
    terms = LegalDocument.objects.create(kind="terms", language="en", version=1, text="Hello")
    Consent.objects.create(user=user, kind="terms", version=1, document=terms)
    invitation = Invitation.objects.create(email=ADDRESS, expires_at=timezone.now())
    InvitationUse.objects.create(user=user, invitation=invitation)
    api_keys.create(user, api_keys.Terms(name=WORD))
    address = EmailAddress.objects.create(user=user, email=ADDRESS, verified=True, primary=True)
    EmailConfirmation.objects.create(email_address=address, key="k1")
    Authenticator.objects.create(user=user, type="totp", data={"secret": "", "name": WORD})
    connected = SocialAccount.objects.create(
        user=user, provider="oidc", uid=WORD, extra_data={"email": ADDRESS, "name": WORD}
    )
    SocialToken.objects.create(account=connected, token=WORD)  # none is stored by the site
    user.groups.add(Group.objects.create(name="Readers"))
    user.user_permissions.add(Permission.objects.all()[0])
    Client().force_login(user)
    LogEntry.objects.log_actions(user.pk, [other], CHANGE, change_message="Read")
    send_mail(WORD, WORD, None, [ADDRESS])


def _make_chats(user: User, assistant: Assistant, now: Any) -> Conversation:
    chat = begin(user, assistant, title=WORD)
    messages = add_turns(user, chat, 2)
    reply = messages[-1]
    MessagePart.objects.create(message=reply, position=0, kind="reasoning", data={"text": WORD})
    MessageFeedback.objects.create(message=reply, user=user, rating="bad", text=WORD)
    Report.objects.create(message=reply, user=user, reason="other", text=WORD)
    call = Run.objects.filter(conversation=chat).latest("pk")
    ApiCall.objects.create(run=call, conversation=chat, request=WORD, created_at=timezone.now())
    RunStep.objects.create(
        run=call, number=1, request=1, attempt=1, kind="call", status="done", result=WORD
    )
    PublicLink.objects.create(conversation=chat, owner=user, title=WORD)
    ConversationShare.objects.create(conversation=chat, owner=user, email="reader@example.org")
    IdempotencyKey.objects.create(user=user, key=WORD, digest="0" * 64)
    Draft.objects.create(user=user, conversation=chat, text=WORD, edited_at=now)
    NextMessage.objects.create(conversation=chat, state="paused", text=WORD, client_id="n")
    ImportedChat.objects.create(
        owner=user, source="chatgpt", source_id=WORD, digest="d", conversation=chat
    )
    search_index.add([(one.pk, WORD) for one in messages])
    Prompt.objects.create(owner=user, title=WORD, text=WORD)
    Project.objects.create(owner=user, name=WORD)
    PushSubscription.objects.create(
        user=user, endpoint=f"https://push.example.org/{WORD}", p256dh="p", auth="a",
        session_key="s", device="Firefox",
    )  # fmt: skip
    webhook = Webhook.objects.create(
        owner=user, name=WORD, url=f"https://example.org/{WORD}", host="example.org", secret="s"
    )
    WebhookDelivery.objects.create(
        webhook=webhook, event="ping", body="{}", due_at=now, created_at=now
    )
    ChatPreference.objects.create(user=user, model=assistant.model)
    UserNote.objects.create(user=user, text=WORD, created_by="assistant", message=reply)
    server = McpServer.objects.create(name="Server", slug="server", url="https://example.org/mcp")
    McpConnection.objects.create(server=server, user=user, asked_at=now)
    made = Announcement.objects.create(text="Hello")
    AnnouncementDismissal.objects.create(announcement=made, user=user)
    return chat


def _make_files(user: User, chat: Conversation, now: Any) -> None:
    file = attach(user, f"{WORD}\n".encode(), f"{WORD}.txt")
    attach(user)
    MessageAttachment.objects.create(message=chat.messages.all()[0], attachment=file)
    Attachment.objects.filter(pk=file.pk).update(expires_at=None)
    document = Document.objects.create(
        owner=user, name=WORD, format="text", kind="text", size=9, sha256="0" * 64, status="ready",
        file=private_files.store([WORD.encode()], "documents"),
    )  # fmt: skip
    Block.objects.create(document=document, position=0, kind="paragraph", text=WORD)
    ConversationDocument.objects.create(conversation=chat, document=document)
    StatisticsLink.objects.create(document=document, owner=user, title=WORD, language="en")
    DocumentIndex.objects.create(document=document, version=1, chunks=1)
    words.insert(document.pk, user.pk, [Chunk(number=0, first=0, last=0, text=WORD)])
    category = Category.objects.create(slug="leaver", name="Leaver", description="All", price=1)
    job = InsightJob.objects.create(
        owner=user, document=document, category=category, language="en", price=1, total=1
    )
    Insight.objects.create(
        job=job, key="one", name="One", position=0, prompt="Hm", status="done", schema={},
        data={"text": WORD},
    )  # fmt: skip
    Dataset.objects.create(
        document=document, file=private_files.store([WORD.encode()], "datasets"), size=9, tables=[]
    )
    TableResult.objects.create(conversation=chat, call="1", rows=1, content=WORD.encode())
    for kind in (ChatImport, ChatExport):
        kind._base_manager.create(
            owner=user, file=private_files.store([WORD.encode()]), size=9, status="done",
            beat_at=now, ended_at=now,
        )  # fmt: skip


def _mark(table: PersonalTable, user: User) -> None:
    """Put WORD into the texts of the user's rows that the purge deletes."""
    if not table.user or table.model == "accounts.AccountDeletion":  # which leaving makes
        return
    rows = table.of(user.pk)
    if table.user not in ("actor", "created_by"):
        assert rows.exists(), f"give the leaver of tests/support/leaver.py a row of {table.model}"
    if table.kept and table.model != "billing.Order":
        return
    texts = [
        field.name
        for field in table.kind._meta.concrete_fields
        if isinstance(field, (models.CharField, models.TextField))
        and not (field.choices or field.primary_key or field.unique or field.name in FIXED)
        and (field.max_length or 1_000) > len(WORD)
        and field.name != "client_key"
        and not isinstance(field, models.EmailField)
        and not field.name.startswith("provider_")
    ]
    rows.update(**dict.fromkeys(texts, WORD))
    if table.model == "chat.Run":
        Run.objects.filter(user=user).update(model_snapshot={"assistant": WORD})
