"""Names of tables and columns for SQL, each one once."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_NAME = 60  # characters
FREE = re.compile(r"[^\w]+")
# Controls, and characters that turn or hide others: a name stands among the words of pages and queries.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def column_names(row: Iterable[str], width: int) -> list[str]:
    """Return names for `width` columns, each one once, whatever their case: those of a row, else numbered ones."""
    texts = [UNSEEN.sub("", " ".join(cell.split())) for cell in row][:width]
    given = [text[:MAX_NAME].strip().replace('"', "'") for text in texts]
    given += [""] * (width - len(given))
    return distinct([name or f"column_{number}" for number, name in enumerate(given, 1)])


def distinct(names: Iterable[str]) -> list[str]:
    """Return names of which none is another one, to SQL; repeated ones get a number."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        unique, number = name, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique.casefold())
        found.append(unique)
    return found


def table_name(title: str) -> str:
    """Return a name that SQL needs no quotation marks for."""
    name = FREE.sub("_", title.casefold()).strip("_")[:MAX_NAME].strip("_")
    return f"t_{name}" if not name or name[0].isdigit() else name
