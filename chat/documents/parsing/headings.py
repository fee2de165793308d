"""The headings above a place in a text."""

from __future__ import annotations

from typing import Any

DEEPEST = 6


class Headings:
    """The path of headings, from the outermost one."""

    def __init__(self) -> None:
        self._open: list[tuple[int, str]] = []

    @property
    def path(self) -> list[str]:
        return [title for _level, title in self._open]

    def block(self, level: int, title: str) -> dict[str, Any]:
        """Return the block of a heading, which is above all that follows, up to one of its level."""
        self._open = [one for one in self._open if one[0] < level][: DEEPEST - 1]
        self._open.append((level, title))
        return {
            "kind": "heading",
            "text": title,
            "headings": self.path,
            "extra": {"level": level},
        }
