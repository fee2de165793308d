"""Bar charts by day, stacked by model, as numbers that a template draws as SVG.

Widths are percentages and heights pixels: the chart fills the width of the page, while its text keeps
the size of the page's. Colours are classes, since the pages allow no inline styles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing.credits import MICRO, show
from chatproject.lib import languages

HEIGHT = 200  # of the bars, in pixels
COLOURS = 6  # the last one is shared by all other models
OTHERS = gettext_lazy("All others")
MARK_EVERY = 7  # days between dates below the bars


@dataclass(frozen=True, slots=True)
class BarPart:
    """The share of one model in a bar; `y` and `height` are pixels."""

    colour: int  # 1 to COLOURS
    y: float
    height: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """The bar of a day. `x`, `width` and `middle` in per cent; `mark` is its date below, or empty."""

    x: float
    width: float
    middle: float
    text: str
    mark: str
    parts: list[BarPart] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Chart:
    """The chart to draw: `scale` from the top to zero, `legend` as (colour, model)."""

    bars: list[Bar]
    scale: list[str]
    legend: list[tuple[int, str]]
    height: int = HEIGHT


def by_day(amounts: Iterable[tuple[date, str, int]], *, first: date, last: date) -> Chart | None:
    """Return a chart of (day, model, micro-credits); None without any credits."""
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
    # The costliest models get colours of their own, which are the same in all bars.
    ranked = sorted(models, key=lambda model: (-models[model], model))
    colours = {model: min(rank, COLOURS) for rank, model in enumerate(ranked, start=1)}
    legend = [(colour, model) for model, colour in colours.items() if colour < COLOURS]
    if others := ranked[COLOURS - 1 :]:
        legend.append((COLOURS, others[0] if len(others) == 1 else str(OTHERS)))
    count = (last - first).days + 1
    return Chart(
        bars=[
            _bar(first + timedelta(days=index), index, count, days, colours, top)
            for index in range(count)
        ],
        scale=[show(top), show(top // 2), "0"],
        legend=legend,
    )


def _round_up(amount: int) -> int:
    """Return a round figure slightly above an amount, whose half is round too."""
    step = MICRO // 100
    while True:
        for factor in (2, 3, 4, 6, 8, 10):
            if step * factor >= amount:
                return step * factor
        step *= 10


def _bar(
    day: date,
    index: int,
    count: int,
    days: Mapping[date, Mapping[str, int]],
    colours: Mapping[str, int],
    top: int,
) -> Bar:
    slot = 100 / count
    of_day = days.get(day, {})
    bar = Bar(
        x=round(slot * (index + 0.15), 3),
        width=round(slot * 0.7, 3),
        middle=round(slot * (index + 0.5), 3),
        text=_("%(day)s: %(amount)s credits")
        % {"day": languages.day(day, "j F"), "amount": show(sum(of_day.values()))},
        mark=languages.day(day, "j M") if index % MARK_EVERY == 0 and count - index > 2 else "",
    )
    y = float(HEIGHT)
    for model in sorted(of_day, key=lambda model: (colours[model], model)):
        height = of_day[model] / top * HEIGHT
        y -= height
        bar.parts.append(
            BarPart(
                colour=colours[model],
                y=round(y, 2),
                height=round(height, 2),
                text=f"{model}: {show(of_day[model])}",
            )
        )
    return bar
