"""The failure of a parser, by a code that the pages explain."""

from __future__ import annotations

from typing import Any


class ParseError(Exception):
    """A document that cannot be parsed; `details` are stored beside the code."""

    def __init__(self, code: str, **details: Any) -> None:
        super().__init__(code)
        self.code = code
        self.details = details
