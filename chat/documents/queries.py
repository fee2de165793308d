"""Pages of a user's documents and of the blocks of one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC as CLOCK
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db.models import Count, Min
from django.db.models.functions import TruncMonth

from chat.documents.models import Block, Document

if TYPE_CHECKING:
    from accounts.models import User

DOCUMENTS = 50  # of one page
BLOCKS = 100
JUMPS = 240  # months of a chat: 20 years


@dataclass(frozen=True, slots=True)
class Page:
    """Documents, newest first; `next` is the cursor of the next page, None at the end."""

    documents: list[Document]
    next: UUID | None


def page(user: User, before: str = "", most: int = DOCUMENTS) -> Page:
    """Return a page of a user's documents: those before the cursor `before`, unchecked text from a URL."""
    mine = Document.objects.filter(owner=user).select_related("project").defer("statistics")
    try:
        found = mine.filter(pk__lt=UUID(before)) if before else mine
    except ValueError:
        found = mine
    rows = list(found[: most + 1])
    return Page(rows[:most], rows[most - 1].pk if len(rows) > most else None)


def choices(user: User, most: int = 100) -> list[Document]:
    """Return the newest documents of a user that a conversation can be bound to."""
    mine = Document.objects.filter(owner=user).exclude(status=Document.Status.FAILED)
    return list(mine.defer("statistics", "details", "options")[:most])


@dataclass(frozen=True, slots=True)
class BlockPage:
    """Blocks in their order; `before` and `after` are the first positions of the neighbouring pages, if any."""

    blocks: list[Block]
    before: int | None
    after: int | None


def blocks(document: Document, start: int, most: int = BLOCKS) -> BlockPage:
    """Return the blocks from a position on."""
    start = max(0, start)
    rows = list(document.blocks.filter(position__gte=start).order_by("position")[: most + 1])
    return BlockPage(
        blocks=rows[:most],
        before=max(0, start - most) if start > 0 else None,
        after=rows[most].position if len(rows) > most else None,
    )


def search(document: Document, words: str, most: int = BLOCKS) -> list[Block]:
    """Return the first blocks that have a text in them, whatever its case."""
    found = document.blocks.filter(text__icontains=words).order_by("position")
    return list(found[:most])


@dataclass(frozen=True, slots=True)
class Jump:
    """A place to jump to: a month of a chat, a page, or a heading."""

    position: int
    label: Any
    count: int


def months(document: Document) -> list[Jump]:
    """Return the months of a chat with the position at which each begins."""
    rows = (
        document.blocks.filter(sent_at__isnull=False)
        .order_by()
        .annotate(month=TruncMonth("sent_at", tzinfo=CLOCK))
        .values("month")
        .annotate(first=Min("position"), count=Count("pk"))
        .order_by("month")
    )
    return [Jump(row["first"], row["month"], row["count"]) for row in rows[:JUMPS]]


def headings(document: Document) -> list[Jump]:
    """Return the headings of a text."""
    rows = document.blocks.filter(kind=Block.Kind.HEADING).order_by("position")[:JUMPS]
    return [Jump(one.position, one.text, len(one.headings)) for one in rows]


def position_of_page(document: Document, number: int) -> int | None:
    """Return the position at which a page begins, or the next one with text; None behind the last."""
    first = document.blocks.filter(page__gte=number).order_by("position").first()
    return first.position if first is not None else None


def position_of_day(document: Document, day: date) -> int | None:
    """Return the position of the first message of a day or after it; None behind the last."""
    begin = datetime.combine(day, time(), tzinfo=CLOCK)
    first = document.blocks.filter(sent_at__gte=begin).order_by("position").first()
    return first.position if first is not None else None
