"""A conversation as a file, and as a page for printing."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import unquote

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts.models import User
from chat.models import Conversation, Message, MessagePart
from chat.transfer import documents
from tests.support.conversations import add_turns

pytestmark = pytest.mark.usefixtures("valkey_url")

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def page(owner: User) -> Client:
    client = Client()
    client.force_login(owner)
    return client


def downloaded(page: Client, conversation: Conversation, format: str) -> tuple[str, str]:
    """The text of an export, and its header Content-Disposition."""
    response = page.get(f"{conversation.get_absolute_url()}export/", {"format": format})
    assert response.status_code == 200
    return body(response), response["Content-Disposition"]


def body(response: Any) -> str:
    async def read() -> bytes:
        return b"".join([part async for part in response])

    return asyncio.run(read()).decode()


def test_markdown_has_the_shown_branch_alone(page, owner, conversation):
    *_others, asked, reply = add_turns(owner, conversation, 60)
    Message.objects.create(conversation=conversation, parent=asked, role="assistant", text="Other")
    Message.objects.filter(pk=reply.pk).update(text="Open:\n```python\nprint(1)", status="stopped")
    MessagePart.objects.create(message=reply, position=0, kind="reasoning", data={"text": "Hm\nso"})
    call = {"call": "2", "title": "Calculator", "summary": "6 * 7 = 42", "result": "42"}
    MessagePart.objects.create(message=reply, position=1, kind="tool", data=call)

    text, disposition = downloaded(page, conversation, "markdown")

    assert text.startswith("# New chat\n\n## You · ")
    assert [f"Answer {n}\n" in text for n in range(59)] == [True] * 59
    assert "Other" not in text
    assert (
        "> **Reasoning**\n>\n> Hm\n> so\n\n*Tools:*\n\n- Calculator: 6 \\* 7 = 42\n\nOpen:" in text
    )
    assert text.endswith("print(1)\n```\n\n*This reply was stopped.*\n")
    assert "## Stub · " in text  # the model's name
    assert disposition.startswith('attachment; filename="New chat 20')


def test_json_has_the_whole_tree(page, owner, conversation):
    messages = add_turns(owner, conversation, 60)
    branch = Message.objects.create(
        conversation=conversation, parent=messages[-2], role="assistant", text="Other"
    )
    Conversation.objects.filter(pk=conversation.pk).update(title="Wärme/熱: حرارة\u202etxt")

    text, disposition = downloaded(page, conversation, "json")

    read = json.loads(text)
    assert (read["format"], read["version"]) == ("parley.conversation", 1)
    assert read["leaf"] == str(messages[-1].pk)
    assert [one["id"] for one in read["messages"]] == [str(m.pk) for m in [*messages, branch]]
    assert read["messages"][-1]["parent"] == str(messages[-2].pk)
    assert read["messages"][1]["model"] == "Stub"
    assert "Wärme 熱 حرارة txt 20" in unquote(disposition)


def test_page_for_printing_needs_no_script(page, owner, conversation):
    add_turns(owner, conversation, 60)
    Conversation.objects.filter(pk=conversation.pk).update(title="<b>&")
    response = page.get(f"{conversation.get_absolute_url()}print/")
    html = body(response)
    assert html.count("<article") == 120
    assert html.index("Question 0") < html.index("<p>Answer 59</p>") < html.index("</html>")
    assert "&lt;b&gt;&amp;" in html
    assert "<script" not in html


def test_export_without_messages_is_whole(page, conversation):
    assert json.loads(downloaded(page, conversation, "json")[0])["messages"] == []
    assert downloaded(page, conversation, "markdown")[0] == "# New chat\n"


def test_exports_of_others_are_not_found(page, stranger, conversation):
    client = Client()
    client.force_login(stranger)
    for address in ("export/?format=json", "export/?format=markdown", "print/"):
        assert client.get(conversation.get_absolute_url() + address).status_code == 404
    assert page.get(conversation.get_absolute_url() + "export/?format=exe").status_code == 404


def test_part_of_a_document_needs_few_queries(owner, conversation):
    add_turns(owner, conversation, 60)
    counts = []
    makers = (documents.markdown, documents.json, partial(documents.html, page=documents.PLACE))
    for make in makers:
        part = make(conversation)
        for at in (0, 50):
            with CaptureQueriesContext(
                connection,
            ) as queries:
                part(at)
            counts.append(len(queries))
    assert counts == [2, 2, 3, 3, 2, 2]  # messages with runs, parts, and of JSON feedback


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("../../etc/passwd", "etc passwd 2026-11-30.md"),
        ("\u202egnp.exe\x00\r\nX: 1", "gnp.exe X 1 2026-11-30.md"),
        ("...", "Chat 2026-11-30.md"),
        ("熱" * 100, f"{'熱' * 40} 2026-11-30.md"),
        ("क्\u200dष", "क्\u200dष 2026-11-30.md"),
    ],
)
def test_file_name_is_safe_in_any_script(title, name):
    assert documents.file_name(title, NOON, "md") == name


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("a\n~~~x\nb", "a\n~~~x\nb\n~~~"),
        ("````\n```\nb", "````\n```\nb\n````"),
        ("```\nb\n```", "```\nb\n```"),
        ("```a`b\nc", "```a`b\nc"),
    ],
)
def test_open_code_block_is_closed(text, closed):
    assert documents.closed(text) == closed
