"""The values of choices in forms, with words for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.utils.translation import gettext_lazy as _

from chat.models import EFFORTS, ICONS

# In the order of EFFORTS, from the least to the most.
EFFORT_WORDS: dict[str, Any] = dict(
    zip(
        EFFORTS,
        (
            _("None"),
            _("Minimal"),
            _("Low"),
            _("Medium"),
            _("High"),
            _("Very high"),
            _("Maximum"),
        ),
        strict=True,
    )
)

# Steps of the select; a conversation may have any other from 0 to 2.
TEMPERATURE_WORDS: dict[str, Any] = {
    "0": _("0 · the likeliest words"),
    "0.3": _("0.3 · precise"),
    "0.5": _("0.5 · rather precise"),
    "0.7": _("0.7 · balanced"),
    "1": _("1 · varied"),
    "1.3": _("1.3 · creative"),
    "1.6": _("1.6 · very creative"),
    "2": _("2 · at random"),
}

ICON_WORDS: dict[str, Any] = dict(
    zip(
        ICONS,
        (
            *(_("Star"), _("Pen"), _("Book"), _("Code"), _("Chart"), _("Languages"), _("Lamp")),
            *(_("Flask"), _("Briefcase"), _("Heart"), _("Globe"), _("Music"), _("Camera")),
            *(_("Cooking"), _("Plant"), _("Compass"), _("Shield"), _("Scales"), _("Puzzle")),
            _("Mortarboard"),
        ),
        strict=True,
    )
)


def effort_choices(efforts: Iterable[str]) -> list[tuple[str, Any]]:
    """Return reasoning efforts with their words, from the least to the most."""
    offered = set(efforts)
    return [(effort, words) for effort, words in EFFORT_WORDS.items() if effort in offered]


def temperature_choices(stored: str) -> list[tuple[str, Any]]:
    """Return the steps of the temperature with their words, and the stored value among them; "" for none."""
    found = dict(TEMPERATURE_WORDS)
    if stored:
        found.setdefault(stored, stored)
    return sorted(found.items(), key=_number)


def _number(choice: tuple[str, Any]) -> float:
    try:
        return float(choice[0])
    except ValueError:
        return 0.0  # a refused form shows what was posted
