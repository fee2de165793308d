"""Times of questions over documents, with synthetic words and vectors.

    python -m bench retrieval [--chunks 100000] [--dimensions 384]

Fills a database of its own with the chunks of one user's documents, and a tenth as many of others, with vectors
around random topics. Questions are about one of the topics and have words of it. They are asked over all documents
and over one, with vectors and by words alone; the vector of a question is given, since its model's time is not that
of the search. Each time is compared to a sequential scan of all the same chunks (text by ILIKE, vectors exactly), and
the nearest chunks to those of the exact scan. `--most` fails above a 95th percentile in milliseconds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate
from uuid import UUID

from bench.database import own_database

PER_DOCUMENT = 2_000  # chunks
TOPICS = 500
QUESTIONS = 60
NOISE = 0.6  # of a vector, beside that of its topic
WORDS = 120  # of a chunk
VOCABULARY = 20_000
OF_TOPIC = 12  # words that a topic's chunks have often
QUESTION = "what does the {} say about {} and the {} of it"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--most", type=float, help="milliseconds of each 95th percentile")
    options = parser.parse_args(arguments)
    with own_database():
        world = World(options.dimensions)
        owner, documents = fill(world, options.chunks)
        slowest = report(world, owner, documents)
    if options.most is not None and slowest > options.most:
        sys.exit(f"The slowest was {slowest:.1f} ms, more than {options.most:.0f} ms.")


class World:
    """Topics with a direction and words of their own, and a vocabulary whose words differ in frequency."""

    def __init__(self, dimensions: int) -> None:
        self.chosen = random.Random(7)
        self.dimensions = dimensions
        self.topics = [self._direction() for _ in range(TOPICS)]
        self.noise = [self._direction() for _ in range(20 * TOPICS)]
        self.words = [f"w{number}ord" for number in range(VOCABULARY)]
        # As in texts: the n-th word is as frequent as 1/n.
        self.weights = [*accumulate(1 / (number + 1) for number in range(VOCABULARY))]
        self.of_topic = [self.chosen.sample(self.words[200:], OF_TOPIC) for _ in range(TOPICS)]

    def _direction(self) -> list[float]:
        return [self.chosen.gauss(0, 1) for _ in range(self.dimensions)]

    def vector(self, topic: int) -> array[float]:
        """Return a vector of length 1 around a topic."""
        noise = self.chosen.choice(self.noise)
        noisy = [one + NOISE * other for one, other in zip(self.topics[topic], noise, strict=True)]
        length = sum(one * one for one in noisy) ** 0.5
        return array("f", [one / length for one in noisy])

    def text(self, topic: int) -> str:
        """Return the text of a chunk about a topic."""
        usual = self.chosen.choices(self.words, cum_weights=self.weights, k=WORDS - 6)
        return " ".join(["the", *usual, *self.chosen.choices(self.of_topic[topic], k=5)])

    def question(self, topic: int) -> str:
        """Return a question about a topic."""
        return QUESTION.format(*self.chosen.sample(self.of_topic[topic], 3))


def fill(world: World, chunks: int) -> tuple[int, list[UUID]]:
    """Store chunks with vectors; return the user who has most of them, and the documents."""
    from django.db import connection

    from accounts.models import User
    from chat.documents.models import Chunk
    from chat.documents.retrieval import vectors
    from chat.models import LanguageModel

    LanguageModel.objects.create(
        name="Bench", provider_model="bench", kind="embedding", dimensions=world.dimensions,
        context_tokens=512, documents=True,
    )  # fmt: skip
    users = [User.objects.create_user(f"user{number}@example.org") for number in range(2)]
    index = next(one for one in Chunk._meta.indexes if one.name == "document_chunk_words")
    with connection.schema_editor() as editor:
        editor.remove_index(Chunk, index)  # made at once, it takes a fifth of the time
    documents = add_documents(world, users[0], chunks)
    add_documents(world, users[1], chunks // 10)
    with connection.schema_editor() as editor:
        editor.add_index(Chunk, index)
    begun = time.monotonic()
    made = vectors.maintain_index()
    print(f"made {made or 'no index'} in {time.monotonic() - begun:.0f} s")
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE documents_chunk")
    return int(users[0].pk), documents


def add_documents(world: World, owner: object, chunks: int) -> list[UUID]:
    """Store documents of PER_DOCUMENT chunks each."""
    from chat.documents.models import Chunk, Document, DocumentIndex
    from chat.documents.retrieval import indexing, vectors, words

    model = vectors.model()
    made: list[UUID] = []
    for begin in range(0, chunks, PER_DOCUMENT):
        count = min(PER_DOCUMENT, chunks - begin)
        document = Document.objects.create(
            owner=owner, name=f"Document {begin}", format="text", kind="text", size=1,
            sha256=f"{begin:064}", file=f"none-{begin}", status="ready", index_status="indexing",
        )  # fmt: skip
        work = indexing.Work(document.pk, document.owner_id, False, document.pk, model)
        DocumentIndex.objects.create(document=document, chunks=count, token=document.pk)
        topics = [world.chosen.randrange(TOPICS) for _ in range(count)]
        for start in range(0, count, indexing.STORED):
            part = topics[start : start + indexing.STORED]
            words.insert(
                document.pk,
                document.owner_id,
                [
                    Chunk(number=start + n, first=start + n, last=start + n, text=world.text(topic))
                    for n, topic in enumerate(part)
                ],
            )
        ids = list(document.chunks.order_by("number").values_list("pk", flat=True))
        indexing.store(work, ids, [world.vector(topic) for topic in topics])
        made.append(document.pk)
    return made


def report(world: World, owner: int, documents: Sequence[UUID]) -> float:
    """Print the times; return the slowest 95th percentile in milliseconds."""
    from django.db import connection

    from chat.documents.retrieval import passages, vectors
    from chat.documents.retrieval.passages import QueryVector

    model = vectors.model()
    assert model is not None
    topics = [world.chosen.randrange(TOPICS) for _ in range(QUESTIONS)]
    asked = [
        (world.question(topic), QueryVector(model, list(world.vector(topic)))) for topic in topics
    ]

    def search(number: int, scope: Sequence[UUID], has_vector: bool) -> None:
        question, vector = asked[number]
        given = vector if has_vector else None
        if not passages.search(scope, question, owner=owner, vector=given).passages:
            raise SystemExit(f"Nothing was found for {question!r}.")

    def scan(number: int) -> None:
        question, vector = asked[number]
        word = question.split()[3]
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off")
            cursor.execute(
                "SELECT id FROM documents_chunk WHERE document_id = ANY(%s) AND text ILIKE %s LIMIT 50",
                [list(documents), f"%{word}%"],
            )
            cursor.execute(
                "SELECT id FROM documents_chunk WHERE document_id = ANY(%s)"
                " ORDER BY (embedding <=> %s::halfvec) + 0 LIMIT 50",
                [list(documents), vectors.literal(vector.numbers)],
            )

    scans = timed(scan, 5)
    base = statistics.median(scans)
    print(f"{'':28}{'median':>10}{'p95':>10}{'scan':>10}{'ratio':>8}")
    slowest = 0.0
    for name, scope, has_vector in (
        ("all, words and vectors", documents, True),
        ("all, words alone", documents, False),
        ("one document, both", documents[:1], True),
        ("one document, words alone", documents[:1], False),
    ):
        times = timed(lambda n, s=scope, v=has_vector: search(n, s, v), QUESTIONS)  # type: ignore[misc]
        median, p95 = statistics.median(times), times[int(0.95 * len(times))]
        slowest = max(slowest, p95)
        ratio = base / median
        print(f"{name:28}{median:>7.1f} ms{p95:>7.1f} ms{base:>7.1f} ms{ratio:>7.0f}x")
    report_recall(documents, [vector for _question, vector in asked])
    return slowest


def report_recall(documents: Sequence[UUID], asked: Sequence[object]) -> None:
    """Print which part of the ten nearest chunks the index finds."""
    from chat.documents.retrieval import vectors
    from chat.documents.retrieval.passages import QueryVector

    hits = 0
    for one in asked:
        assert isinstance(one, QueryVector)
        near = [
            {id for id, _similarity in vectors.near(documents, size, one.model, one.numbers, 10)}
            for size in (0, vectors.EXACT + 1)
        ]
        hits += len(near[0] & near[1])
    print(f"of the ten nearest chunks the index finds {hits / (10 * len(asked)):.1%}")


def timed(call: Callable[[int], None], turns: int) -> list[float]:
    """Return sorted times in milliseconds, after two turns that are not counted."""
    times = []
    for turn in range(-2, turns):
        begun = time.perf_counter()
        call(max(turn, 0))
        if turn >= 0:
            times.append((time.perf_counter() - begun) * 1_000)
    return sorted(times)
