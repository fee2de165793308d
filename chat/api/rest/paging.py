"""Pages of lists that are read whole."""

from __future__ import annotations

from typing import Any

from chat.api.rest.errors import Problem


def page(items: list[dict[str, Any]], cursor: str, limit: int) -> dict[str, Any]:
    """Return a page of a list; its cursor is the number of the items before. Raises Problem."""
    begin = number(cursor) or 0
    end = begin + limit
    return {"items": items[begin:end], "next": str(end) if end < len(items) else None}


def number(cursor: str) -> int | None:
    """Return the number that a cursor is, None for an empty one. Raises Problem."""
    if not cursor:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise Problem("invalid_cursor")
    return int(cursor)
