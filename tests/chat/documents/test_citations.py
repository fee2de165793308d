"""What a reply from documents keeps: its sources on paper, in exports, for readers and in copies."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from chat.conversations import sharing
from chat.models import Conversation, Message, MessagePart, PublicLink
from chat.rendering.message import message_html
from tests.chat.documents.library import make_text
from tests.support.conversations import add_turns
from tests.support.tables import chart_in

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

HTML = '<div data-tool="1"></div><p>480 euros [1].</p>'


@pytest.fixture
def chat(owner, conversation: Conversation) -> Conversation:
    """A chat whose reply cites a passage of a document, and has a chart."""
    document = make_text(owner, "The rent is 480 euros.", name="lease_2024.md")
    *_asked, reply = add_turns(owner, conversation, 1)
    Message.objects.filter(pk=reply.pk).update(
        text="480 euros [1].",
        html=HTML,
        attached=[{"tool": "search", "memory": "The whole lease", "untrusted": True}],
    )
    common = {
        "document": str(document.pk), "name": document.name, "label": "Rent", "last": 0,
        "first": 0, "call": "1",
    }  # fmt: skip
    add_part(reply, 0, "tool", call_of("1", result="The whole lease"))
    add_part(reply, 1, "citation", common | {"number": 1, "excerpt": "The rent is 480"})
    add_part(reply, 2, "citation", common | {"number": 2, "excerpt": "Not cited"})
    chart_in(reply, "Costs [1]")
    return conversation


def add_part(reply: Message, position: int, kind: str, data: dict[str, Any]) -> None:
    MessagePart.objects.create(message=reply, position=position, kind=kind, data=data)


def call_of(number: str, **fields: Any) -> dict[str, Any]:
    """Return the data of a finished search."""
    return {
        "call": number, "name": "search_documents", "title": "Search in documents", "at": 0,
        "arguments": {"query": "rent"}, "status": "done", "summary": "2 passages",
        "memory": "The whole", "seconds": 0.1, **fields,
    }  # fmt: skip


def reply_of(chat: Conversation) -> Message:
    return chat.messages.get(role="assistant")


def body(client: Client, address: str) -> str:
    response: Any = client.get(address)
    assert response.status_code == 200
    if not response.streaming:
        return str(response.content.decode())

    async def read() -> bytes:
        return b"".join([part async for part in response])

    return asyncio.run(read()).decode()


def test_mark_leads_to_passage_and_back(client, owner, chat):
    client.force_login(owner)
    html = message_html(reply_of(chat))
    assert html.count('class="cite"') == 1
    address = html.partition('class="cite" href="')[2].partition('"')[0].replace("&amp;", "&")
    assert address.endswith(f"?chat={chat.pk}#passage")
    assert "Costs [1]" in html  # the title of a chart is no mark
    page = body(client, address)
    assert "<mark>The rent is 480 euros.</mark>" in page
    assert f'href="{chat.get_absolute_url()}"' in page


def test_sources_are_on_paper_and_in_exports(client, owner, chat):
    client.force_login(owner)
    address = chat.get_absolute_url()
    paper = body(client, f"{address}print/")
    assert '<li value="1">' in paper
    assert "The rent is 480" in paper
    assert "Not cited" not in paper
    assert "/passages/" not in paper
    markdown = body(client, f"{address}export/?format=markdown")
    assert "**Sources**\n\n- \\[1\\] lease\\_2024.md, Rent: The rent is 480\n" in markdown
    assert "**Costs \\[1\\]**" in markdown
    assert "| day | n |\n| --- | --- |\n| 2024-01-01 | 3 |\n" in markdown
    [_asked, reply] = json.loads(body(client, f"{address}export/?format=json"))["messages"]
    kinds = [one["kind"] for one in reply["parts"]]
    assert kinds == ["tool", "citation", "citation", "chart"]


def test_strangers_read_names_of_sources_alone(client, owner, stranger, chat, settings):
    settings.SHARE_BY_LINK = True
    link = PublicLink.objects.create(conversation=chat, owner=owner, last=chat.leaf_id)
    page = body(client, link.get_absolute_url())
    assert "lease_2024.md" in page
    assert "480 euros [1]" in page
    document = reverse("chat:documents")
    for hidden in ("The rent is", "Not cited", "The whole", document, "/parts/"):
        assert hidden not in page, hidden
    copied = sharing.copy_public(user=stranger, link=link, client_id="copy")
    reply = reply_of(copied)
    assert not reply.attached
    stored = json.dumps([one.data for one in reply.parts.all()])
    for hidden in ("The rent is", "The whole", "arguments", '"document"'):
        assert hidden not in stored, hidden
    html = message_html(reply)
    assert "lease_2024.md" in html
    assert document not in html


def test_old_reply_outlives_its_document(client, owner, chat):
    before = message_html(reply_of(chat))
    owner.documents.all().delete()
    assert message_html(reply_of(chat)) == before
    assert "The rent is 480" in before
