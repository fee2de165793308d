"""Chunks: the units that a search finds. Each is a range of blocks, or a part of one that is very long.

A chunk is as long as the embedding model can read, at most. It ends before a heading or after a pause of a chat
where it can, and its last blocks are repeated at the beginning of the next one, so that a question and its answer
are in one of them. Its text names what its blocks leave unsaid: the headings above it, or senders and days.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Protocol

from chat.documents.retrieval import graphemes

VERSION = 1  # another one makes the chunks of all documents anew
BYTES_PER_TOKEN = 3  # a low average, so that a chunk stays inside the model's limit
PAUSE = timedelta(minutes=10)
# Parts of the greatest size: from this size on a heading or a pause ends a chunk, and at most so much is repeated.
AFTER_HEADING, AFTER_PAUSE, OVERLAP = 1 / 8, 1 / 6, 1 / 6
MOST_CHUNKS = 50_000  # of a document
HEADING_SEPARATOR = " \u203a "
MOST_LABEL = 200  # characters
MOST_HEADING = 120  # of one heading in a text
SILENT = frozenset({"system", "deleted"})  # blocks that answer nothing


class BlockLike(Protocol):
    """The fields of a block that chunks are made of."""

    position: int
    kind: str
    sender: str
    sent_at: datetime | None
    page: int | None
    headings: Sequence[str]
    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A block, or a part of a long one from `start` to `end` of its characters; `size` in bytes."""

    position: int
    start: int
    end: int
    is_part: bool
    kind: str
    sender: str
    sent_at: datetime | None
    page: int | None
    headings: tuple[str, ...]
    text: str
    size: int


@dataclass(slots=True)
class Draft:
    """A chunk that is not stored yet. `start` and `end` are set for a part of one block, in characters of it."""

    first: int
    last: int
    start: int | None
    end: int | None
    text: str
    label: str
    page: int | None
    sent_at: datetime | None


@dataclass(slots=True)
class Chunker:
    """Collects pieces until a chunk is full. `limit` is the greatest size in bytes."""

    limit: int
    is_chat: bool
    pieces: list[Piece] = field(default_factory=list)
    size: int = 0
    fresh: int = 0  # pieces that no chunk has had yet

    def add(self, piece: Piece) -> Iterator[Draft]:
        """Add a piece; yield the chunk that ends before it, if one does."""
        if self.fresh and self._ends_before(piece):
            yield self.draft()
            self._keep_overlap(piece)
        self.pieces.append(piece)
        self.size += piece.size
        self.fresh += 1

    def _ends_before(self, piece: Piece) -> bool:
        last = self.pieces[-1]
        if self.size + piece.size > self.limit or piece.is_part or last.is_part:
            return True
        if self.is_chat:
            return is_pause(last, piece) and self.size >= self.limit * AFTER_PAUSE
        is_section = piece.kind == "heading" and last.kind != "heading"
        return is_section and self.size >= self.limit * AFTER_HEADING

    def _keep_overlap(self, piece: Piece) -> None:
        """Keep the last pieces, unless a heading or a pause is between, or the next piece fills a chunk."""
        kept: list[Piece] = []
        size = 0
        if not (piece.kind == "heading" or piece.is_part or is_pause(self.pieces[-1], piece)):
            for one in reversed(self.pieces[1:]):
                size += one.size
                if one.is_part or size > self.limit * OVERLAP or size + piece.size > self.limit:
                    break
                kept.insert(0, one)
        self.pieces = kept
        self.size = sum(one.size for one in kept)
        self.fresh = 0

    def draft(self) -> Draft:
        """Return the chunk of the pieces."""
        first, last = self.pieces[0], self.pieces[-1]
        lines = chat_lines(self.pieces) if self.is_chat else text_lines(self.pieces)
        return Draft(
            first=first.position,
            last=last.position,
            start=first.start if first.is_part else None,
            end=last.end if first.is_part else None,
            text="\n".join(lines),
            label=label_of(self.pieces, self.is_chat),
            page=first.page,
            sent_at=first.sent_at,
        )


def is_pause(last: Piece, piece: Piece) -> bool:
    """Return whether a chat paused between two messages."""
    if last.sent_at is None or piece.sent_at is None:
        return False
    return piece.sent_at - last.sent_at >= PAUSE


def chunks(blocks: Iterable[BlockLike], *, is_chat: bool, tokens: int) -> Iterator[Draft]:
    """Yield the chunks of a document, each of at most so many tokens by estimate; MOST_CHUNKS of them at most."""
    chunker = Chunker(tokens * BYTES_PER_TOKEN, is_chat)
    made = 0
    for block in blocks:
        if block.kind in SILENT or not block.text.strip():
            continue
        for piece in pieces_of(block, chunker.limit):
            for draft in chunker.add(piece):
                yield draft
                made += 1
                if made == MOST_CHUNKS:
                    return
    if chunker.fresh:
        yield chunker.draft()


def pieces_of(block: BlockLike, limit: int) -> Iterator[Piece]:
    """Yield a block as one piece, or in parts if it is longer than a chunk."""
    headings = tuple(block.headings)
    # The line that names sender or headings counts as well.
    named = (block.sender, *(one[:MOST_HEADING] for one in headings[-3:]))
    overhead = min(sum(len(one.encode("utf-8", "replace")) + 3 for one in named), limit // 3) + 12
    most = limit - overhead
    begin, length = 0, len(block.text)
    # The size in characters bounds that in bytes from below; the exact one is counted for what may fit only.
    is_part = length > most or len(block.text.encode("utf-8", "replace")) > most
    while begin < length:
        end = graphemes.cut(block.text, begin, most) if is_part else length
        text = block.text[begin:end]
        if text.strip():
            size = len(text.encode("utf-8", "replace")) + (
                overhead if block.sender or is_part else 2
            )
            yield Piece(
                block.position, begin, end, is_part, block.kind, block.sender, block.sent_at,
                block.page, headings, text.strip(), size,
            )  # fmt: skip
        begin = end


def chat_lines(pieces: Sequence[Piece]) -> Iterator[str]:
    """Yield the lines of a chat: the day when it changes, then each message with its sender."""
    day: date | None = None
    for piece in pieces:
        if piece.sent_at is not None and piece.sent_at.date() != day:
            day = piece.sent_at.date()
            yield f"[{day.isoformat()}]"
        yield f"{piece.sender}: {piece.text}" if piece.sender else piece.text


def text_lines(pieces: Sequence[Piece]) -> Iterator[str]:
    """Yield the headings above the first piece, then all texts."""
    first = pieces[0]
    above = first.headings[:-1] if first.kind == "heading" else first.headings
    if above:
        yield HEADING_SEPARATOR.join(one[:MOST_HEADING] for one in above[-3:])
    for piece in pieces:
        yield piece.text


def label_of(pieces: Sequence[Piece], is_chat: bool) -> str:
    """Return the senders of a chunk, or the headings above it."""
    if is_chat:
        names = [*dict.fromkeys(piece.sender for piece in pieces if piece.sender)]
        label = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    else:
        named = next((piece.headings for piece in pieces if piece.headings), ())
        label = HEADING_SEPARATOR.join(one[:MOST_HEADING] for one in named[-2:])
    return label[:MOST_LABEL]
