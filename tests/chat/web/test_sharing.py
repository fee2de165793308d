"""Sharing: readers, public links, copies and lists, at the pages and at the socket."""

from __future__ import annotations

import io
import json

import pytest
from allauth.account.models import EmailAddress
from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.core import mail
from django.test import Client
from django.urls import reverse

from accounts.models import User
from chat import access, protocol
from chat.attachments import uploads
from chat.conversations import lifecycle, reports, sharing
from chat.errors import ChatError
from chat.models import (
    Attachment,
    Conversation,
    ConversationShare,
    Message,
    MessageAttachment,
    MessagePart,
    PublicLink,
    Report,
)
from chat.runs.delete import delete
from chat.transfer import documents
from tests.support.people import assistant, conversation, owner, stranger
from tests.support.visitor import without_limits

__all__ = ["assistant", "conversation", "owner", "stranger"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

READER = "stranger@example.org"


@pytest.fixture(autouse=True)
def allowed(settings):
    settings.SHARE_WITH_USERS = settings.SHARE_BY_LINK = True
    settings.SITE_URL = "https://chat.example.org"
    without_limits(settings)


@pytest.fixture
def chat(conversation: Conversation) -> Conversation:
    """A chat with instructions, reasoning, and a branch that is not shown."""
    question = Message.objects.create(conversation=conversation, role="user", text="Question 1")
    Message.objects.create(
        conversation=conversation, parent=question, role="assistant", text="Hidden branch"
    )
    reply = Message.objects.create(
        conversation=conversation,
        parent=question,
        role="assistant",
        text="Answer 1",
        html="<p>Answer 1</p>",
    )
    MessagePart.objects.create(
        message=reply, position=0, kind="reasoning", data={"text": "Secret thoughts"}
    )
    conversation.title, conversation.leaf = "Our plan", reply
    conversation.system_prompt = "Secret instructions"
    conversation.save()
    return conversation


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def verify(user: User, email: str = READER) -> EmailAddress:
    return EmailAddress.objects.create(user=user, email=email, verified=True, primary=True)


def add_turn(chat: Conversation, text: str) -> Message:
    question = Message.objects.create(
        conversation=chat, parent=chat.leaf, role="user", text=f"Question {text}"
    )
    chat.leaf = Message.objects.create(
        conversation=chat, parent=question, role="assistant", text=text, html=f"<p>{text}</p>"
    )
    chat.save()
    return chat.leaf


def test_reader_reads_live_chat_and_nothing_else(owner, stranger, chat, settings):
    """An address without an account, which is bound when it is verified, and not when it is claimed."""
    page = chat.get_absolute_url()
    mine, theirs = signed_in(owner), signed_in(stranger)
    answer = mine.post(
        reverse("chat:share", args=[chat.pk]),
        {"action": "share", "email": f" {READER.upper()} "},
        follow=True,
    )
    assert f"{READER}" in answer.content.decode()
    [invitation] = mail.outbox
    assert invitation.to == [READER]
    assert f"https://chat.example.org{page}" in invitation.body
    assert "Our plan" not in invitation.body + invitation.subject
    EmailAddress.objects.create(user=stranger, email=READER, verified=False, primary=True)
    assert theirs.get(page).status_code == 404
    address = EmailAddress.objects.get(user=stranger)
    address.verified = True
    address.save()
    assert "Our plan" in theirs.get(reverse("chat:shared_with_me")).content.decode()
    html = theirs.get(page).content.decode()
    for shown in ("Question 1", "Answer 1", "owner@example.org", "Continue as my own copy"):
        assert shown in html
    main = html.split("<main")[1].split("</main")[0]
    for hidden in ("Hidden branch", "Secret", "<textarea", "data-cost", "regenerate", "/edit/"):
        assert hidden not in main
    assert main.count("<form") == 1
    copy = theirs.post(reverse("chat:copy_shared", args=[chat.pk]), {"client_id": "two"})
    [copied] = Conversation.objects.filter(owner=stranger)
    assert copy["Location"] == copied.get_absolute_url()
    assert copied.messages.count() == 2
    add_turn(chat, "Answer 2")
    assert "Answer 2" in theirs.get(page).content.decode()
    # The site, the account of the owner and the owner each can end it.
    settings.SHARE_WITH_USERS = False
    assert theirs.get(page).status_code == 404
    settings.SHARE_WITH_USERS = True
    User.objects.filter(pk=owner.pk).update(is_active=False)
    assert theirs.get(page).status_code == 404
    User.objects.filter(pk=owner.pk).update(is_active=True)
    assert theirs.get(page).status_code == 200
    [share] = ConversationShare.objects.all()
    mine.post(reverse("chat:shared_by_me"), {"action": "unshare", "id": str(share.pk)})
    assert theirs.get(page).status_code == 404
    listed = theirs.get(reverse("chat:shared_with_me")).content.decode().split("<main")[1]
    assert chat.get_absolute_url() not in listed


@pytest.mark.parametrize(
    ("email", "words"),
    [("nobody", "valid e-mail address"), ("OWNER@example.org", "your own address")],
)
def test_share_with_bad_address_is_refused(owner, chat, email, words):
    form = {"action": "share", "email": email}
    answer = signed_in(owner).post(reverse("chat:share", args=[chat.pk]), form)
    assert answer.status_code == 400
    assert words in answer.content.decode()
    assert (ConversationShare.objects.count(), len(mail.outbox)) == (0, 0)


@pytest.mark.parametrize(
    ("name", "sender"),
    [("Ada Löwe", "Ada Löwe (owner@example.org)"), ("see evil.example", "owner@example.org")],
)
def test_mail_about_share_names_its_sender(owner, stranger, chat, name, sender):
    verify(stranger)
    User.objects.filter(pk=owner.pk).update(display_name=name)
    sharing.share(user=User.objects.get(pk=owner.pk), conversation_id=chat.pk, email=READER)
    [sent] = mail.outbox
    assert sent.subject == f"{settings.SITE_NAME}: A chat from {sender}"
    assert f"{sender} shared a chat with you" in sent.body
    for page in (chat.get_absolute_url(), reverse("chat:shared_with_me")):
        html = signed_in(stranger).get(page).content.decode()
        assert f"<bdi>{name} (owner@example.org)</bdi>" in html
    ended = signed_in(stranger).get(reverse("chat:shared_with_me"), {"ended": ""})
    assert "no longer shared with you" in ended.content.decode()


def test_repeated_share_sends_one_mail(owner, chat):
    for _ in range(2):
        sharing.share(user=owner, conversation_id=chat.pk, email=READER)
    assert (ConversationShare.objects.count(), len(mail.outbox)) == (1, 1)


def test_snapshot_shows_its_path_alone(owner, stranger, chat):
    mine, visitor = signed_in(owner), Client()
    form = {"action": "publish", "days": "7", "name": "Ada"}
    answer = mine.post(reverse("chat:share", args=[chat.pk]), form, follow=True)
    [link] = PublicLink.objects.all()
    assert len(link.token) >= 32
    assert link.token not in str(link.pk)
    assert link.get_absolute_url() in answer.content.decode()
    add_turn(chat, "Answer 2")
    Conversation.objects.filter(pk=chat.pk).update(title="A later title")
    answer = visitor.get(link.get_absolute_url())
    html = answer.content.decode()
    for shown in ("Our plan", "Question 1", "Answer 1", "Ada", 'property="og:title"'):
        assert shown in html
    for hidden in (
        "Hidden branch",
        "Answer 2",
        "A later title",
        "Secret",
        "owner@",
        "<script",
        "<form",
        str(chat.pk),
    ):
        assert hidden not in html
    assert "noindex" in answer["X-Robots-Tag"]
    assert answer["Referrer-Policy"] == "same-origin"
    assert answer["Cache-Control"] == "private, no-store"
    assert not answer.cookies
    # A copy of the same path, without instructions, for a signed-in visitor, once.
    theirs = signed_in(stranger)
    assert "Continue as my own copy" in theirs.get(link.get_absolute_url()).content.decode()
    copies = {
        theirs.post(reverse("chat:copy_public", args=[link.token]), {"client_id": "one"})[
            "Location"
        ]
        for _ in range(2)
    }
    [copy] = Conversation.objects.filter(owner=stranger)
    assert copies == {copy.get_absolute_url()}
    assert [one.text for one in copy.messages.all()] == ["Question 1", "Answer 1"]
    assert (copy.title, copy.system_prompt) == ("Our plan (copy)", "")
    assert not MessagePart.objects.filter(message__conversation=copy).exists()
    PublicLink.objects.update(expires_at=link.created_at)
    assert visitor.get(link.get_absolute_url()).status_code == 404
    assert theirs.post(reverse("chat:copy_public", args=[link.token])).status_code == 404


def test_live_link_follows_until_it_ends(owner, chat, settings):
    link = sharing.publish(user=owner, conversation_id=chat.pk, live=True, shows_reasoning=True)
    visitor, page = Client(), link.get_absolute_url()
    add_turn(chat, "Answer 2")
    html = visitor.get(page).content.decode()
    assert "Answer 2" in html
    assert "Secret thoughts" in html
    assert "Secret instructions" not in html
    settings.SHARE_BY_LINK = False
    assert visitor.get(page).status_code == 404
    settings.SHARE_BY_LINK = True
    signed_in(owner).post(
        reverse("chat:share", args=[chat.pk]), {"action": "end", "id": str(link.pk)}
    )
    assert visitor.get(page).status_code == 404


def test_export_names_readers_and_links(owner, chat):
    sharing.share(user=owner, conversation_id=chat.pk, email=READER)
    link = sharing.publish(user=owner, conversation_id=chat.pk)
    text, _next = documents.json(chat)(0)
    exported = json.loads(text)
    assert exported["shared_with"] == [READER]
    assert [one["live"] for one in exported["public_links"]] == [False]
    assert link.token not in str(exported)


def test_visitors_report_link_and_staff_end_it(owner, stranger, chat, monkeypatch):
    monkeypatch.setattr(reports, "MOST_OF_VISITORS", 2)
    link = sharing.publish(user=owner, conversation_id=chat.pk)
    visitor, theirs = Client(), signed_in(stranger)
    form = reverse("chat:report_public", args=[link.token])
    assert form in visitor.get(link.get_absolute_url()).content.decode()
    assert "noindex" in visitor.get(form)["X-Robots-Tag"]
    wrong = visitor.post(form, {"reason": "", "text": "My words"})
    assert wrong.status_code == 400
    assert "My words" in wrong.content.decode()
    for client in (visitor, visitor, visitor, theirs, theirs):  # visitors' reports are bounded
        sent = client.post(form, {"reason": "privacy", "text": "Zanzibar"}, follow=True)
        assert "Thank you" in sent.content.decode()
    assert [one.user for one in Report.objects.order_by("pk")] == [None, None, stranger]
    assert {one.conversation for one in Report.objects.all()} == {chat}
    boss = User.objects.create_user("boss@example.org", is_staff=True)
    boss.user_permissions.set(
        Permission.objects.filter(codename__in=["change_report", "delete_publiclink"])
    )
    staff, queue = signed_in(boss), reverse("admin:chat_report_changelist")
    listed = staff.get(queue).content.decode()
    assert "Shared link" in listed
    assert "a visitor" in listed
    one = Report.objects.latest("pk")
    page = reverse("admin:chat_report_change", args=[one.pk])
    assert "Our plan" not in staff.get(page).content.decode()
    staff.post(page, {"note": "", "step": "end_links"})
    dead = visitor.get(link.get_absolute_url())
    assert dead.status_code == 404
    assert "is not shared" in dead.content.decode()
    assert "noindex" in dead["X-Robots-Tag"]
    assert visitor.get(form).status_code == 404
    assert "Ended" in staff.get(page).content.decode()
    assert LogEntry.objects.filter(user=boss, object_id=one.pk).exists()
    # The report outlives the chat, as it does a reported message.
    Conversation.objects.filter(pk=chat.pk).delete()
    assert Report.objects.filter(link=None, conversation=None).count() == 3


def test_files_open_by_links_that_show_them(owner, stranger, chat, settings, tmp_path):
    settings.PRIVATE_ROOT = tmp_path
    snapshot = sharing.publish(user=owner, conversation_id=chat.pk)
    live = sharing.publish(user=owner, conversation_id=chat.pk, live=True)
    file = uploads.add(user=owner, name="plan.txt", size=8, file=io.BytesIO(b"The plan"))
    question = add_turn(chat, "Answer 2").parent
    assert question is not None
    question.attached = [file.snapshot]
    question.save()
    MessageAttachment.objects.create(message=question, attachment=file)
    visitor, file_id = Client(), file.pk

    def status(link: PublicLink) -> int:
        return visitor.get(reverse("chat:public_file", args=[link.token, file_id])).status_code

    assert (status(snapshot), status(live)) == (404, 200)
    assert visitor.get(reverse("chat:attachment", args=[file.pk])).status_code == 302
    live = access.public_link(live.token)  # as the page reads it
    # A copy has files of its own, which count, and stay when the original is deleted.
    settings.ATTACHMENT_USER_BYTES = 7
    with pytest.raises(ChatError, match="storage_full"):
        sharing.copy_public(user=stranger, link=live, client_id="full")
    assert Conversation.objects.filter(owner=stranger).count() == 0
    settings.ATTACHMENT_USER_BYTES = 8
    copy = sharing.copy_public(user=stranger, link=live, client_id="one")
    [mine] = Attachment.objects.filter(owner=stranger)
    [attached] = [one.attached for one in copy.messages.all() if one.attached]
    assert attached[0]["id"] == str(mine.pk)
    file.delete()
    kept = signed_in(stranger).get(reverse("chat:attachment", args=[mine.pk]))
    assert kept.content == b"The plan"
    assert status(live) == 404


def test_deletion_of_a_chat_ends_its_shares(owner, stranger, chat):
    verify(stranger)
    sharing.share(user=owner, conversation_id=chat.pk, email=READER)
    link = sharing.publish(user=owner, conversation_id=chat.pk)
    _, at = delete(user=owner, conversation_ids=[chat.pk])
    lifecycle.undo(user=owner, action="delete", at=at)
    assert signed_in(owner).get(chat.get_absolute_url()).status_code == 200
    assert signed_in(stranger).get(chat.get_absolute_url()).status_code == 404
    assert Client().get(link.get_absolute_url()).status_code == 404


def test_temporary_chat_cannot_be_shared(owner, chat):
    Conversation.objects.filter(pk=chat.pk).update(temporary=True)
    for act in (
        lambda: sharing.share(user=owner, conversation_id=chat.pk, email=READER),
        lambda: sharing.publish(user=owner, conversation_id=chat.pk),
    ):
        with pytest.raises(ChatError, match="temporary chat cannot be shared"):
            act()


def test_others_cannot_change_shares(owner, stranger, chat):
    verify(stranger)
    share = sharing.share(user=owner, conversation_id=chat.pk, email=READER)
    link = sharing.publish(user=owner, conversation_id=chat.pk)
    theirs = signed_in(stranger)
    address = reverse("chat:share", args=[chat.pk])
    assert theirs.get(address).status_code == 403
    assert theirs.post(address, {"action": "publish"}).status_code == 403
    for action, id in (("unshare", share.pk), ("end", link.pk)):
        theirs.post(reverse("chat:shared_by_me"), {"action": action, "id": str(id)})
    assert (ConversationShare.objects.count(), PublicLink.objects.count()) == (1, 1)


@pytest.mark.parametrize("size", [5, 50])
def test_lists_need_the_same_queries_whatever_length(
    owner, stranger, assistant, size, django_assert_max_num_queries
):
    verify(stranger)
    for number in range(size):
        one = Conversation.objects.create(
            owner=owner, assistant=assistant, updated_at="2026-11-30T00:00Z", title=f"C{number}"
        )
        ConversationShare.objects.create(conversation=one, owner=owner, email=READER, user=stranger)
        PublicLink.objects.create(conversation=one, owner=owner)
    with django_assert_max_num_queries(3):
        assert len(sharing.shared_with(stranger)[0]) == size
        assert len(sharing.shares_of(owner)[0]) == size
        assert len(sharing.links_of(owner)[0]) == size


def test_reader_receives_no_cost_and_no_reasoning():
    run = "018f0000-0000-7000-8000-000000000000"
    end = {
        "type": "run.done", "run": run, "attempt": 1, "seq": 9, "conversation": run, "reply": run,
        "text": "All", "html": "<b>1.2 credits</b>", "cost": 12, "finish_reason": "stop",
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }  # fmt: skip
    shown = protocol.for_reader(json.dumps(end).encode())
    assert shown is not None
    assert b"cost" not in shown
    assert b"usage" not in shown
    assert b"credits" not in shown
    thought = b'{"type":"reasoning.delta","run":"%s","attempt":1,"seq":2,"text":"Secret"}'
    shown = protocol.for_reader(thought % run.encode())
    assert shown is not None
    assert b"Secret" not in shown
    assert protocol.for_reader(b'{"type":"run.waiting","run":"%s","most":3}' % run.encode()) is None
