"""Makes a Vega-Lite specification of a chart and the rows of a query. Pure functions.

A chart is drawn 400 units wide with letters of 12: the narrowest phone shows them at 10 pixels, and a wide
page enlarges the whole drawing instead of making another one.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from chat.rendering import colours
from chat.tools.charts.schema import Chart, ChartRefused

MAX_POINTS = 2_000
MAX_BARS = 60
MAX_SERIES = len(colours.PARTS)
MAX_CELLS = 1_000  # of a heatmap
MAX_LABEL = 28  # characters
LONG_LABEL = 9  # a bar with a longer name lies, so that the name is readable
MARKED_POINTS = 40  # a line with more points has no marks on them

WIDTH, HEIGHT = 330, 220
BAR_HEIGHT = 22
FONT_SIZE = 12

X, Y, SERIES, ORDER = "x", "y", "series", "order"  # the fields of the drawn rows
TEMPORAL = {"date", "datetime"}
NUMERIC = {"integer", "number"}
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [1, 3]]

Row = dict[str, Any]


def compile(
    chart: Chart,
    columns: Sequence[Mapping[str, str]],
    rows: Sequence[Sequence[Any]],
    words: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the specification. Raises ChartRefused with a sentence for the model.

    `words` are those of the user's language: `months`, twelve short names, and `other`, for the rest of a pie.
    """
    if not rows:
        raise ChartRefused("The query returned no rows: there is nothing to draw.")
    data = _Data(chart, columns, rows)
    make = {
        "line": _lines,
        "area": _lines,
        "year_over_year": _years,
        "bar": _bars,
        "stacked_bar": _bars,
        "pie": _pie,
        "scatter": _scatter,
        "heatmap": _heatmap,
    }[chart.kind]
    return {**make(chart, data, words), "config": CONFIG, "background": None, "padding": 4}


class _Data:
    """The rows of a chart in long form: one for each value that is drawn."""

    def __init__(
        self,
        chart: Chart,
        columns: Sequence[Mapping[str, str]],
        rows: Sequence[Sequence[Any]],
    ) -> None:
        self._columns = columns
        self.x_at = self._place(chart.x)
        self.x_type = columns[self.x_at]["type"]
        measures = [self._place(name) for name in chart.y]
        for place in measures:
            if columns[place]["type"] not in NUMERIC:
                raise ChartRefused(
                    f'The column "{columns[place]["name"]}" has no numbers. Select or cast a numeric column for y.'
                )
        series_at = self._place(chart.series) if chart.series else None
        if series_at is not None and len(measures) > 1:
            raise ChartRefused(
                "Give either one column for y and a series, or several columns for y."
            )
        if len(rows) * len(measures) > MAX_POINTS:
            raise ChartRefused(
                f"The chart would have {len(rows) * len(measures):,} points; at most {MAX_POINTS:,} are drawn. "
                "Aggregate in the query, such as by month, or add a LIMIT."
            )
        self.has_series = series_at is not None or len(measures) > 1
        self.rows: list[Row] = []
        for row in rows:
            for place in measures:
                if isinstance(row[place], int | float) and row[self.x_at] is not None:
                    name = row[series_at] if series_at is not None else columns[place]["name"]
                    self.rows.append({X: row[self.x_at], Y: row[place], SERIES: _label(name)})
        if not self.rows:
            raise ChartRefused("All values of x or y are empty: there is nothing to draw.")
        self.names = list(dict.fromkeys(row[SERIES] for row in self.rows))
        self.x_title = chart.x_title or columns[self.x_at]["name"]
        self.y_title = chart.y_title or (columns[measures[0]]["name"] if len(measures) == 1 else "")

    def _place(self, name: str) -> int:
        names = [column["name"].casefold() for column in self._columns]
        if name.casefold() not in names:
            listed = ", ".join(f'"{column["name"]}"' for column in self._columns[:20])
            raise ChartRefused(
                f'The result has no column "{name[:80]}". Its columns are: {listed}.'
            )
        return names.index(name.casefold())

    def check_series(self) -> None:
        if self.has_series and len(self.names) > MAX_SERIES:
            raise ChartRefused(
                f"There are {len(self.names)} series; at most {MAX_SERIES} can be told apart. "
                "Keep the largest, and sum up the others as one."
            )

    def label_x(self) -> list[str]:
        """Make texts of the values of x, in their order; return them, each once."""
        is_monthly = self.x_type in TEMPORAL and all(
            str(row[X])[8:] in ("01", "01 00:00:00") for row in self.rows
        )
        for row in self.rows:
            row[X] = str(row[X])[:7] if is_monthly else _label(row[X])
        return list(dict.fromkeys(row[X] for row in self.rows))


