"""Reads JSON as providers send it, for data that a strict decoder refuses.

NaN and Infinity are numbers, halves of surrogate pairs stay in the text, and bytes that are not UTF-8
become U+FFFD.
"""

from __future__ import annotations

import json
import re
from typing import Any

BETWEEN = re.compile(r"\s*(?:data:\s*)*")  # events that a gateway put into one line

_decoder = json.JSONDecoder(strict=False)


def loads(data: bytes) -> Any:
    """Decode JSON. Raises ValueError for data that is no JSON at all."""
    values = loads_all(data)
    if len(values) != 1:
        raise ValueError(f"{len(values)} values of JSON")
    return values[0]


def loads_all(data: bytes) -> list[Any]:
    """Decode JSON values that follow each other. Raises ValueError as soon as one is no JSON.

    An end mark, [DONE], is the text "[DONE]".
    """
    text = data.decode("utf-8-sig", errors="replace")
    values: list[Any] = []
    at = _next(text, 0)
    while at < len(text):
        if text.startswith("[DONE]", at):
            value, at = "[DONE]", at + len("[DONE]")
        else:
            try:
                value, at = _decoder.raw_decode(text, at)
            except RecursionError as error:
                raise ValueError("too deeply nested") from error
        values.append(value)
        at = _next(text, at)
    return values


def _next(text: str, at: int) -> int:
    found = BETWEEN.match(text, at)
    return found.end() if found is not None else at
