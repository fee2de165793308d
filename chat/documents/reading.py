"""Reading an uploaded document: a sandboxed parser streams its blocks, and one transaction stores all of them.

The blocks are spooled to a private file first, so that the transaction is short, and a parser that fails, or a
worker that is killed, leaves no rows.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from uuid import UUID

import msgspec
from django.conf import settings
from django.db import connection, transaction

from chat.documents import binding, languages, storage, tracking
from chat.documents.datasets import store as tables
from chat.documents.datasets.errors import TableRefused
from chat.documents.models import Block, Chunk, Document, DocumentIndex
from chat.documents.tracking import Progress, Superseded
from chatproject.lib import private_files, sandbox
from chatproject.lib.sandbox import Limits, SandboxError

logger = logging.getLogger(__name__)

BATCH = 5_000  # blocks of one COPY
MAX_BLOCKS = 1_000_000
MAX_CHARACTERS = 120_000_000
EXPANSION = 6  # of the size of a file to its text, at most expected: for the progress alone

COPY = """
COPY documents_block (document_id, position, kind, sender, sent_at, page, headings, text, extra) FROM STDIN
"""
ENCODER = msgspec.json.Encoder()


def run(document_id: UUID, attempt: int) -> None:
    """Read a document and store what it has, unless another job has claimed this attempt."""
    document = tracking.claim(document_id, attempt)
    if document is None:
        return
    progress = Progress(document)
    try:
        if document.kind == Document.Kind.TABLE:
            # One call without progress: the clock begins no other attempt before its time is over.
            progress.expect(settings.TABLE_BUILD_SECONDS)
            with storage.local(document.file) as path:
                tables.build(document, path)
            progress.end(details={})
        else:
            _read(document, progress)
        progress.announce()
        binding.index_if_bound(document)
    except Superseded:
        logger.info("%s was deleted, or left to another attempt", document)
    except TableRefused as error:
        logger.info("%s has no tables: %s", document, error.code)
        _fail(document, progress, error.code, error.details)
    except SandboxError as error:
        reason = error.reason if error.code == "failed" else error.code
        logger.info("%s cannot be read: %s", document, error)
        _fail(document, progress, reason, error.details)
    except FileNotFoundError:
        logger.warning("the file of %s is missing: is PRIVATE_ROOT shared?", document)
        _fail(document, progress, "file_missing", {})


def _fail(document: Document, progress: Progress, reason: str, details: dict[str, Any]) -> None:
    try:
        progress.fail(reason, details)
    except Superseded:
        logger.info("%s was deleted meanwhile", document)


def _read(document: Document, progress: Progress) -> None:
    spooled = private_files.new_name()
    try:
        with private_files.writing(spooled) as file:
            end = _spool(document, progress, file)
        with transaction.atomic():
            # The row first: another attempt, or a deletion, waits for this transaction, or has come before it.
            progress.end(
                details=end["details"],
                statistics=end["statistics"],
                language=languages.of_text(end["sample"]),
                index_status=Document.IndexStatus.NONE,
            )
            for kind in (Block, Chunk, DocumentIndex):  # of an earlier reading
                kind.objects.filter(document=document).delete()
            with private_files.path(spooled).open("rb") as lines:
                _store(document, lines)
    finally:
        private_files.remove(spooled)


def _spool(document: Document, progress: Progress, file: IO[bytes]) -> dict[str, Any]:
    """Write the blocks of a document as lines of JSON; return the last frame of the parser with a `sample` of the text.

    Raises SandboxError, Superseded, FileNotFoundError.
    """
    end: dict[str, Any] = {}
    characters = 0
    sample: list[str] = []
    with storage.local(document.file) as path, closing(_blocks(document, path)) as blocks:
        for block in blocks:
            kind = block["kind"]
            if kind == "end":
                end = block
            elif kind == "progress":
                progress.reach(block["percent"])
            else:
                if characters < languages.SAMPLE and kind != Block.Kind.SYSTEM:
                    sample.append(block["text"][: languages.SAMPLE])
                file.write(ENCODER.encode(block))
                file.write(b"\n")
                characters += len(block["text"])
                if document.format not in (Document.Format.PDF, Document.Format.DOCX):
                    progress.reach(100 * characters // (document.size + 1))
                else:
                    progress.reach(0)
    return end | {"sample": "\n".join(sample)}


def _blocks(document: Document, path: Path) -> Generator[dict[str, Any], None, None]:
    if not path.is_file():
        raise FileNotFoundError(document.file)
    seconds = settings.DOCUMENT_SECONDS
    limits = Limits(
        memory=settings.DOCUMENT_MEMORY_BYTES,
        seconds=seconds,
        cpu=seconds,
        output=4 * MAX_CHARACTERS,
        nice=5,
    )
    argument = {
        "path": str(path),
        "format": document.format,
        "options": document.options | {"pages": settings.DOCUMENT_MAX_PAGES},
        "blocks": MAX_BLOCKS,
        "characters": MAX_CHARACTERS,
    }
    return sandbox.lines("chat.documents.parsing.run:parse", argument, limits, readable=[path])


def _store(document: Document, lines: IO[bytes]) -> None:
    decoder = msgspec.json.Decoder(dict[str, Any])
    rows: list[tuple[Any, ...]] = []
    for line in lines:
        rows.append(_row(document, decoder.decode(line)))
        if len(rows) == BATCH:
            _copy(rows)
            rows = []
    _copy(rows)


def _row(document: Document, block: dict[str, Any]) -> tuple[Any, ...]:
    sent_at = block.get("sent_at")
    extra = block.get("extra")
    return (
        document.pk,
        block["position"],
        block["kind"],
        block.get("sender") or "",
        datetime.fromisoformat(sent_at).replace(tzinfo=UTC) if sent_at else None,
        block.get("page"),
        ENCODER.encode(block.get("headings") or []).decode(),
        block["text"],
        ENCODER.encode(extra).decode() if extra else None,
    )


def _copy(rows: list[tuple[Any, ...]]) -> None:
    if rows:
        with connection.cursor() as cursor, cursor.copy(COPY) as copy:
            for row in rows:
                copy.write_row(row)
