"""The passages of a document that a model reads for the insights of a job: extracted once, and cached in Redis.

A document that fits is read whole. Of a longer one, windows of consecutive blocks are chosen: the document is cut into
spans of equal length, the best windows of each span are taken in turn (by keywords, by the number of people and by the
length of what they say), and people who are still missing get their longest messages. The result depends on the rows
alone, so it can be made again at any time.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import msgspec
import redis

from chat.documents.models import Block
from chat.insights.models import InsightJob
from chat.insights.offers import READ
from chat.llm.tokens import count_tokens
from chatproject.lib.redis.clients import sync_client

logger = logging.getLogger(__name__)

KEY = "insights:context:"
LOCK = "insights:context-lock:"
CACHE_SECONDS = 20 * 60
LOCK_SECONDS = 30
POLL_SECONDS = 0.25

MOST_TOKENS = 24_000  # of the passages; less for a model with a small window
WINDOW = 8  # consecutive blocks
SPANS = 24
KEPT_OF_SPAN = 40  # windows
LINE_CHARACTERS = 500
NAME_CHARACTERS = 60
MOST_PEOPLE = 12  # whose own messages are looked for
LEAST_OF_PERSON = 4  # messages
KEYWORD_SCORE, PERSON_SCORE, LENGTH_SCORE = 3.0, 0.5, 1.0


class Context(msgspec.Struct, frozen=True):
    """The passages, with the figures for placeholders; `first` and `last` are days, or empty."""

    text: str
    people: list[str]
    messages: int
    first: str
    last: str


class Line(msgspec.Struct, frozen=True):
    """A block as the model reads it."""

    position: int
    sender: str
    sent_at: datetime | None
    text: str

    def shown(self) -> str:
        """Return the line with its number, by which an answer quotes it."""
        head = f"[{self.position}]"
        if self.sent_at is not None:
            head += f" {self.sent_at:%Y-%m-%d %H:%M}"
        return f"{head} {self.sender}: {self.text}" if self.sender else f"{head} {self.text}"


def of_job(job: InsightJob, most_tokens: int) -> Context:
    """Return the context of a job: the cached one, or a new one, which the job's other insights wait for."""
    key = f"{KEY}{job.pk}:{most_tokens}"
    try:
        with_lock = _wait(key, f"{LOCK}{job.pk}")
        if isinstance(with_lock, bytes):
            return msgspec.json.decode(with_lock, type=Context)
    except (redis.RedisError, msgspec.MsgspecError) as error:
        logger.warning("the context of %s is made again: %s", job, error)
    made = extract(job.document_id, _keywords(job), most_tokens)
    try:
        sync_client().set(key, msgspec.json.encode(made), ex=CACHE_SECONDS)
        sync_client().delete(f"{LOCK}{job.pk}")
    except redis.RedisError as error:
        logger.warning("the context of %s is not cached: %s", job, error)
    return made


def _wait(key: str, lock: str) -> bytes | None:
    """Return the cached context; None if this process is to make it, or has waited for long enough."""
    client = sync_client()
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        found: bytes | None = client.get(key)  # type: ignore[assignment] # a client without asyncio
        if found is not None:
            return found
        if client.set(lock, "1", nx=True, ex=LOCK_SECONDS) or time.monotonic() > deadline:
            return None
        time.sleep(POLL_SECONDS)


def _keywords(job: InsightJob) -> list[str]:
    found = job.insights.values_list("keywords", flat=True)
    return sorted({word.casefold() for words in found for word in words})


@dataclass(order=True, slots=True)
class _Window:
    score: float
    position: int
    lines: list[Line] = field(compare=False)


