"""Charts as numbers that a template draws as SVG: percentages across, pixels down (see billing.reports.charts)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.dates import WEEKDAYS, WEEKDAYS_ABBR

from chatproject.lib import languages

HEIGHT = 160  # pixels of the bars
MARKS = 8  # dates below the bars, at most
CELL = 22  # pixels of an hour in height
LEVELS = 5  # of a heat map, besides none


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar: `x`, `width` and `middle` in per cent, `y` and `height` in pixels; `mark` is the text below, or empty."""

    label: str
    count: int
    x: float
    width: float
    middle: float
    y: float
    height: float
    mark: str


@dataclass(frozen=True, slots=True)
class Bars:
    """A bar chart; `scale` is from the top to zero."""

    bars: list[Bar]
    scale: list[str]
    height: int = HEIGHT


@dataclass(frozen=True, slots=True)
class Cell:
    """An hour of a weekday: `x` and `width` in per cent, `y` in pixels; `level` from 0 to LEVELS."""

    x: float
    y: int
    width: float
    level: int
    label: str


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Hours across, weekdays down."""

    cells: list[Cell]
    rows: list[tuple[str, list[int]]]
    days: list[tuple[int, str]]  # place of the name in pixels, and the name
    hours: list[tuple[float, int]]
    height: int = 7 * CELL


def bars(values: Sequence[tuple[str, str, int]]) -> Bars:
    """Return a chart of (label, short label, count), whose first is on the left."""
    top = _round_up(max((count for _label, _short, count in values), default=0))
    slot = 100 / max(len(values), 1)
    every = -(-len(values) // MARKS)
    drawn = []
    for index, (label, short, count) in enumerate(values):
        height = count / top * HEIGHT
        is_marked = index % every == 0 and (len(values) - index) * 2 > every
        drawn.append(
            Bar(
                label=label,
                count=count,
                x=round(slot * (index + 0.1), 3),
                width=round(slot * 0.8, 3),
                middle=round(slot * (index + 0.5), 3),
                y=round(HEIGHT - height, 2),
                height=round(height, 2),
                mark=short if is_marked else "",
            )
        )
    return Bars(drawn, [languages.number(top), languages.number(top // 2), "0"])


def _round_up(count: int) -> int:
    """Return an even, round figure that is not below a count."""
    step = 1
    while True:
        for factor in (2, 4, 6, 8, 10):
            if step * factor >= count:
                return step * factor
        step *= 10


def heat_map(hours: Sequence[Sequence[int]]) -> HeatMap:
    """Return a map of counts by weekday, from Monday, and hour."""
    top = max(map(max, hours)) or 1
    slot = 100 / 24
    cells = [
        Cell(
            x=round(slot * hour, 3),
            y=day * CELL,
            width=round(slot * 0.94, 3),
            level=-(-count * LEVELS // top),
            label=f"{WEEKDAYS[day]} {hour}:00: {languages.number(count)}",
        )
        for day, of_day in enumerate(hours)
        for hour, count in enumerate(of_day)
    ]
    return HeatMap(
        cells=cells,
        rows=[(str(WEEKDAYS[day]), list(of_day)) for day, of_day in enumerate(hours)],
        days=[(day * CELL, str(WEEKDAYS_ABBR[day])) for day in range(7)],
        hours=[(round(slot * (hour + 0.5), 3), hour) for hour in range(0, 24, 3)],
    )
