"""The page of a passage: its place in a document, with what is around it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from chat import access
from chat.documents.models import Block, Document
from chat.documents.retrieval import graphemes
from chat.errors import ChatError
from chat.models import Conversation
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors
from chatproject.lib.http import Request

AROUND = 8  # blocks before and after the passage
MOST_BLOCKS = 400  # of a passage that are shown
MOST_CHARACTERS = 20_000  # of one block
MARGIN = 2_000  # characters around a part of a long block


@dataclass(frozen=True, slots=True)
class Shown:
    """A block as the page shows it: `before` and `after` surround the highlighted part of its text."""

    block: Block
    before: str
    text: str
    after: str
    is_marked: bool
    day: date | None  # for the first message of a day
    page: int | None  # for the first block of a page
    is_cut: bool


@require_safe
@never_cache
@handles_chat_errors
def passage(request: Request, document_id: UUID, first: int, last: int) -> HttpResponse:
    """Show the blocks `first` to `last` of a document, highlighted; ?start=&end= highlights a part of one."""
    context = page_context(request)
    back = conversation_of(request)
    if is_deleted(request, document_id):
        return render(request, "chat/passage.html", context | {"back": back}, status=410)
    kind: Any = Document
    document = access.owned(request.user, kind, document_id)
    part = part_of(request)
    last = min(last, first + MOST_BLOCKS)
    blocks = list(
        document.blocks.filter(position__gte=first - AROUND, position__lte=last + AROUND).order_by(
            "position"
        )
    )
    marked = [one for one in blocks if first <= one.position <= last]
    if not marked:
        raise ChatError("not_found")
    context |= {
        "document": document,
        "blocks": list(shown(blocks, first, last, part)),
        "first": marked[0].position,
        "has_before": blocks[0].position > 0,
        "has_after": document.blocks.filter(position__gt=blocks[-1].position).exists(),
        "headings": marked[0].headings,
        "back": back,
    }
    return render(request, "chat/passage.html", context)


def is_deleted(request: Request, document_id: UUID) -> bool:
    """Return whether a document is a deleted one of the user."""
    rows = Document.all_objects.filter(pk=document_id, owner=request.user.pk)
    return bool(rows.filter(deleted_at__isnull=False).exists())


def conversation_of(request: Request) -> Conversation | None:
    """Return the conversation of ?chat=ID that the page leads back to, if the user may read it."""
    try:
        return access.conversation(request.user, UUID(request.GET.get("chat", "")))
    except (ValueError, ChatError):
        return None


def part_of(request: Request) -> tuple[int, int] | None:
    """Return the characters ?start=&end= of the first block, None without them."""
    start, end = request.GET.get("start", ""), request.GET.get("end", "")
    if not (start.isdecimal() and end.isdecimal()) or max(len(start), len(end)) > 9:
        return None
    return (int(start), int(end)) if int(start) < int(end) else None


def shown(blocks: list[Block], first: int, last: int, part: tuple[int, int] | None) -> Any:
    """Yield the blocks as the page shows them."""
    day: date | None = None
    page: int | None = None
    for block in blocks:
        is_marked = first <= block.position <= last
        begin, end = (0, len(block.text)) if is_marked else (0, 0)
        if is_marked and part is not None:
            begin, end = (min(one, len(block.text)) for one in part)
        low, high = window(block.text, begin, end)
        sent = block.sent_at.date() if block.sent_at else None
        yield Shown(
            block=block,
            before=block.text[low:begin] if is_marked else block.text[low:high],
            text=block.text[begin : min(end, high)] if is_marked else "",
            after=block.text[end:high] if is_marked else "",
            is_marked=is_marked,
            day=sent if sent != day else None,
            page=block.page if block.page != page else None,
            is_cut=low > 0 or high < len(block.text),
        )
        day, page = sent, block.page


def window(text: str, begin: int, end: int) -> tuple[int, int]:
    """Return the part of a text that is shown: whole, or around the highlighted part of a very long one."""
    if len(text) <= MOST_CHARACTERS:
        return 0, len(text)
    low = max(0, begin - MARGIN)
    high = min(len(text), max(end, begin) + MARGIN, low + MOST_CHARACTERS)
    while not graphemes.is_boundary(text, low):
        low -= 1
    while not graphemes.is_boundary(text, high):
        high += 1
    return low, high
