"""Vectors of texts for documents, from the model of the catalogue that is marked for them.

The operator pays: the cost of each call is recorded as absorbed, with the purpose `embed`.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from django.conf import settings

from billing.metering import pricing, usage
from billing.metering.pricing import Tokens
from billing.models import UsageRecord
from billing.models.usage import Purpose
from chat.documents.retrieval import vectors
from chat.documents.retrieval.passages import QueryVector
from chat.llm.connections import current_connections, load, opened
from chat.llm.embeddings import SIZES, EmbeddingRequest, embed
from chat.llm.errors import ProviderError, ProviderMalformed
from chat.llm.tokens import typical_tokens
from chat.models import LanguageModel, Provider, new_id
from chatproject.lib import db

logger = logging.getLogger(__name__)

QUESTION_SECONDS = 10.0  # with all tries; then words alone find passages
MOST_QUESTION = 2_000  # characters
SPARE_BYTES = 100_000  # of an answer, beside its vectors


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of texts in their order, and the tokens that the provider counted, if it did."""

    vectors: list[array[float]]
    tokens: int | None


def provider_of(model: LanguageModel) -> Provider:
    """Return the row of the provider that serves a model."""
    return model.provider or Provider.objects.filter(base_url="").first() or Provider()


def request_of(model: LanguageModel, texts: Sequence[str], seconds: float) -> EmbeddingRequest:
    """Return the request for the vectors of some texts, whose prefix is before them already."""
    size = int(model.dimensions or 0)
    return EmbeddingRequest(
        model=model.provider_model,
        inputs=list(texts),
        encoding="float",
        dimensions=None,
        most_bytes=len(texts) * (size * SIZES["float"] + 200) + SPARE_BYTES,
        seconds=seconds,
    )


def decoded(raw: Sequence[msgspec.Raw], model: LanguageModel) -> list[array[float]]:
    """Return vectors as numbers. Raises ProviderMalformed if one has another size than the model's."""
    found = [array("f", msgspec.json.decode(one, type=list[float])) for one in raw]
    if any(len(one) != model.dimensions for one in found):
        raise ProviderMalformed(
            f"embeddings: vectors of {len(found[0])} numbers, and the model's row has {model.dimensions}"
        )
    return found


async def of_question(question: str, *, user_id: int) -> QueryVector | None:
    """Return the vector of a question; None without a model, without pgvector, or if its provider fails."""
    model = await db.run(_model)
    text = question[:MOST_QUESTION].strip()
    if model is None or not text:
        return None
    prefixed = f"{model.query_prefix}{text}"
    provider = await db.run(provider_of, model)
    try:
        await asyncio.to_thread(load)
        async with asyncio.timeout(QUESTION_SECONDS):
            with current_connections().use(provider) as connection:
                answer = await embed(connection, request_of(model, [prefixed], QUESTION_SECONDS))
        numbers = decoded(answer.vectors, model)[0]
    except (ProviderError, TimeoutError) as error:
        cause = getattr(error, "detail", "")  # of a time limit there is none
        logger.warning("documents are searched by words alone: %s: %s", type(error).__name__, cause)
        return None
    await db.run(record, model, user_id, [prefixed], answer.tokens)
    return QueryVector(model, numbers)


def _model() -> LanguageModel | None:
    return vectors.model() if vectors.has_column() else None


async def of_passages(
    model: LanguageModel, provider: Provider, texts: Sequence[str], seconds: float
) -> Embedded:
    """Return the vectors of passages, on a connection of its own. Raises ProviderError and TimeoutError."""
    await asyncio.to_thread(load)
    connection = opened(provider, max_retries=2, wait_limit=seconds)
    try:
        async with asyncio.timeout(seconds):
            prefixed = [f"{model.passage_prefix}{text}" for text in texts]
            answer = await embed(connection, request_of(model, prefixed, seconds))
    finally:
        await connection.close()
    return Embedded(decoded(answer.vectors, model), answer.tokens)


def record(model: LanguageModel, user_id: int, texts: Sequence[str], tokens: int | None) -> None:
    """Record the usage of a call; nothing is charged."""
    if not settings.BILLING:
        return
    source = UsageRecord.Source.COUNTED if tokens is None else UsageRecord.Source.PROVIDER
    counted = tokens if tokens is not None else sum(typical_tokens(text) for text in texts)
    spent = Tokens.reported(input=counted)
    price = pricing.in_force(model.provider_model)
    cost = pricing.cost(price, spent) if price else 0
    usage.record(
        run_id=new_id(),  # a call of its own, as one of the API
        attempt=1,
        purpose=Purpose.EMBED,
        user_id=user_id,
        model=model.provider_model,
        price_id=price.pk if price else None,
        tokens=spent,
        source=source,
        cost=cost,
        charged=0,
        shortfall=0,
        absorbed=cost,
        finish=UsageRecord.Finish.COMPLETE,
    )
