"""Public links to the statistics of a chat: made, shown, listed and ended."""

from __future__ import annotations

import io
from pathlib import Path
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from PIL import Image

from accounts.models import User
from accounts.privacy import leaving
from chat.documents import lifecycle, links
from chat.documents.figures import card, names
from chat.documents.models import Document, StatisticsLink
from chat.documents.parsing import whatsapp
from chat.documents.statistics.chats import of_chat
from chat.errors import ChatError
from chatproject.lib import languages
from tests.support.people import owner, stranger
from tests.support.visitor import without_limits

__all__ = ["owner", "stranger"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

CHAT = """\
[12.03.24, 10:15:33] Anna Zimmermann: Good morning, the harbour harbour!
[12.03.24, 10:16:01] Dr. Ben Yilmaz: Morning 🎉 https://zanzibar.example/page
[13.03.24, 10:16:01] +49 171 5550123: Who is this?
"""
ALL = ["totals", "time", "hours", "people", "words", "emojis", "links", "records"]


@pytest.fixture
def document(owner, settings, tmp_path) -> Document:
    settings.SHARE_BY_LINK = True
    without_limits(settings)
    return a_chat(owner, tmp_path)


def a_chat(owner: User, folder: Path) -> Document:
    path = folder / "chat.txt"
    path.write_text(CHAT)
    made: Document = Document.objects.create(
        owner=owner,
        name="Chat with Anna Zimmermann.txt",
        format="whatsapp",
        kind="chat",
        status="ready",
        size=1,
        sha256=uuid4().hex,
        file="x",
        statistics=of_chat(whatsapp.parse(str(path), {})),
    )
    return made


def share_page(document: Document) -> str:
    return reverse("chat:share_statistics", args=[document.pk])


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def publish(owner: User, document: Document, **others) -> StatisticsLink:
    values = {"sections": ALL, "names": "letters"} | others
    return links.publish(user=owner, document_id=document.pk, **values)


def test_visitor_sees_chosen_figures_and_no_names(owner, document):
    mine, visitor = signed_in(owner), Client()
    form = {"action": "publish", "sections": ["totals", "people"], "names": "letters", "days": "7"}
    html = mine.post(share_page(document), form, follow=True).content.decode()
    link = StatisticsLink.objects.get()
    assert len(link.token) >= 32
    assert link.get_absolute_url() in html
    answer = visitor.get(link.get_absolute_url())
    html = answer.content.decode()
    for shown in ("Person A", "Person C", "noindex", "Made with", "Statistics of a chat"):
        assert shown in html
    for hidden in (
        "Anna",
        "Zimmermann",
        "Ben",
        "5550123",
        "harbour",
        "zanzibar",
        "<script",
        "<form",
    ):
        assert hidden not in html
    assert "Messages over time" not in html
    assert "noindex" in answer["X-Robots-Tag"]
    assert answer["Referrer-Policy"] == "same-origin"
    assert answer["Cache-Control"] == "private, no-store"
    assert not answer.cookies
    listed = mine.get(reverse("chat:shared_by_me")).content.decode()
    assert link.get_absolute_url() in listed
    mine.post(reverse("chat:shared_by_me"), {"action": "end_statistics", "id": str(link.pk)})
    gone = visitor.get(link.get_absolute_url())
    assert gone.status_code == 404
    assert "is not shared" in gone.content.decode()
    assert "noindex" in gone["X-Robots-Tag"]


def test_first_names_hide_numbers_and_surnames(owner, document):
    link = publish(owner, document, names="first_names", title="Our year <3")
    html = Client().get(link.get_absolute_url()).content.decode()
    for shown in ("Anna", "Ben", "Person A", "Our year &lt;3"):
        assert shown in html
    for hidden in (
        "Zimmermann",
        "Yilmaz",
        "Dr.",
        "5550123",
        "Good morning",
        "Who is this",
        "/page",
    ):
        assert hidden not in html
    found = names.shown(["Meyer, Ida", "王小明", "a@example.org", "🌻 Lu"], "first_names")
    assert list(found.values()) == ["Ida", "Person B", "Person C", "Lu"]


def test_refused_form_says_why_and_keeps_it(owner, stranger, document, settings):
    form = {"action": "publish", "names": "initials", "days": "30", "title": "Kept title"}
    answer = signed_in(owner).post(share_page(document), form)
    html = answer.content.decode()
    assert answer.status_code == 400
    assert "Choose at least one" in html
    assert "Kept title" in html
    assert 'value="initials" selected' in html
    for wrong in ({"names": "names"}, {"days": 400}, {"title": "x" * 101}):
        with pytest.raises(ChatError):
            publish(owner, document, **wrong)
    settings.SHARE_BY_LINK = False
    with pytest.raises(ChatError, match="not_allowed"):
        publish(owner, document)
    assert "does not allow" in signed_in(owner).get(share_page(document)).content.decode()
    assert signed_in(stranger).get(share_page(document)).status_code == 404
    assert signed_in(stranger).post(share_page(document), form).status_code == 404
    assert not StatisticsLink.objects.exists()


def test_card_is_a_picture_without_names(owner, document):
    link = publish(owner, document)
    address = reverse("chat:statistics_card", args=[link.token])
    assert Client().get(address).status_code == 404
    assert address not in Client().get(link.get_absolute_url()).content.decode()
    links.draw_card(link.pk)
    answer = Client().get(address)
    assert answer["Content-Type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (1200, 630)
    assert address in Client().get(link.get_absolute_url()).content.decode()
    drawing = card.svg(link, document.statistics)
    assert "Anna" not in drawing
    assert ">3</text>" in drawing
    link.title = "W" * 90 + " & more"
    with languages.use("ar"):
        drawing = card.svg(link, document.statistics)
    assert 'text-anchor="end"' in drawing
    assert "…</text>" in drawing


def test_link_ends_with_what_it_shows(owner, document, settings, tmp_path):
    link = publish(owner, document)

    def is_shown() -> bool:
        return Client().get(link.get_absolute_url()).status_code == 200

    assert is_shown()
    settings.SHARE_BY_LINK = False
    assert not is_shown()
    settings.SHARE_BY_LINK = True
    User.objects.filter(pk=owner.pk).update(is_active=False)
    assert not is_shown()
    User.objects.filter(pk=owner.pk).update(is_active=True)
    assert is_shown()
    StatisticsLink.objects.update(expires_at=timezone.now())
    assert not is_shown()
    StatisticsLink.objects.update(expires_at=None)
    _, at = lifecycle.delete(user=owner, document_id=document.pk)
    assert not is_shown()
    lifecycle.undo_delete(user=owner, at=at)
    assert not is_shown()
    assert not StatisticsLink.objects.exists()
    link = publish(owner, document)
    leaving.request(owner)
    assert not is_shown()
    assert not StatisticsLink.objects.exists()


def test_staff_end_links_without_seeing_them(owner, document):
    link = publish(owner, document, title="Zanzibar")
    boss = User.objects.create_user("boss@example.org", is_staff=True)
    boss.user_permissions.set(Permission.objects.filter(codename__endswith="_statisticslink"))
    staff, table = signed_in(boss), reverse("admin:documents_statisticslink_changelist")
    page = reverse("admin:documents_statisticslink_change", args=[link.pk])
    for address in (table, page):
        html = staff.get(address).content.decode()
        assert "owner@example.org" in html
        assert "Zanzibar" not in html
        assert link.token not in html
    staff.post(table, {"action": "end", "_selected_action": [str(link.pk)]})
    assert Client().get(link.get_absolute_url()).status_code == 404
