"""The jobs of the queue `index` that make the indexes of documents, and their enqueueing."""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

import django_rq
import redis

from chat.documents.retrieval import embedding, indexing, vectors
from chat.documents.retrieval.indexing import Work
from chat.llm.errors import ProviderError, ProviderRefused
from chat.models import LanguageModel, Provider
from chatproject.lib import db
from chatproject.lib.redis.clients import sync_client

logger = logging.getLogger(__name__)

QUEUE = "index"
INDEX = "chat.documents.retrieval.jobs.index"
MAINTAIN = "chat.documents.retrieval.jobs.maintain_vectors"
SECONDS = 120.0  # of a request for the vectors of a batch, with all tries
BATCHES = 20  # of one job
HALVINGS = 3  # of a text that the model cannot read whole

EVERY = 30.0  # seconds between two looks of the clock for lost jobs
MAINTAIN_EVERY = 600.0


def enqueue(documents: Iterable[UUID]) -> None:
    """Enqueue the indexing of documents; without Redis the clock does it later."""
    queue = django_rq.get_queue(QUEUE, connection=sync_client())
    try:
        for one in documents:
            queue.enqueue_call(
                func=INDEX,
                kwargs={"document_id": str(one)},
                description=f"index document {one}",
                result_ttl=0,
            )
    except redis.RedisError as error:
        logger.warning("documents are indexed later: %s", error)


def enqueue_due(now: datetime) -> None:
    """Enqueue the documents whose job was lost."""
    enqueue(indexing.due(now))


def enqueue_maintenance(now: datetime) -> None:
    """Enqueue the care for pgvector's column and index; raises redis.RedisError."""
    queue = django_rq.get_queue(QUEUE, connection=sync_client())
    if MAINTAIN not in {job.func_name for job in queue.get_jobs(length=10)}:
        queue.enqueue_call(
            func=MAINTAIN, description="maintain vectors", result_ttl=0, timeout=3_600
        )


def maintain_vectors() -> None:
    """Add pgvector's column once the extension can be created, and the index of the present model."""
    vectors.prepare()
    done = vectors.maintain_index()
    if done:
        logger.info("the index %s of vectors was made", done)


async def index(document_id: str) -> None:
    """Make the chunks of a document and some batches of its vectors; a job of its own makes the next ones."""
    work = await db.run(indexing.claim, UUID(document_id))
    if work is None or not await db.run(indexing.make_chunks, work):
        return
    spent: list[tuple[Sequence[str], int | None]] = []
    try:
        is_done = await _add_vectors(work, spent)
    except (ProviderError, TimeoutError) as error:
        # The claim stays: the clock tries again once it is old, at most MOST_ATTEMPTS times.
        cause = getattr(error, "detail", "")  # of a time limit there is none
        logger.warning(
            "document %s has no vectors yet: %s: %s", document_id, type(error).__name__, cause
        )
        return
    finally:
        if work.model is not None and spent:
            await db.run(_record, work.model, work.owner, spent)
    if is_done:
        await db.run(indexing.finish, work)
    elif await db.run(indexing.pass_on, work):
        await asyncio.to_thread(enqueue, [work.document])


async def _add_vectors(work: Work, spent: list[tuple[Sequence[str], int | None]]) -> bool:
    """Add up to BATCHES batches of vectors; return whether all chunks have one. Raises ProviderError."""
    if work.model is None:
        return True
    provider = await db.run(embedding.provider_of, work.model)
    for _ in range(BATCHES):
        batch = await db.run(indexing.pending, work)
        if not batch:
            return True
        texts = [text for _id, text in batch]
        try:
            answer = await embedding.of_passages(work.model, provider, texts, SECONDS)
            made: list[array[float] | None] = [*answer.vectors]
            spent.append((texts, answer.tokens))
        except ProviderRefused as error:
            if error.reason not in ("context", "too_large"):
                raise
            made = [await _of_long_text(work.model, provider, text, spent) for text in texts]
        if not await db.run(indexing.store, work, [id for id, _text in batch], made):
            return False
    return False


async def _of_long_text(
    model: LanguageModel,
    provider: Provider,
    text: str,
    spent: list[tuple[Sequence[str], int | None]],
) -> array[float] | None:
    """Return the vector of as much of a text as the model reads; None if that is less than an eighth."""
    for _ in range(HALVINGS + 1):
        try:
            answer = await embedding.of_passages(model, provider, [text], SECONDS)
        except ProviderRefused as error:
            if error.reason not in ("context", "too_large"):
                raise
            text = text[: max(1, len(text) // 2)]
        else:
            spent.append(([text], answer.tokens))
            return answer.vectors[0]
    return None


def _record(
    model: LanguageModel, owner: int, spent: Sequence[tuple[Sequence[str], int | None]]
) -> None:
    """Record the usage of a job's requests as one call."""
    texts = [text for some, _tokens in spent for text in some]
    counts = [tokens for _texts, tokens in spent]
    tokens = None if None in counts else sum(filter(None, counts))
    embedding.record(model, owner, texts, tokens)
