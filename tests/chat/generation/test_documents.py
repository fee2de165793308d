"""Replies from documents: the search before the first request."""

from __future__ import annotations

import pytest

from billing.models import UsageRecord
from chat.documents import binding
from chat.documents.models import Document
from chat.documents.retrieval import indexing, jobs
from chat.generation import generate
from chat.models import LanguageModel, MessagePart, Run
from chat.rendering.message import message_html
from chatproject.lib import db
from tests.chat.documents.library import make_text
from tests.support.conversations import send
from tests.support.runs import fresh

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker_loop")]

LEASE = ("# Rent", "The rent is 480 euros a month.")
OTHERS = [f"# Part {n}\n{'filler ' * 320}" for n in range(9)]  # so that a search has to choose


async def ask(owner, conversation, text: str) -> Run:
    run = await db.run(send, owner, conversation, text)
    await generate.run(run.id, 1)
    await db.run(conversation.refresh_from_db)
    return await db.run(fresh, run.pk)


async def bind(owner, conversation, *paragraphs: str) -> Document:
    """Bind a chat to a new document, and index that."""
    document = await db.run(make_text, owner, *paragraphs)
    values = {"conversation_id": conversation.pk, "document_ids": [document.pk]}
    await db.run(lambda: binding.bind(user=owner, **values))
    await db.run(indexing.request, [document.pk])
    await jobs.index(str(document.pk))
    return document


@pytest.fixture
async def bound(owner, conversation) -> Document:
    return await bind(owner, conversation, *LEASE, *OTHERS)


async def test_reply_keeps_cited_passages(owner, conversation, provider):
    await bind(owner, conversation, *LEASE)
    run = await ask(owner, conversation, "What is the rent? [[cite=1 tokens=5 rate=0]]")
    assert run.status == "done"
    asked = provider.requests[-1]["messages"][-1]["content"]
    assert '<passage number="1" document="notes.md"' in asked
    assert "The rent is 480 euros" in asked
    kinds = await db.run(lambda: [one.kind for one in MessagePart.objects.all()])
    assert kinds[0] == "tool"
    assert set(kinds[1:]) == {"citation"}
    assert 'class="cite"' in await db.run(message_html, run.message)


async def test_question_without_passages_is_refused_without_model(
    owner, conversation, provider, bound
):
    run = await ask(owner, conversation, "Who painted the Mona Lisa?")
    assert (run.status, run.finish_reason, run.charged) == ("done", "stop", 0)
    assert run.message.text.startswith("I found nothing about this in the documents")
    assert 'data-tool="1"' in run.message.html
    assert provider.requests == []
    assert not await db.run(UsageRecord.objects.exists)
    # What the chat has may answer a later message.
    run = await ask(owner, conversation, "Thanks a lot! [[tokens=5 rate=0]]")
    assert "do not have it" in provider.requests[-1]["messages"][-1]["content"]


async def test_model_with_tools_is_asked_without_passages(owner, conversation, provider, bound):
    await db.run(lambda: LanguageModel.objects.update(tools=True))
    await ask(owner, conversation, "Who painted the Mona Lisa? [[tokens=5 rate=0]]")
    [request] = provider.requests
    assert "do not have it" in request["messages"][-1]["content"]
    names = [one["function"]["name"] for one in request["tools"]]
    assert "search_documents" in names