def _label(value: Any) -> str:
    text = "–" if value is None or value == "" else str(value).removesuffix(" 00:00:00")  # noqa: RUF001
    return text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…"


def _axis(title: str, **others: Any) -> dict[str, Any]:
    return {"title": title[:60] or None, **others}


def _angle(names: Sequence[str]) -> dict[str, Any]:
    """Return the angle of the names of an axis: they stand upright only if they would touch each other."""
    width = max(len(name) for name in names) * 0.62 * FONT_SIZE + 4
    return {"labelAngle": 0} if width * len(names) < WIDTH - 50 else {}


def _number(title: str, values: Sequence[float]) -> dict[str, Any]:
    """Return the encoding of numbers: large ones are written short."""
    is_large = max(abs(value) for value in values) >= 100_000
    return {
        "field": Y,
        "type": "quantitative",
        "axis": _axis(title, format="~s" if is_large else ",~f", tickCount=5),
    }


def _colour(data: _Data, names: Sequence[str]) -> dict[str, Any]:
    if not data.has_series:
        return {"value": colours.PARTS[0]}
    return {
        "field": SERIES,
        "type": "nominal",
        "sort": None,
        "scale": {"domain": list(names), "range": colours.PARTS[: len(names)]},
        "legend": {},
    }


def _lines(chart: Chart, data: _Data, words: Mapping[str, Any]) -> dict[str, Any]:
    data.check_series()
    values = [row[Y] for row in data.rows]
    if data.x_type in TEMPORAL:
        x: dict[str, Any] = {
            "field": X,
            "type": "temporal",
            "axis": _axis(data.x_title, tickCount=5),
        }
        for row in data.rows:
            row[X] = _instant(row[X])
    elif data.x_type in NUMERIC:
        x = {
            "field": X,
            "type": "quantitative",
            "scale": {"zero": False, "nice": False},
            "axis": _axis(data.x_title, format="~f", tickCount=5),
        }
    else:
        names = data.label_x()
        axis = _axis(data.x_title, **_angle(names))
        x = {"field": X, "type": "ordinal", "sort": names, "axis": axis}
    y = _number(data.y_title, values)
    is_area = chart.kind == "area"
    if is_area:
        y["stack"] = "zero" if data.has_series else None
        if data.has_series and min(values) < 0:
            raise ChartRefused(
                "Areas of several series lie on each other and cannot be negative. Draw lines."
            )
    elif min(values) > 0 and min(values) > 0.6 * max(values):
        y["scale"] = {"zero": False}
    encoding: dict[str, Any] = {"x": x, "y": y, "color": _colour(data, data.names)}
    if is_area:
        mark: dict[str, Any] = {
            "type": "area",
            "fillOpacity": 0.85 if data.has_series else 0.35,
            "line": not data.has_series,
        }
    else:
        mark = {"type": "line", "strokeWidth": 2}
        if data.has_series:
            encoding["strokeDash"] = _series_scale(data.names, DASHES)
        if len(data.rows) <= MARKED_POINTS:
            mark["point"] = {"size": 28, "filled": True}
    return _plot(data, mark, encoding)


