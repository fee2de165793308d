"""JSON as RFC 8259 defines it, without the constants that Python's reader also accepts."""

from __future__ import annotations

import json
from typing import Any

MAX_DIGITS = 1_000


def loads(text: str, *, unique_names: bool = False) -> Any:
    """Return the value of a JSON text.

    Raises ValueError for NaN, Infinity and text that is not JSON, and with `unique_names` for an object
    that has a name twice; RecursionError for one that is nested too deep. An integer of MAX_DIGITS or more
    is returned as a float.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name appears twice")
        return found

    def integer(digits: str) -> int | float:
        # Python refuses to convert long texts, with a ValueError as for text that is not JSON.
        return int(digits) if len(digits) < MAX_DIGITS else float(digits)

    return json.loads(
        text,
        parse_constant=refuse,
        parse_int=integer,
        object_pairs_hook=unique if unique_names else None,
    )
