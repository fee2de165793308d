"""The tool `search_documents`: passages of the documents that a conversation is bound to, as citations.

Parley itself takes this step with the user's message before the first request, so that models without tools answer
from documents, too; models with tools may call it again.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any
from uuid import UUID

from django.utils.translation import gettext, gettext_lazy, ngettext
from msgspec import Meta

from chat.documents.models import Document, DocumentIndex
from chat.documents.retrieval import embedding, indexing, jobs, passages, prompt
from chat.documents.retrieval.passages import Found, Passage
from chat.tools.registry import Display, ToolContext, ToolError, ToolResult, tool
from chatproject.lib import db, languages
from chatproject.lib.redis.clients import sync_client

MOST_PASSAGES = 5
EXCERPT = 300  # characters of a passage in its citation
SPARE_SECONDS = 12.0  # before the deadline, for the search itself
POLL = 0.5  # seconds between two looks whether a document has become searchable
NUMBERS_TTL = 86_400  # seconds; a run is over long before


def has_documents(context: ToolContext) -> bool:
    """Return whether a run has documents to search."""
    return bool(context.documents)


@tool(
    name="search_documents",
    title=gettext_lazy("Search in documents"),
    progress=gettext_lazy("Searching documents…"),
    seconds=30,
    available=has_documents,
)
async def search_documents(
    context: ToolContext,
    query: Annotated[
        str, Meta(min_length=1, max_length=2_000, description="A question, or words to look for")
    ],
) -> ToolResult:
    """Search the documents that this conversation is about. Returns numbered passages to answer from and to cite."""
    waiting = await wait_until_searchable(context)
    vector = await embedding.of_question(query, user_id=context.user_id)
    found = await db.run(_search, context, query, vector)
    if not found.is_relevant:
        if waiting and not found.passages:
            raise ToolError(
                gettext_lazy("The documents are still being prepared. Try again in a moment.")
            )
        with languages.use(context.language):
            return ToolResult(
                text=prompt.NOTHING if found.coverage else prompt.NO_WORD,
                summary=gettext("Nothing found in the documents"),
            )
    first = await asyncio.to_thread(next_number, context.run_id, len(found.passages))
    with languages.use(context.language):
        return result_of(found.passages, first)


async def wait_until_searchable(context: ToolContext) -> bool:
    """Have the documents indexed; wait for those without chunks. Returns whether some still have none."""
    await asyncio.to_thread(jobs.enqueue, await db.run(indexing.request, context.documents))
    while await db.run(_is_waiting, context.documents):
        if time.monotonic() + SPARE_SECONDS > context.deadline:
            return True
        await asyncio.sleep(POLL)
    return False


def _is_waiting(documents: tuple[UUID, ...]) -> bool:
    active = [Document.IndexStatus.QUEUED, Document.IndexStatus.INDEXING]
    rows = DocumentIndex.objects.filter(pk__in=documents, version=0)
    return rows.filter(document__index_status__in=active, document__deleted_at=None).exists()


def _search(context: ToolContext, query: str, vector: passages.QueryVector | None) -> Found:
    return passages.search(
        context.documents, query, MOST_PASSAGES, owner=context.user_id, vector=vector
    )


def next_number(run_id: UUID, count: int) -> int:
    """Return the first of `count` numbers that no other citation of the run has. Raises redis.RedisError."""
    key = f"run:{run_id}:citations"
    pipeline = sync_client().pipeline(transaction=False)
    pipeline.incrby(key, count)
    pipeline.expire(key, NUMBERS_TTL)
    return int(pipeline.execute()[0]) - count + 1


def result_of(found: list[Passage], first: int) -> ToolResult:
    """Return passages as text for the model, and as citations."""
    numbered = list(enumerate(found, start=first))
    texts = [(number, one.name, place_of(one), one.text) for number, one in numbered]
    summary = ngettext("%(count)d passage", "%(count)d passages", len(found))
    return ToolResult(
        text=prompt.of_passages(texts),
        summary=summary % {"count": len(found)},
        parts=tuple(Display("citation", citation(number, one)) for number, one in numbered),
        untrusted=True,
    )


def place_of(passage: Passage) -> str:
    """Return the words that say where in its document a passage is: page, day and senders, or headings."""
    day = languages.day(passage.sent_at.date(), "j M Y") if passage.sent_at else ""
    page = gettext("page %(number)d") % {"number": passage.page} if passage.page else ""
    return ", ".join(filter(None, [page, day, passage.label]))


def citation(number: int, passage: Passage) -> dict[str, Any]:
    """Return the part of a message that names a passage."""
    text = " ".join(passage.text.split())
    found: dict[str, Any] = {
        "number": number,
        "document": str(passage.document),
        "name": passage.name,
        "first": passage.first,
        "last": passage.last,
        "label": place_of(passage),
        "excerpt": text[:EXCERPT] + ("…" if len(text) > EXCERPT else ""),
    }
    if passage.start is not None:
        found |= {"start": passage.start, "end": passage.end}
    return found
