"""The evaluation of questions over documents (`make eval`), with the embedding model of `make run`.

Each question is asked over all documents together. `recall@5` is the part of the answerable ones of which one of five
passages has the answer, and of which the search did not say that nothing was found; `refusals` is the part of the
unanswerable ones of which it said so.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass

import pytest
from django.core.management import call_command

from billing.models import UsageRecord
from chat.documents.models import Block, Document, DocumentIndex
from chat.documents.retrieval import embedding, indexing, jobs, passages
from chat.llm.connections import close_connections
from chatproject.local.embeddings import EmbeddingServer
from tests.evaluation.documents import FOLDER, blocks_of

pytestmark = [pytest.mark.evaluation, pytest.mark.django_db(transaction=True)]

LEAST_RECALL, LEAST_REFUSALS = 0.85, 0.9


@dataclass(frozen=True)
class Question:
    language: str
    document: str
    answer: str
    text: str


def questions() -> list[Question]:
    """Return the questions of the set."""
    lines = (FOLDER.parent / "questions.tsv").read_text(encoding="utf-8").splitlines()
    return [Question(*line.split("\t")) for line in lines if not line.startswith("#")]


@pytest.fixture
def model(settings):
    server = EmbeddingServer()
    server.start()
    settings.EMBEDDINGS_BASE_URL = server.url
    call_command("create_catalogue")
    yield
    server.stop()


@pytest.fixture
def documents(owner) -> dict[str, Document]:
    found = {}
    for number, path in enumerate(sorted(FOLDER.iterdir())):
        kind = "chat" if path.suffix == ".chat" else "text"
        document = Document.objects.create(
            owner=owner, name=path.name, format="text", kind=kind, status="ready",
            size=1, sha256=f"{number:064}", file=f"{number}",
        )  # fmt: skip
        Block.objects.bulk_create(Block(document=document, **vars(one)) for one in blocks_of(path))
        found[path.name] = document
    return found


class Score:
    """Counts the questions by kind that had the wanted outcome."""

    def __init__(self) -> None:
        self.right: dict[str, int] = defaultdict(int)
        self.all: dict[str, int] = defaultdict(int)

    def add(self, kind: str, is_right: bool) -> None:
        self.all[kind] += 1
        self.right[kind] += is_right

    def of(self, kind: str) -> float:
        return self.right[kind] / self.all[kind]


def judge(question: Question, found: passages.Found, score: Score) -> bool:
    """Add a question's outcome to the score; return whether it is the wanted one."""
    if question.language == "near":
        score.add("near", not found.is_relevant)
        return True
    if not question.document:
        score.add("refusals", not found.is_relevant)
        return not found.is_relevant
    has_answer = any(
        one.name == question.document and question.answer in one.text for one in found.passages
    )
    score.add("recall", has_answer and found.is_relevant)
    score.add(question.language, has_answer and found.is_relevant)
    score.add("found", has_answer)
    return has_answer and found.is_relevant


async def ask_all(documents: dict[str, Document]) -> tuple[Score, Score]:
    """Index the documents and ask all questions, with vectors and by words alone."""
    owner = next(iter(documents.values())).owner_id
    ids = [one.pk for one in documents.values()]
    for one in await asyncio.to_thread(indexing.request, ids):
        await jobs.index(str(one))
    hybrid, words = Score(), Score()
    for question in questions():
        vector = await embedding.of_question(question.text, user_id=owner)
        assert vector is not None
        for score, given in ((hybrid, vector), (words, None)):
            found = await asyncio.to_thread(
                passages.search, ids, question.text, owner=owner, vector=given
            )
            if not judge(question, found, score) and given is not None:
                figures = f"similarity {found.similarity or 0:.3f}, coverage {found.coverage:.2f}"
                print(f"  {question.language} {question.text} ({figures})")
    await close_connections()
    return hybrid, words


async def test_questions_find_their_passages(model, documents):
    hybrid, words = await ask_all(documents)
    indexes = [one async for one in DocumentIndex.objects.all()]
    chunks = sum(one.chunks for one in indexes)
    assert all(one.embedded == one.chunks for one in indexes)
    assert await UsageRecord.objects.filter(purpose="embed", charged=0).aexists()
    for name, score in (("words alone: ", words), ("", hybrid)):
        print(
            f"{name}recall@5={score.of('recall'):.3f} refusals={score.of('refusals'):.3f}"
            f" (found={score.of('found'):.3f}, near misses refused={score.of('near'):.3f})"
        )
    languages = {one.language for one in questions() if one.document}
    by_language = ", ".join(f"{one} {hybrid.of(one):.2f}" for one in sorted(languages))
    print(f"{hybrid.all['recall']} questions, {chunks} chunks; by language: {by_language}")
    assert hybrid.of("recall") >= LEAST_RECALL
    assert hybrid.of("refusals") >= LEAST_REFUSALS
