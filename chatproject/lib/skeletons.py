"""Skeletons: templates that are rendered once, with holes for the values that differ (donut caching).

A hole is a UUID, which a template prints unchanged, also in an address. Filling a skeleton joins its pieces
with the values in one pass, so a value that looks like a hole stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from uuid import UUID

from django.utils.safestring import SafeString

_PREFIX = "5ca1ab1e-0000-4000-8000-"
_HOLE = re.compile(f"{_PREFIX}([0-9a-f]{{12}})")

HOLES = tuple(UUID(f"{_PREFIX}{number:012x}") for number in range(24))


class Skeleton:
    """HTML that was rendered with HOLES in place of values; `holes` are the numbers of those that it has."""

    __slots__ = ("_numbers", "_pieces", "holes")

    def __init__(self, html: str) -> None:
        self._pieces = _HOLE.split(html)
        self._numbers = [int(number, 16) for number in self._pieces[1::2]]
        self.holes = frozenset(self._numbers)

    def fill(self, values: Mapping[int, str]) -> SafeString:
        """Return the HTML with `values[n]`, escaped by the caller, in place of `HOLES[n]`."""
        pieces = self._pieces.copy()
        pieces[1::2] = [values[number] for number in self._numbers]
        return SafeString("".join(pieces))
