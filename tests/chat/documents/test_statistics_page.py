"""The page of a chat's statistics."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from django.urls import reverse

from chat.documents.figures import charts, names
from chat.documents.models import Document
from chat.documents.parsing import whatsapp
from chat.documents.statistics.chats import of_chat
from tests.support.chat_exports import large
from tests.support.people import owner, stranger

__all__ = ["owner", "stranger"]

pytestmark = pytest.mark.django_db


@pytest.fixture
def document(owner, tmp_path: Path) -> Document:
    path = tmp_path / "chat.txt"
    path.write_text(large(400) + "01.09.24, 10:00 - <b>Zed</b>: first\n")
    made: Document = Document.objects.create(
        owner=owner,
        name="Holiday <chat>",
        format="whatsapp",
        kind="chat",
        status="ready",
        size=1,
        sha256=uuid4().hex,
        file="x",
        statistics=of_chat(whatsapp.parse(str(path), {})),
    )
    return made


def page(client, document: Document, query: str = ""):
    return client.get(reverse("chat:document_statistics", args=[document.pk]) + query)


def test_page_shows_figures_charts_and_tables(client, owner, document):
    client.force_login(owner)
    text = page(client, document).content.decode()
    assert "401" in text
    assert "&lt;b&gt;Zed&lt;/b&gt;" in text
    assert "<b>Zed" not in text
    assert text.count("<svg") > 5
    for heading in ("Messages over time", "Hours and weekdays", "People", "Websites", "Records"):
        assert heading in text
    assert "example.org" in text
    shown = text.split("<main")[1].lower().replace("first message", "").replace("first names", "")
    assert "first" not in shown.replace("first_names", "")


@pytest.mark.parametrize(("mode", "shown"), [("initials", "A."), ("letters", "Person A")])
def test_names_can_be_hidden(client, owner, document, mode, shown):
    client.force_login(owner)
    text = page(client, document, f"?names={mode}").content.decode().split("<main")[1]
    assert shown in text
    assert "Anna" not in text
    assert "Zed" not in text


def test_only_the_owner_sees_the_page(client, stranger, document):
    client.force_login(stranger)
    assert page(client, document).status_code == 404


def test_document_without_statistics_says_so(client, owner, document):
    client.force_login(owner)
    Document.objects.filter(pk=document.pk).update(statistics=None, status="parsing")
    assert "is being read" in page(client, document).content.decode()
    Document.objects.filter(pk=document.pk).update(kind="text")
    assert "Only chats" in page(client, document).content.decode()


def test_empty_chat_and_equal_initials_are_shown(client, owner, document):
    client.force_login(owner)
    Document.objects.filter(pk=document.pk).update(statistics=of_chat([]))
    assert page(client, document).status_code == 200
    assert list(names.shown(["Anna B", "Ada Bo", "+49 1"], "initials").values()) == [
        *("A. B.", "A. B. 2", "?"),
    ]
    assert charts.bars([("a", "a", 3)]).scale == ["4", "2", "0"]