def _series_scale(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Return an encoding that tells series apart for eyes that see no colours."""
    scale = {"domain": list(names), "range": list(values[: len(names)])}
    return {"field": SERIES, "type": "nominal", "sort": None, "scale": scale, "legend": {}}


def _instant(value: Any) -> int:
    """Return a day or time in milliseconds, as if it were UTC: the drawing must not depend on a zone."""
    moment = datetime.datetime.fromisoformat(str(value))
    return int(moment.replace(tzinfo=datetime.UTC).timestamp() * 1000)


def _years(chart: Chart, data: _Data, words: Mapping[str, Any]) -> dict[str, Any]:
    """Make a line for each year over its months."""
    if data.x_type not in TEMPORAL:
        raise ChartRefused("A chart year over year needs a column of dates for x.")
    if data.has_series:
        raise ChartRefused(
            "A chart year over year has a line for each year: give one y and no series."
        )
    sums: dict[tuple[str, int], float] = {}
    for row in data.rows:
        key = str(row[X])[:4], int(str(row[X])[5:7])
        sums[key] = sums.get(key, 0) + row[Y]
    data.names = sorted({year for year, _month in sums})[-MAX_SERIES:]
    months = list(words["months"])
    data.rows = [
        {X: months[month - 1], Y: value, SERIES: year, ORDER: month}
        for (year, month), value in sorted(sums.items())
        if year in data.names
    ]
    data.has_series = True
    encoding = {
        "x": {
            "field": X,
            "type": "ordinal",
            "sort": months,
            "axis": _axis(chart.x_title, labelAngle=0),
        },
        "y": _number(data.y_title, [row[Y] for row in data.rows]),
        "color": _colour(data, data.names),
        "strokeDash": _series_scale(data.names, DASHES),
        "order": {"field": ORDER, "type": "quantitative"},
    }
    return _plot(
        data, {"type": "line", "strokeWidth": 2, "point": {"size": 28, "filled": True}}, encoding
    )


def _bars(chart: Chart, data: _Data, words: Mapping[str, Any]) -> dict[str, Any]:
    data.check_series()
    names = data.label_x()
    is_stacked = chart.kind == "stacked_bar"
    bars = len(names) if is_stacked or not data.has_series else len(names) * len(data.names)
    if bars > MAX_BARS:
        raise ChartRefused(
            f"There would be {bars} bars; at most {MAX_BARS} are readable. Show the largest with ORDER BY and LIMIT, or draw a line."
        )
    numbers = _number(data.y_title, [row[Y] for row in data.rows])
    numbers["stack"] = "zero" if is_stacked else None
    places: dict[str, Any] = {
        "field": X,
        "type": "nominal",
        "sort": names,
        "axis": _axis(data.x_title, labelLimit=150, ticks=False, **_angle(names)),
    }
    lies = data.x_type not in TEMPORAL and (max(map(len, names)) > LONG_LABEL or len(names) > 12)
    encoding: dict[str, Any] = {"color": _colour(data, data.names)}
    encoding |= {"y": places, "x": numbers} if lies else {"x": places, "y": numbers}
    if data.has_series and not is_stacked:
        offset = {"field": SERIES, "type": "nominal", "sort": data.names}
        encoding["yOffset" if lies else "xOffset"] = offset
    spec = _plot(data, {"type": "bar", "cornerRadiusEnd": 0 if is_stacked else 2}, encoding)
    if lies:
        spec["height"] = max(
            80,
            min(
                900,
                BAR_HEIGHT * len(names)
                if is_stacked
                else max(BAR_HEIGHT, 12 * bars // len(names)) * len(names),
            ),
        )
    return spec


def _pie(chart: Chart, data: _Data, words: Mapping[str, Any]) -> dict[str, Any]:
    if data.has_series:
        raise ChartRefused("A pie has one column for x, the names, and one for y, the values.")
    if min(row[Y] for row in data.rows) < 0:
        raise ChartRefused("A pie cannot show negative values. Draw bars.")
    sums: dict[str, float] = {}
    for row in data.rows:
        name = _label(row[X])
        sums[name] = sums.get(name, 0) + row[Y]
    total = sum(sums.values())
    if total <= 0:
        raise ChartRefused("All values are zero: a pie would be empty.")
    largest = sorted(sums, key=sums.__getitem__, reverse=True)
    if len(largest) > MAX_SERIES:
        kept = largest[: MAX_SERIES - 1]
        other = words["other"] if words["other"] not in kept else f"{words['other']}…"
        sums = {name: sums[name] for name in kept} | {
            other: sum(sums[name] for name in largest[MAX_SERIES - 1 :])
        }
        largest = [*kept, other]
    names = [f"{name} · {100 * sums[name] / total:.3g} %" for name in largest]
    data.rows = [
        {SERIES: shown, Y: sums[name], ORDER: number}
        for number, (name, shown) in enumerate(zip(largest, names, strict=True))
    ]
    data.has_series = True
    colour = _colour(data, names) | {"legend": {"columns": 2}}
    encoding = {
        "theta": {"field": Y, "type": "quantitative", "stack": True},
        "order": {"field": ORDER, "type": "quantitative"},
        "color": colour,
    }
    mark = {
        "type": "arc",
        "innerRadius": 45,
        "outerRadius": 105,
        "stroke": colours.SURFACE,
        "strokeWidth": 1.5,
    }
    return _plot(data, mark, encoding)


def _scatter(chart: Chart, data: _Data, words: Mapping[str, Any]) -> dict[str, Any]:
    data.check_series()
    if data.x_type in TEMPORAL:
        x: dict[str, Any] = {
            "field": X,
            "type": "temporal",
            "axis": _axis(data.x_title, tickCount=5),
        }
        for row in data.rows:
            row[X] = _instant(row[X])
    elif data.x_type in NUMERIC:
        large = max(abs(row[X]) for row in data.rows) >= 100_000
        axis = _axis(data.x_title, format="~s" if large else ",~f", tickCount=5)
        x = {"field": X, "type": "quantitative", "scale": {"zero": False}, "axis": axis}
    else:
        raise ChartRefused("A scatter chart needs numbers or dates for x.")
    y = _number(data.y_title, [row[Y] for row in data.rows]) | {"scale": {"zero": False}}
    encoding: dict[str, Any] = {"x": x, "y": y, "color": _colour(data, data.names)}
    if data.has_series:
        encoding["shape"] = _series_scale(data.names, SHAPES)
    return _plot(data, {"type": "point", "filled": True, "size": 30, "opacity": 0.75}, encoding)


def _heatmap(chart: Chart, data: _Data, words: Mapping[str, Any]) -> dict[str, Any]:
    """Make cells whose one colour is the stronger the larger their value is, which suits both themes."""
    if not chart.series:
        raise ChartRefused(
            "A heatmap needs x for its columns, series for its rows and y for the value."
        )
    names = data.label_x()
    if len(names) * len(data.names) > MAX_CELLS or max(len(names), len(data.names)) > MAX_BARS:
        raise ChartRefused(
            f"The heatmap would have {len(names)} × {len(data.names)} cells, too many to read. Aggregate in the query."  # noqa: RUF001
        )
    values = [row[Y] for row in data.rows]
    large = max(abs(value) for value in values) >= 100_000
    encoding = {
        "x": {
            "field": X,
            "type": "ordinal",
            "sort": names,
            "axis": _axis(data.x_title, ticks=False, **_angle(names)),
        },
        "y": {
            "field": SERIES,
            "type": "ordinal",
            "sort": data.names,
            "axis": _axis(chart.series, ticks=False, labelLimit=110),
        },
        "color": {"value": colours.PARTS[0]},
        "opacity": {
            "field": Y,
            "type": "quantitative",
            "scale": {"range": [0.08, 1], "domain": [min(values), max(values)]},
            "legend": {
                "title": data.y_title[:60] or None,
                "format": "~s" if large else ",~f",
                "symbolType": "square",
                "symbolSize": 160,
                "symbolFillColor": colours.PARTS[0],
                "symbolStrokeWidth": 0,
                "tickCount": 4,
            },
        },
    }
    spec = _plot(data, {"type": "rect", "stroke": colours.SURFACE, "strokeWidth": 1}, encoding)
    spec["height"] = max(100, min(600, 20 * len(data.names)))
    return spec


def _plot(data: _Data, mark: dict[str, Any], encoding: dict[str, Any]) -> dict[str, Any]:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": WIDTH,
        "height": HEIGHT,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": data.rows},
        "mark": mark,
        "encoding": encoding,
    }


CONFIG: dict[str, Any] = {
    "font": "sans-serif",
    "axis": {
        "labelFontSize": FONT_SIZE,
        "titleFontSize": FONT_SIZE,
        "titleFontWeight": "normal",
        "labelColor": colours.MUTED,
        "titleColor": colours.MUTED,
        "gridColor": colours.BORDER,
        "domainColor": colours.BORDER,
        "tickColor": colours.BORDER,
        "labelOverlap": "greedy",
        "labelSeparation": 4,
        "titlePadding": 8,
    },
    "axisX": {"grid": False},
    "legend": {
        "orient": "bottom",
        "title": None,
        "columns": 3,
        "labelFontSize": FONT_SIZE,
        "titleFontSize": FONT_SIZE,
        "titleFontWeight": "normal",
        "labelColor": colours.TEXT,
        "titleColor": colours.MUTED,
        "labelLimit": 170,
        "symbolStrokeWidth": 2,
    },
    "view": {"stroke": None},
}
