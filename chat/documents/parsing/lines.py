"""The lines of a text file or of a text in a zip, in pieces of bounded length."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from chat.documents.parsing import encodings

PIECE = 32_768  # characters


class Lines:
    """The lines of a text, which can be read more than once, as (text without its end, whether a line begins here)."""

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        self.notes: dict[str, Any] = {}
        self._path = path
        self._member = options.get("member") or ""
        self._encoding = options.get("encoding") or "utf-8-sig"

    def __iter__(self) -> Iterator[tuple[str, bool]]:
        with self._open() as file:
            is_start = True
            while piece := file.readline(PIECE):
                is_end = piece.endswith("\n")
                yield (piece[:-1] if is_end else piece), is_start
                is_start = is_end

    @contextmanager
    def _open(self) -> Iterator[TextIO]:
        with encodings.opened(Path(self._path), self._member) as raw:
            yield io.TextIOWrapper(raw, encoding=self._encoding, errors="replace")
