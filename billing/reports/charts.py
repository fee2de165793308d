"""Bars by day, stacked by model, as numbers that a template draws as SVG.

Widths are percentages, heights pixels: the drawing is as wide as its place, its letters stay as
large as those of the page. Colours are classes, since the pages allow no inline styles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

from billing.credits import MICRO, show

HEIGHT = 200  # of the bars, in pixels
PARTS = 6  # colours that there are; the last is for all others together
OTHERS = "All others"
MARK_EVERY = 7  # days between dates below the bars


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar."""

    colour: int  # 1 to PARTS
    y: float
    height: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A day. `x`, `width` and `middle` in percent; `mark` is its date where one is written."""

    x: float
    width: float
    middle: float
    text: str
    mark: str
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Chart:
    """What there is to draw; `scale` from the top to nothing, `legend` as (colour, model)."""

    bars: list[Bar]
    scale: list[str]
    legend: list[tuple[int, str]]
    height: int = HEIGHT


def by_day(amounts: Iterable[tuple[date, str, int]], *, first: date, last: date) -> Chart | None:
    """A chart of (day, model, micro-credits); None when there is nothing to draw."""
    days: dict[date, dict[str, int]] = {}
    models: dict[str, int] = {}
    for day, model, amount in amounts:
        of_day = days.setdefault(day, {})
        of_day[model] = of_day.get(model, 0) + amount
        models[model] = models.get(model, 0) + amount
    highest = max((sum(of_day.values()) for of_day in days.values()), default=0)
    if not highest:
        return None
    top = _round_up(highest)
    colours = _colours(models)
    count = (last - first).days + 1
    return Chart(
        bars=[
            _bar(first + timedelta(days=place), place, count, days, colours, top)
            for place in range(count)
        ],
        scale=[show(top), show(top // 2), "0"],
        legend=_legend(colours),
    )


def _round_up(amount: int) -> int:
    """A round figure not below an amount, and not far above it; its half is one too."""
    step = MICRO // 100
    while True:
        for factor in (2, 3, 4, 6, 8, 10):
            if step * factor >= amount:
                return step * factor
        step *= 10


def _colours(models: Mapping[str, int]) -> dict[str, int]:
    """The dearest models get colours of their own, and the same one in the whole chart."""
    ranked = sorted(models, key=lambda model: (-models[model], model))
    return {model: min(place, PARTS) for place, model in enumerate(ranked, start=1)}


def _legend(colours: Mapping[str, int]) -> list[tuple[int, str]]:
    legend = [(colour, model) for model, colour in colours.items() if colour < PARTS]
    others = [model for model, colour in colours.items() if colour == PARTS]
    if others:
        legend.append((PARTS, others[0] if len(others) == 1 else OTHERS))
    return legend


def _bar(
    day: date,
    place: int,
    count: int,
    days: Mapping[date, Mapping[str, int]],
    colours: Mapping[str, int],
    top: int,
) -> Bar:
    slot = 100 / count
    of_day = days.get(day, {})
    bar = Bar(
        x=round(slot * (place + 0.15), 3),
        width=round(slot * 0.7, 3),
        middle=round(slot * (place + 0.5), 3),
        text=f"{day:%-d %B}: {show(sum(of_day.values()))} credits",
        mark=f"{day:%-d %b}" if place % MARK_EVERY == 0 and count - place > 2 else "",
    )
    y = float(HEIGHT)
    for model in sorted(of_day, key=lambda model: (colours[model], model)):
        height = of_day[model] / top * HEIGHT
        y -= height
        bar.parts.append(
            Part(
                colour=colours[model],
                y=round(y, 2),
                height=round(height, 2),
                text=f"{model}: {show(of_day[model])}",
            )
        )
    return bar
