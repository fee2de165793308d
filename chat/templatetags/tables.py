"""Templates: tables of data, and the drawings of charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import template
from django.utils.html import escape, format_html
from django.utils.safestring import SafeString, mark_safe

from chat.documents.datasets import words

register = template.Library()

NUMBERS = {"integer", "number"}
SHOWN_ROWS = 50
PLACES = 6  # after the point


@register.simple_tag
def data_rows(columns: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[Any]]) -> SafeString:
    """Render the first rows of a table: by hand, since a page may have thousands of cells."""
    starts = [
        '<td class="number">' if column["type"] in NUMBERS else '<td dir="auto">'
        for column in columns
    ]
    lines = []
    for row in rows[:SHOWN_ROWS]:
        cells = "".join(
            f"{start}{escape(cell(value))}</td>" for start, value in zip(starts, row, strict=False)
        )
        lines.append(f"<tr>{cells}</tr>")
    return mark_safe("".join(lines))  # noqa: S308 # of escaped cells


@register.filter
def cell(value: Any) -> str:
    """Return a value as a cell shows it; numbers as computers write them, since 2024 may be a year."""
    if value is None or value == "":
        return ""
    if isinstance(value, float):
        return (
            f"{value:.{PLACES}f}".rstrip("0").rstrip(".")
            if 1e-4 < abs(value) < 1e15
            else repr(value)
        )
    return str(value)


@register.simple_tag
def drawing(data: Mapping[str, Any]) -> SafeString:
    """Return the drawing of a chart as an image with words; it was sanitised when it was stored."""
    label = f"{data['title']}. {data['description']}"
    start = format_html('<svg role="img" aria-label="{}" ', label)
    return mark_safe(start + str(data["svg"]).removeprefix("<svg "))  # noqa: S308


@register.simple_tag
def preview_columns(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the columns of a table whose first rows are stored."""
    width = len(table["preview"][0]) if table["preview"] else 0
    return list(table["columns"][:width])


@register.simple_tag
def notes_of(table: Mapping[str, Any]) -> list[str]:
    """Return the notes on how a table was read, in words."""
    return [text for one in table["notes"] if (text := words.note(one))]


@register.simple_tag
def type_name(column: Mapping[str, Any]) -> str:
    """Return the type of a column in words, with its unit."""
    name = str(words.TYPES.get(column["type"], column["type"]))
    return f"{name} ({column['unit']})" if column.get("unit") else name
