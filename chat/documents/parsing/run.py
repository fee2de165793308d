"""The entry points of the sandbox: the format of a file, and its blocks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from chat.documents.parsing import detect as detection
from chat.documents.parsing.errors import ParseError
from chat.documents.parsing.pieces import storable
from chatproject.lib.sandbox import Refused

PARSERS = {
    name: f"chat.documents.parsing.{name}"
    for name in ("whatsapp", "telegram", "text", "markdown", "pdf", "docx")
}
CHATS = ("whatsapp", "telegram")
MAX_SENDER = 200


def detect(argument: dict[str, Any]) -> dict[str, Any]:
    """Return the format and the options of the file `path`; raises Refused with the code of a reason."""
    try:
        return detection.detect(argument)
    except ParseError as error:
        raise Refused(error.code, **error.details) from error


def parse(argument: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the blocks of the file `path` of a `format`, with the `options` of `detect`.

    Between them are blocks of kind `progress`, and the last one, of kind `end`, has the `details` and the
    `statistics` of the whole. Raises Refused: `blocks` and `characters` are the most that the file may have.
    """
    format, options = argument["format"], argument["options"]
    parser = importlib.import_module(PARSERS[format])
    statistics = _statistics(format)
    counts: dict[str, int] = {}
    notes: dict[str, Any] = {}
    position = characters = 0
    try:
        for block in parser.parse(argument["path"], options):
            kind = block["kind"]
            if kind == "progress":
                yield block
                continue
            if kind == "notes":
                notes |= block["notes"]
                continue
            block["text"] = storable(block["text"])
            if block.get("sender"):
                block["sender"] = storable(block["sender"])[:MAX_SENDER]
            block["position"] = position
            position += 1
            characters += len(block["text"])
            if position > argument["blocks"] or characters > argument["characters"]:
                raise ParseError("too_long")
            counts[kind] = counts.get(kind, 0) + 1
            if statistics is not None:
                statistics.add(block)
            yield block
    except ParseError as error:
        raise Refused(error.code, **error.details) from error
    if options.get("encoding_guessed"):
        notes["encoding_guessed"] = options["encoding"]
    if options.get("left_out"):
        notes["files_left_out"] = options["left_out"]
    yield {
        "kind": "end",
        "details": {"blocks": position, "characters": characters, "counts": counts, "notes": notes},
        "statistics": statistics.result() if statistics is not None else None,
    }


def _statistics(format: str) -> Any:
    """Return a collector of the statistics of a chat, None for other documents."""
    if format in CHATS:
        from chat.documents.statistics.chats import ChatStatistics

        return ChatStatistics()
    return None
