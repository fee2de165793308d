"""The index of a document: its chunks with their words, then their vectors.

A document is indexed when it is asked for: when a conversation is bound to it, or at a question. A job claims it
and makes all chunks in one transaction; from then on words find them, and vectors are added batch by batch. Each job
makes some batches and leaves the rest to the next one, so that a long document does not keep others waiting. A killed
worker loses one batch: the clock finds the silent index and enqueues it again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from chat.documents.models import Block, Chunk, Document, DocumentIndex
from chat.documents.retrieval import chunks as chunking
from chat.documents.retrieval import vectors, words
from chat.models import LanguageModel
from chatproject.lib.db import prepared

STORED = 500  # chunks of one statement
READ = 2_000  # blocks of one statement
BATCH = 32  # texts of one request for vectors
LOST = timedelta(minutes=5)  # without progress; longer than the chunks of the longest document take
WAITING = timedelta(minutes=1)  # until a queued one is enqueued again
RETRY = timedelta(hours=1)  # after failed vectors
MOST_ATTEMPTS = 5
SPARE_TOKENS = 32  # of a model's limit, for its prefix

Status = Document.IndexStatus
INDEXED = (Document.Kind.CHAT, Document.Kind.TEXT)


@dataclass(frozen=True, slots=True)
class Work:
    """A claimed document; `token` fences off a job whose claim has been given to another one."""

    document: UUID
    owner: int
    is_chat: bool
    token: UUID
    model: LanguageModel | None


def chunk_tokens(model: LanguageModel | None) -> int:
    """Return the greatest size of a chunk, in tokens: the setting's, or what the model can read."""
    most = settings.DOCUMENT_CHUNK_TOKENS
    if model is not None:
        most = min(most, model.context_tokens * 7 // 8 - SPARE_TOKENS)
    return max(most, 64)


def present_model() -> LanguageModel | None:
    """Return the model whose vectors chunks shall have, None if there can be none."""
    return vectors.model() if vectors.has_column() else None


def request(documents: Iterable[UUID], now: datetime | None = None) -> list[UUID]:
    """Mark the documents that need an index, or another one, as queued; return them, to be enqueued after the commit."""
    now = now or timezone.now()
    model = present_model()
    outdated = (
        Q(index=None)
        | ~Q(index__version=chunking.VERSION)
        | ~Q(index__chunk_tokens=chunk_tokens(model))
        | Q(index_status=Status.NONE)
    )
    if model is not None:
        is_of_other = Q(index__model=None) | ~Q(index__model=model.pk)
        outdated |= is_of_other & Q(index__beat_at__lt=now - RETRY) | (
            is_of_other & Q(index__reason="")
        )
    idle = [Status.NONE, Status.READY, Status.FAILED]
    with transaction.atomic():
        wanted = list(
            Document.objects.select_for_update(of=("self",), no_key=True)
            .filter(pk__in=list(documents), kind__in=INDEXED, status=Document.Status.READY)
            .filter(outdated, index_status__in=idle)
            .order_by("pk")
        )
        for one in wanted:
            DocumentIndex.objects.update_or_create(
                document=one, defaults={"beat_at": now, "attempt": 0, "reason": "", "token": None}
            )
        Document.objects.filter(pk__in=[one.pk for one in wanted]).update(
            index_status=Status.QUEUED
        )
    return [one.pk for one in wanted]


def due(now: datetime, most: int = 100) -> list[UUID]:
    """Return queued documents whose job may be lost, and those whose job has been silent; they wait from now on."""
    rows = DocumentIndex.objects.filter(document__deleted_at=None).filter(
        Q(document__index_status=Status.QUEUED, beat_at__lt=now - WAITING)
        | Q(document__index_status=Status.INDEXING, beat_at__lt=now - LOST)
    )
    found = list(rows.order_by("beat_at").values_list("pk", flat=True)[:most])
    queued = DocumentIndex.objects.filter(pk__in=found, document__index_status=Status.QUEUED)
    queued.update(beat_at=now)
    return found


def claim(document_id: UUID, now: datetime | None = None) -> Work | None:
    """Claim a document for this job; None if there is nothing to do, or another job works on it."""
    now = now or timezone.now()
    with transaction.atomic():
        document = (
            Document.objects.select_for_update(no_key=True)
            .filter(pk=document_id, index_status__in=[Status.QUEUED, Status.INDEXING])
            .first()
        )
        index = DocumentIndex.objects.filter(pk=document_id).first()
        if document is None or index is None:
            return None
        if document.index_status == Status.INDEXING and index.beat_at > now - LOST:
            return None
        if index.attempt >= MOST_ATTEMPTS:
            _give_up(document, index)
            return None
        index.token, index.attempt, index.beat_at = uuid4(), index.attempt + 1, now
        index.save(update_fields=["token", "attempt", "beat_at"])
        document.index_status = Status.INDEXING
        document.save(update_fields=["index_status"])
    is_chat = document.kind == Document.Kind.CHAT
    return Work(document.pk, document.owner_id, is_chat, index.token, present_model())


def _give_up(document: Document, index: DocumentIndex) -> None:
    """End the attempts: with chunks the document is searched by words alone, without them it has failed."""
    index.reason = "no_vectors" if index.version else "attempts"
    index.save(update_fields=["reason"])
    document.index_status = Status.READY if index.version else Status.FAILED
    document.save(update_fields=["index_status"])


def make_chunks(work: Work) -> bool:
    """Make the chunks of a claimed document, unless they are as they should be; return whether the claim holds."""
    tokens = chunk_tokens(work.model)
    with transaction.atomic():
        index = _claimed(work)
        if index is None:
            return False
        if index.version == chunking.VERSION and index.chunk_tokens == tokens:
            return True
        Chunk.objects.filter(document=work.document).delete()
        made: list[Chunk] = []
        count = 0
        for draft in chunking.chunks(_blocks(work.document), is_chat=work.is_chat, tokens=tokens):
            made.append(
                Chunk(
                    number=count,
                    first=draft.first,
                    last=draft.last,
                    start=draft.start,
                    end=draft.end,
                    label=draft.label,
                    page=draft.page,
                    sent_at=draft.sent_at,
                    text=draft.text,
                )
            )
            count += 1
            if len(made) == STORED:
                words.insert(work.document, work.owner, made)
                made = []
        words.insert(work.document, work.owner, made)
        index.version, index.chunk_tokens, index.chunks = chunking.VERSION, tokens, count
        index.embedded, index.model = 0, None
        index.attempt, index.beat_at = 0, timezone.now()
        index.save()
    return True


def _claimed(work: Work) -> DocumentIndex | None:
    """Return the locked index of a claimed document, None if another job has it, or the document is deleted."""
    return (
        DocumentIndex.objects.select_for_update(of=("self",))
        .filter(pk=work.document, token=work.token, document__deleted_at=None)
        .first()
    )


def _blocks(document_id: UUID) -> Iterator[Block]:
    rows = Block.objects.filter(document=document_id).order_by("position")
    last = -1
    while batch := list(rows.filter(position__gt=last)[:READ]):
        last = batch[-1].position
        yield from batch


PENDING = """
SELECT id, text FROM documents_chunk
WHERE document_id = %(document)s AND embedded_by IS DISTINCT FROM %(model)s ORDER BY number LIMIT %(most)s
"""


def pending(work: Work) -> list[tuple[int, str]]:
    """Return the next chunks without a vector of the model: key and text."""
    if work.model is None:
        return []
    most = min(BATCH, work.model.max_inputs)
    values = {"document": work.document, "model": work.model.pk, "most": most}
    return prepared.all(PENDING, values)


STORE = """
UPDATE documents_chunk AS chunk SET embedding = made.vector::halfvec, embedded_by = %(model)s
FROM unnest(%(ids)s::bigint[], %(vectors)s::text[]) AS made(id, vector)
WHERE chunk.id = made.id AND chunk.document_id = %(document)s
"""


def store(work: Work, ids: Sequence[int], made: Sequence[array[float] | None]) -> bool:
    """Store the vectors of a batch (None: the model cannot read the text); return whether the claim holds."""
    assert work.model is not None
    with transaction.atomic():
        index = _claimed(work)
        if index is None:
            return False
        prepared.change(
            STORE,
            {
                "document": work.document,
                "model": work.model.pk,
                "ids": list(ids),
                "vectors": [None if one is None else vectors.literal(one) for one in made],
            },
        )
        index.embedded = F("embedded") + len(ids)
        index.attempt, index.beat_at = 0, timezone.now()
        index.save(update_fields=["embedded", "attempt", "beat_at"])
    return True


def finish(work: Work) -> None:
    """Mark a claimed document as indexed."""
    _end(work, Status.READY, model=work.model.pk if work.model else None, token=None)


def pass_on(work: Work) -> bool:
    """Give a claim back before the end, for the next job; return whether it held."""
    return _end(work, Status.QUEUED, token=None)


def _end(work: Work, status: str, **values: object) -> bool:
    with transaction.atomic():
        rows = DocumentIndex.objects.filter(pk=work.document, token=work.token)
        if not rows.update(beat_at=timezone.now(), **values):
            return False
        Document.objects.filter(pk=work.document).update(index_status=status)
    return True
