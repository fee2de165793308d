"""The card of a public link: a drawing of 1200 by 630 pixels that other sites show beside its address."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.utils import translation
from django.utils.html import escape
from django.utils.translation import gettext as _

from chat.documents.figures import charts, page
from chat.documents.models import StatisticsLink
from chat.rendering.colours import TOKENS

WIDTH, HEIGHT = 1200, 630
MARGIN = 72
TOTALS = 3  # that have room
LINE = 32  # letters of a line of the title, of which wide ones count twice
LINES = 2
SURFACE, TEXT, MUTED, BARS = (
    TOKENS[name][0] for name in ("--surface", "--text", "--muted", "--part-1")
)


def svg(link: StatisticsLink, statistics: Mapping[str, Any]) -> str:
    """Return the card of a link in the active language, with those of its figures that have room."""
    figures = page.of_chat(statistics, mode=link.names, sections=link.sections)
    title = link.title or _("Statistics of a chat")
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{SURFACE}"/>',
        f'<rect width="{WIDTH}" height="12" fill="{BARS}"/>',
        _text(settings.SITE_NAME, 0, 92, size=30, colour=MUTED),
    ]
    y = 172
    for line in _lines(title):
        parts.append(_text(line, 0, y, size=56, weight="bold"))
        y += 68
    for at, (label, value) in enumerate(figures.get("totals", [])[:TOTALS]):
        x = at * (WIDTH - 2 * MARGIN) // TOTALS
        parts.append(_text(value, x, y + 56, size=72, weight="bold", colour=BARS))
        parts.append(_text(label, x, y + 100, size=30, colour=MUTED))
    if time := figures.get("time"):
        parts.append(_bars(time["chart"]))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f"{''.join(parts)}</svg>"
    )


def _text(
    text: str, x: int, y: int, *, size: int, weight: str = "normal", colour: str = TEXT
) -> str:
    """Return a line of text, `x` from the edge at which the language begins to read."""
    is_rtl = translation.get_language_bidi()
    x, anchor = (WIDTH - MARGIN - x, "end") if is_rtl else (MARGIN + x, "start")
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-family="sans-serif" font-size="{size}" '
        f'font-weight="{weight}" fill="{colour}">{escape(text)}</text>'
    )


def _lines(title: str) -> list[str]:
    """Return a title in at most LINES lines; the rest becomes an ellipsis."""
    lines = [""]
    for word in title.split():
        for piece in _pieces(word):
            joined = f"{lines[-1]} {piece}" if lines[-1] and piece is word else lines[-1] + piece
            if _length(joined) <= LINE:
                lines[-1] = joined
            else:
                lines.append(piece)
    if len(lines) > LINES:
        last = lines[LINES - 1]
        while _length(last) > LINE - 1:
            last = last[:-1]
        lines = [*lines[: LINES - 1], f"{last}…"]
    return lines


def _pieces(word: str) -> list[str]:
    """Return a word whole, or letter by letter if no line has room for it."""
    return [word] if _length(word) <= LINE else list(word)


def _length(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def _bars(chart: charts.Bars) -> str:
    """Return the bars of the chart over time along the lower edge."""
    across, height = (WIDTH - 2 * MARGIN) / 100, 150
    top = HEIGHT - 60 - height
    drawn = [
        f'<rect x="{MARGIN + bar.x * across:.1f}" y="{top + bar.y * height / chart.height:.1f}" '
        f'width="{max(1.0, bar.width * across):.1f}" height="{bar.height * height / chart.height:.1f}" fill="{BARS}"/>'
        for bar in chart.bars
    ]
    base = f'<rect x="{MARGIN}" y="{HEIGHT - 60}" width="{WIDTH - 2 * MARGIN}" height="2" fill="{MUTED}"/>'
    return "".join(drawn) + base
