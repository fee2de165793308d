"""The page of a passage, and the reply that leads to it."""

from __future__ import annotations

import pytest
from django.urls import reverse
from django.utils import timezone

from chat.documents.models import Document
from chat.models import Message, MessagePart
from chat.rendering.message import message_html
from tests.chat.documents.library import make_chat, make_text
from tests.support.conversations import begin

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def page_of(document: Document, first: int, last: int, query: str = "") -> str:
    return reverse("chat:passage", args=[document.pk, first, last]) + query


def test_passage_is_highlighted_in_its_surroundings(client, owner, assistant):
    client.force_login(owner)
    document = make_chat(owner, *((n, "Anna", f"Message {n}.") for n in range(40)))
    chat = begin(owner, assistant)
    answer = client.get(page_of(document, 20, 21, f"?chat={chat.pk}"))
    html = answer.content.decode()
    assert html.count("<mark>") == 2
    assert "<mark>Message 20.</mark>" in html
    assert "Message 12." in html
    assert "Message 11." not in html
    assert f'href="{chat.get_absolute_url()}"' in html
    assert client.get(page_of(document, 90, 91)).status_code == 404


def test_part_of_long_block_is_highlighted(client, owner):
    client.force_login(owner)
    text = "word " * 20_000
    document = make_text(owner, f"{text}needle {text}")
    html = client.get(page_of(document, 0, 0, "?start=100000&end=100006")).content.decode()
    assert "<mark>needle</mark>" in html
    assert len(html) < 60_000


def test_passage_of_deleted_document_is_explained(client, owner):
    client.force_login(owner)
    document = make_text(owner, "Words")
    Document.objects.update(deleted_at=timezone.now())
    answer = client.get(page_of(document, 0, 0))
    assert answer.status_code == 410
    assert "You have deleted this document" in answer.content.decode()


def test_reply_links_marks_and_lists_sources(owner, assistant):
    document = make_text(owner, "The rent is 480 euros.", name="lease.md")
    chat = begin(owner, assistant)
    reply = Message.objects.create(
        conversation=chat, role="assistant", text="480 euros [2].", html="<p>480 euros [2].</p>"
    )
    for number in (1, 2):
        MessagePart.objects.create(
            message=reply,
            position=number,
            kind="citation",
            data={
                "number": number, "document": str(document.pk), "name": "lease.md", "first": 0,
                "last": 0, "label": f"§ {number}", "excerpt": "The rent is",
            },
        )  # fmt: skip
    html = message_html(Message.objects.get(pk=reply.pk))
    assert f'<a class="cite" href="{page_of(document, 0, 0)}' in html
    assert html.count("sources-excerpt") == 1
    assert '<li value="2">' in html
