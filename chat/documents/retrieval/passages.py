"""Passages: the places in documents that a question finds, by words and by meaning.

Both rankings are merged by reciprocal rank, which needs no scale that they share. Without an embedding model,
without pgvector, or while a document has no vectors yet, words alone find them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from chat.documents.models import Chunk, Document
from chat.documents.retrieval import vectors, words
from chat.models import LanguageModel

RANK_CONSTANT = 60  # of reciprocal rank fusion, as its authors have it
CANDIDATES = 50  # of each ranking
MOST_DOCUMENTS = 500  # of a question

# A question is answered by none of the passages if none has this part of the weight of its words, and none is so
# similar to it that this does not matter: SURE above the model's least similarity, below which words do not help.
# (`make eval` prints what these do.)
LEAST_COVERAGE = 0.34
SURE = 0.03


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk that was found. `first` and `last` are positions of blocks, `start` and `end` characters of one."""

    document: UUID
    name: str
    first: int
    last: int
    start: int | None
    end: int | None
    label: str
    page: int | None
    sent_at: datetime | None
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """The passages of a question, best first. `is_relevant`: at least one may answer it.

    `similarity` is the highest one (None without vectors), `coverage` the greatest part of the question's words.
    """

    passages: list[Passage]
    is_relevant: bool
    coverage: float = 0.0
    similarity: float | None = None


@dataclass(frozen=True, slots=True)
class QueryVector:
    """The vector of a question, and the model that made it."""

    model: LanguageModel
    numbers: Sequence[float]


def search(
    documents: Iterable[UUID],
    question: str,
    k: int = 5,
    *,
    owner: int,
    vector: QueryVector | None = None,
) -> Found:
    """Return the k best passages in those of the documents that belong to the owner and are not deleted.

    Documents that have no more than k chunks in all are returned whole, whatever the question.
    `vector` is that of the question (chat.documents.retrieval.embedding.of_question); None searches words alone.
    """
    rows = Document.objects.filter(pk__in=list(documents)[:MOST_DOCUMENTS], owner=owner)
    names: dict[UUID, str] = {}
    chunks = 0
    for pk, name, count in rows.values_list("pk", "name", "index__chunks"):
        if count:
            names[pk] = name
            chunks += count
    if not names:
        return Found([], is_relevant=False)
    matches = words.find(owner, [*names], chunks, question, CANDIDATES)
    near = (
        vectors.near([*names], chunks, vector.model, vector.numbers, CANDIDATES)
        if vector is not None and vectors.has_column()
        else []
    )
    rankings = [[one.id for one in matches], [id for id, _similarity in near]]
    if is_whole := chunks <= k:
        rest = Chunk.objects.filter(document__in=[*names]).order_by("document", "number")
        rankings.append([*rest.values_list("pk", flat=True)])
    ids = merge(rankings)[:k]
    coverage = max((one.coverage for one in matches), default=0.0)
    similarity = near[0][1] if near else None
    least = vector.model.min_similarity if vector is not None else None
    return Found(
        _passages(ids, names),
        is_whole or is_relevant(coverage, similarity, least),
        coverage,
        similarity,
    )


def merge(rankings: Iterable[Sequence[int]]) -> list[int]:
    """Merge rankings by reciprocal rank: each adds 1 / (RANK_CONSTANT + rank), with ranks from 1."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, id in enumerate(ranking, start=1):
            scores[id] = scores.get(id, 0.0) + 1 / (RANK_CONSTANT + rank)
    return sorted(scores, key=lambda id: (-scores[id], id))


def is_relevant(coverage: float, similarity: float | None, least: float | None) -> bool:
    """Return whether passages may answer a question."""
    if similarity is None:
        return coverage >= LEAST_COVERAGE
    if least is None or similarity >= least + SURE:
        return True
    return similarity >= least and coverage >= LEAST_COVERAGE


def _passages(ids: Sequence[int], names: dict[UUID, str]) -> list[Passage]:
    found = {
        one.pk: Passage(
            document=one.document_id,
            name=names[one.document_id],
            first=one.first,
            last=one.last,
            start=one.start,
            end=one.end,
            label=one.label,
            page=one.page,
            sent_at=one.sent_at,
            text=one.text,
        )
        for one in Chunk.objects.filter(pk__in=ids).defer("vector")
    }
    return [found[id] for id in ids if id in found]
