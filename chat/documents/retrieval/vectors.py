"""The vectors of chunks, where the database has pgvector: their column, its index, and the search in them.

Nothing else depends on the extension. A database without it migrates and searches by words alone; once it is there,
`prepare` (from the clock, or `manage.py prepare_vectors`) adds the column, and documents get their vectors at their
next question. The column takes vectors of any size, so a change of the model needs no change of the table.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from django.db import DatabaseError, connection, transaction

from chat.models import LanguageModel
from chat.models.catalogue import ModelKind
from chatproject.lib.db import prepared

logger = logging.getLogger(__name__)

OLDEST = (0, 7)  # of pgvector: half-precision vectors, which have indexes up to 4,000 numbers
ITERATIVE = (0, 8)  # scans an index further while a condition removes what it finds

COLUMN = "ALTER TABLE documents_chunk ADD COLUMN IF NOT EXISTS embedding halfvec"
LOCK_TIMEOUT = (
    "2s"  # the column is added at once, but waits for running statements, and others for it
)

# Up to so many chunks in the documents of a question each vector is compared: exact, and a few milliseconds. An
# index over all users would skip most of what it finds. Above, the index of nearest neighbours is used.
EXACT = 5_000
INDEXED_FROM = 5_000  # vectors of a model, from which on its index is worth its upkeep
EF_SEARCH = 120

STATE = """
SELECT (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
  (SELECT default_version FROM pg_available_extensions WHERE name = 'vector'),
  EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('documents_chunk')
    AND attname = 'embedding' AND NOT attisdropped)
"""


@dataclass(frozen=True, slots=True)
class State:
    """The installed version of pgvector, the version that could be installed, and whether the column exists."""

    installed: str | None
    available: str | None
    has_column: bool


def state() -> State:
    """Return the state of the extension in this database."""
    return State(*prepared.all(STATE, {})[0])


def has_column() -> bool:
    """Return whether chunks can have vectors."""
    return state().has_column


def version_of(text: str) -> tuple[int, ...]:
    """Return a version as numbers; what is no number counts as 0."""
    return tuple(int(part) if part.isdecimal() else 0 for part in text.split(".")[:3])


def prepare() -> State:
    """Create the extension and the column where possible; return the state afterwards."""
    found = state()
    version = found.installed or found.available
    if found.has_column or version is None or version_of(version) < OLDEST:
        return found
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
            cursor.execute(COLUMN)
    except DatabaseError as error:  # without the right to create it, or the table is busy
        logger.warning("documents have no vectors yet: %s", str(error).splitlines()[0])
    return state()


def model() -> LanguageModel | None:
    """Return the model that makes vectors of documents, None without one."""
    rows = LanguageModel.objects.select_related("provider").filter(
        documents=True, enabled=True, kind=ModelKind.EMBEDDING
    )
    found = rows.first()
    if found is None or (found.provider is not None and not found.provider.enabled):
        return None
    return found


def index_name(model_id: int) -> str:
    """Return the name of the index of a model's vectors."""
    return f"documents_chunk_near_{int(model_id)}"


INDEXES = """
SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = to_regclass('documents_chunk') AND starts_with(c.relname, 'documents_chunk_near_')
"""


def indexes() -> dict[str, bool]:
    """Return the indexes of vectors, each with whether it is complete."""
    return dict(prepared.all(INDEXES, {}))


def maintain_index(*, least: int = INDEXED_FROM) -> str:
    """Create the index of the present model if it has many vectors, and drop those of others.

    Returns what was done, "" for nothing. Call it outside of a transaction: searches and indexing go on meanwhile.
    """
    current = model()
    if current is None or not has_column():
        return ""
    wanted = index_name(current.pk)
    present = indexes()
    with connection.cursor() as cursor:
        for name, is_valid in present.items():
            # One that was interrupted stays invalid: it costs upkeep and serves nothing.
            if name != wanted or not is_valid:
                cursor.execute(f'DROP INDEX CONCURRENTLY IF EXISTS "{name}"')
        if present.get(wanted):
            return ""
        count = prepared.all(
            "SELECT count(*) FROM (SELECT FROM documents_chunk WHERE embedded_by = %(model)s LIMIT %(least)s) AS first",
            {"model": current.pk, "least": least},
        )[0][0]
        if count < least:
            return ""
        cursor.execute("SET maintenance_work_mem = '256MB'")
        try:
            cursor.execute(
                f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {wanted} ON documents_chunk"
                f" USING hnsw ((embedding::halfvec({int(current.dimensions or 0)})) halfvec_cosine_ops)"
                f" WHERE embedded_by = {int(current.pk)}"
            )
        finally:
            cursor.execute("RESET maintenance_work_mem")
    return wanted


def literal(vector: Sequence[float]) -> str:
    """Return a vector in pgvector's text format."""
    return f"[{','.join(format(number, '.6g') for number in vector)}]"


NEAR = """
SELECT id, 1 - distance FROM (
  SELECT id, {expression} AS distance FROM documents_chunk
  WHERE embedded_by = {model} AND document_id = ANY(%(documents)s) AND vector_dims(embedding) = {size}
  ORDER BY {order} LIMIT %(most)s
) AS near ORDER BY distance, id
"""


def near(
    documents: Sequence[UUID], chunks: int, model: LanguageModel, vector: Sequence[float], most: int
) -> list[tuple[int, float]]:
    """Return the keys of the chunks whose vectors are most similar, with their cosine similarity, best first.

    `chunks` is the number of chunks that the documents have.
    """
    size = int(model.dimensions or 0)
    expression = f"embedding::halfvec({size}) <=> %(vector)s::halfvec({size})"
    values = {"documents": list(documents), "vector": literal(vector), "most": most}
    if chunks <= EXACT or not indexes().get(index_name(model.pk)):
        # The sum keeps Postgres from the index.
        sql = NEAR.format(
            expression=expression, model=int(model.pk), size=size, order=f"({expression}) + 0"
        )
        return prepared.all(sql, values)
    sql = NEAR.format(expression=expression, model=int(model.pk), size=size, order=expression)
    with transaction.atomic():
        settings = {"ef": str(EF_SEARCH)}
        scan = "set_config('hnsw.ef_search', %(ef)s, true)"
        if version_of(state().installed or "") >= ITERATIVE:
            scan += ", set_config('hnsw.iterative_scan', 'relaxed_order', true)"
        prepared.all(f"SELECT {scan}", settings)
        return prepared.all(sql, values)
