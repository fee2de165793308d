"""Names of people as a page shows them: whole, first names, as initials, or as letters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from django.utils.translation import gettext as _

MODES = ("names", "first_names", "initials", "letters")
# Of a name in these scripts no rule finds the first one.
UNDIVIDED = re.compile("[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff]")
FIRST_NAME = 30  # characters


def shown(names: Iterable[str], mode: str) -> dict[str, str]:
    """Return for each name of a chat what a page shows, which differs for each."""
    makers: dict[str, Callable[[str, int], str]] = {
        "first_names": _first_name,
        "initials": _initials,
        "letters": _letter,
    }
    make = makers.get(mode, _whole)
    found: dict[str, str] = {}
    taken: set[str] = set()
    for index, name in enumerate(names):
        base = one = make(name, index)
        number = 2
        while one in taken:
            one = f"{base} {number}"
            number += 1
        taken.add(one)
        found[name] = one
    return found


def _whole(name: str, _index: int) -> str:
    return name or "?"


def _first_name(name: str, index: int) -> str:
    """Return the first name, or a letter for a telephone number, an address or a name without a known order."""
    for word in name.split():
        # Neither "Dr." nor the surname of "Meyer, Anna".
        if word[0].isalpha() and word[-1] not in ".,":
            if "@" in word or UNDIVIDED.search(word):
                break
            return word[:FIRST_NAME]
    return _letter(name, index)


def _initials(name: str, _index: int) -> str:
    # Of a telephone number nothing is left.
    letters = [word[0].upper() for word in name.split() if word[0].isalpha()]
    return " ".join(f"{letter}." for letter in letters[:2]) or "?"


def _letter(_name: str, index: int) -> str:
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = f"{chr(65 + rest)}{letters}"
    return _("Person %(letter)s") % {"letter": letters}