def extract(document_id: UUID, keywords: Sequence[str], most_tokens: int) -> Context:
    """Choose the passages of a document, of at most so many tokens, in one pass over its blocks."""
    rows = Block.objects.filter(document=document_id, kind__in=READ).exclude(text="")
    total = rows.count()
    span_length = max(1, -(-total // SPANS))
    spans: list[list[_Window]] = [[] for _ in range(SPANS)]
    whole: list[Line] | None = []
    whole_tokens = 0
    counts: dict[str, int] = {}
    longest: dict[str, list[tuple[int, int, Line]]] = {}
    window: list[Line] = []
    days: list[datetime] = []
    for number, line in enumerate(_lines(rows)):
        if line.sent_at is not None:
            days = [days[0] if days else line.sent_at, line.sent_at]
        if line.sender:
            counts[line.sender] = counts.get(line.sender, 0) + 1
            if line.sender in longest or len(longest) < 20 * MOST_PEOPLE:
                heap = longest.setdefault(line.sender, [])
                heapq.heappush(heap, (len(line.text), line.position, line))
                if len(heap) > LEAST_OF_PERSON:
                    heapq.heappop(heap)
        if whole is not None:
            whole.append(line)
            whole_tokens += count_tokens(line.shown())
            if whole_tokens > most_tokens:
                whole = None
        window.append(line)
        if len(window) == WINDOW or number == total - 1:
            span = spans[min(number // span_length, SPANS - 1)]
            heapq.heappush(span, _Window(_score(window, keywords), -window[0].position, window))
            if len(span) > KEPT_OF_SPAN:
                heapq.heappop(span)
            window = []
    people = sorted(counts, key=lambda name: (-counts[name], name))
    if whole is None:
        chosen = _choose(
            spans, [longest.get(name, []) for name in people[:MOST_PEOPLE]], most_tokens
        )
    else:
        chosen = whole
    return Context(
        text=_joined(chosen),
        people=people[:MOST_PEOPLE],
        messages=total,
        first=f"{days[0]:%Y-%m-%d}" if days else "",
        last=f"{days[-1]:%Y-%m-%d}" if days else "",
    )


def _lines(rows: Iterable[Block]) -> Iterator[Line]:
    values = rows.order_by("position").values_list("position", "sender", "sent_at", "text")  # type: ignore[attr-defined]
    for position, sender, sent_at, text in values.iterator(chunk_size=2_000):
        flat = " ".join(text[: 4 * LINE_CHARACTERS].split())
        cut = flat if len(flat) <= LINE_CHARACTERS else flat[:LINE_CHARACTERS] + "…"
        yield Line(position, " ".join(sender.split())[:NAME_CHARACTERS], sent_at, cut)


def _score(window: Sequence[Line], keywords: Sequence[str]) -> float:
    text = " ".join(line.text for line in window).casefold()
    hits = sum(word in text for word in keywords)
    people = len({line.sender for line in window})
    return KEYWORD_SCORE * hits + PERSON_SCORE * people + LENGTH_SCORE * min(1.0, len(text) / 1_000)


def _choose(
    spans: Sequence[list[_Window]],
    longest: Sequence[list[tuple[int, int, Line]]],
    most_tokens: int,
) -> list[Line]:
    """Take the best windows of all spans in turn; of people who are missing then, their longest messages."""
    reserve = most_tokens // 10  # for these
    chosen: dict[int, Line] = {}
    left = most_tokens - reserve
    ranked = [sorted(span, reverse=True) for span in spans]
    for turn in range(KEPT_OF_SPAN):
        for span in ranked:
            if turn >= len(span):
                continue
            size = sum(count_tokens(line.shown()) for line in span[turn].lines)
            if size <= left:
                left -= size
                chosen.update((line.position, line) for line in span[turn].lines)
    left += reserve
    said: dict[str, int] = {}
    for line in chosen.values():
        said[line.sender] = said.get(line.sender, 0) + 1
    for heap in longest:
        for _size, _position, line in sorted(heap, reverse=True):
            size = count_tokens(line.shown())
            if said.get(line.sender, 0) >= LEAST_OF_PERSON or size > left:
                break
            if line.position not in chosen:
                chosen[line.position] = line
                said[line.sender] = said.get(line.sender, 0) + 1
                left -= size
    return [chosen[position] for position in sorted(chosen)]


def _joined(lines: Sequence[Line]) -> str:
    """Return the lines as one text; three dots stand for what lies between."""
    parts = []
    previous = None
    for line in lines:
        if previous is not None and line.position > previous + 1:
            parts.append("…")
        parts.append(line.shown())
        previous = line.position
    return "\n".join(parts)
