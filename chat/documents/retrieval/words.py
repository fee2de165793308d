"""The search for words in chunks: Postgres' full-text index, and weights of words as in BM25.

A chunk has the words as they are, their stems in the language that its frequent words indicate, and for scripts
without spaces pairs of characters (chat.conversations.search_words). A question is no list of words that all must
occur: each word of it counts by its rarity, and words that its language does not stem (stop words) do not count.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

from chat.conversations import search_words
from chat.documents.models import Chunk
from chatproject.lib.db import prepared

MOST_WORDS = 16  # of a question
MOST_CHARACTERS = 2_000  # of a question that are read
ABSENT_PAIR = 1 / 3  # weight of a pair of characters that no chunk has: most such pairs are no word
PAIR = re.compile(f"'[{search_words.SPACELESS}]{{2}}'")
FEW_DOCUMENTS = (
    3  # up to these the index intersects with each: more would take longer than to filter
)
FREQUENT = 1_000  # chunks: a word that more of them have says little

INSERT = """
INSERT INTO documents_chunk
  (document_id, number, first, last, start, "end", label, page, sent_at, text, vector)
SELECT %(document)s, part.number, part.first, part.last, part.start, part.ending, part.label, part.page,
  part.sent_at, part.text,
  to_tsvector('simple', part.words) || to_tsvector(part.language::regconfig, part.words)
  || array_to_tsvector(string_to_array(part.characters, ' ')) || array_to_tsvector(%(scopes)s::text[])
FROM unnest(%(numbers)s::int[], %(firsts)s::int[], %(lasts)s::int[], %(starts)s::int[], %(ends)s::int[],
  %(labels)s::text[], %(pages)s::int[], %(times)s::timestamptz[], %(texts)s::text[], %(words)s::text[],
  %(languages)s::text[], %(characters)s::text[])
  AS part(number, first, last, start, ending, label, page, sent_at, text, words, language, characters)
"""


def scope_of(document: UUID) -> str:
    """Return the lexeme of a document: the index of words then intersects a frequent word with it."""
    return f"document={document.hex}"


def scope_of_owner(owner: int) -> str:
    """Return the lexeme of all documents of a user, which replaces those of many documents."""
    return f"owner={owner}"


def insert(document: UUID, owner: int, chunks: Sequence[Chunk]) -> None:
    """Insert chunks of a document of the owner with their words."""
    words = [search_words.normalize(one.text) for one in chunks]
    prepared.change(
        INSERT,
        {
            "document": document,
            "scopes": [scope_of(document), scope_of_owner(owner)],
            "numbers": [one.number for one in chunks],
            "firsts": [one.first for one in chunks],
            "lasts": [one.last for one in chunks],
            "starts": [one.start for one in chunks],
            "ends": [one.end for one in chunks],
            "labels": [one.label for one in chunks],
            "pages": [one.page for one in chunks],
            "times": [one.sent_at for one in chunks],
            "texts": [one.text for one in chunks],
            "words": words,
            "languages": [search_words.language_of(each) for each in words],
            "characters": [" ".join(search_words.characters_of(each)) for each in words],
        },
    )


STEMS = """
SELECT word, array_agg(DISTINCT stem) FILTER (WHERE stem IS NOT NULL),
  bool_or(language = %(language)s::regconfig AND stem IS NULL)
FROM unnest(%(words)s::text[]) AS word
CROSS JOIN unnest(%(languages)s::regconfig[]) AS language
LEFT JOIN LATERAL unnest(tsvector_to_array(to_tsvector(language, word))) AS stem ON true
GROUP BY word
"""

# Each word for itself: the index of words is read up to FREQUENT chunks of the documents.
HITS = """
SELECT word.number, hit.id FROM unnest(%(queries)s::text[]) WITH ORDINALITY AS word(query, number)
CROSS JOIN LATERAL (
  SELECT id FROM documents_chunk
  WHERE vector @@ word.query::tsquery AND document_id = ANY(%(documents)s) LIMIT %(most)s
) AS hit
"""


@dataclass(frozen=True, slots=True)
class Match:
    """A chunk that has words of a question. `coverage` is the part of the question's weight that it has, 0 to 1."""

    id: int
    coverage: float


def find(
    owner: int, documents: Sequence[UUID], chunks: int, question: str, most: int
) -> list[Match]:
    """Return the chunks of the owner's documents with the rarest words of a question, best first.

    `chunks` is the number of all.
    """
    queries = queries_of(question)
    if not queries or not documents:
        return []
    is_few = len(documents) <= FEW_DOCUMENTS
    scopes = [scope_of(one) for one in documents] if is_few else [scope_of_owner(owner)]
    scope = " | ".join(f"'{one}'" for one in scopes)
    values = {
        "queries": [f"({query}) & ({scope})" for query in queries],
        "documents": list(documents),
        "most": FREQUENT + 1,
    }
    rows = prepared.all(HITS, values)
    found: dict[int, set[int]] = defaultdict(set)
    for number, id in rows:
        found[number].add(id)
    weights = {
        number: rarity(len(found[number]), chunks)
        * (ABSENT_PAIR if PAIR.fullmatch(query) and not found[number] else 1)
        for number, query in enumerate(queries, start=1)
    }
    total = sum(weights.values())
    scores: dict[int, float] = defaultdict(float)
    is_rare = any(0 < len(ids) <= FREQUENT for ids in found.values())
    for number, ids in found.items():
        if len(ids) <= FREQUENT or not is_rare:
            for id in ids:
                scores[id] += weights[number]
    best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [Match(id, score / total) for id, score in best]


def rarity(count: int, chunks: int) -> float:
    """Return the weight of a word that `count` of the chunks have (BM25's inverse document frequency).

    A word that none has weighs as much as one that a single chunk has: else few chunks could not cover a question.
    """
    count = max(count, 1)
    chunks = max(chunks, count)
    return math.log(1 + (chunks - count + 0.5) / (count + 0.5))


def queries_of(question: str) -> list[str]:
    """Return a query of Postgres for each word of a question that may say something, at most MOST_WORDS.

    Lexemes are letters and digits alone, so nothing in a question can be an operator.
    """
    normalized = search_words.normalize(question[:MOST_CHARACTERS])
    spaced = search_words.RUN.sub(lambda run: f" {run.group()} ", normalized)
    words = [*dict.fromkeys(spaced.split())]
    plain = [word for word in words if not search_words.RUN.fullmatch(word)]
    languages = list(search_words.LANGUAGES)
    language = search_words.language_of(normalized)
    stems = {
        word: (found or [], is_stop)
        for word, found, is_stop in prepared.all(
            STEMS, {"words": plain, "languages": languages, "language": language}
        )
    }
    queries: list[str] = []
    for word in words:
        if word in stems:
            found, is_stop = stems[word]
            if not is_stop:
                queries.append(" | ".join(f"'{one}'" for one in {word, *found}))
        elif len(word) == 1:
            queries.append(f"'{word}'")
        else:
            queries += [f"'{a}{b}'" for a, b in pairwise(word)]
    return queries[:MOST_WORDS]
