"""Names of people as a page shows them: whole, as initials, or as letters."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from django.utils.translation import gettext as _

MODES = ("names", "initials", "letters")


def shown(names: Iterable[str], mode: str) -> dict[str, str]:
    """Return for each name of a chat what a page shows, which differs for each."""
    make: Callable[[str, int], str] = {"initials": _initials, "letters": _letter}.get(
        mode, lambda name, _index: name or "?"
    )
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
