"""Reads JSON as providers send it, for data that a strict decoder refuses."""

from __future__ import annotations

import json
from typing import Any


def loads(data: bytes) -> Any:
    """Decode JSON. Raises ValueError for data that is no JSON at all.

    NaN and Infinity are numbers, halves of surrogate pairs stay in the text, and bytes that are not
    UTF-8 become U+FFFD.
    """
    try:
        return json.loads(data.decode("utf-8-sig", errors="replace"), strict=False)
    except RecursionError as error:
        raise ValueError("too deeply nested") from error
