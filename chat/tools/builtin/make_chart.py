"""The tool `make_chart`: a chart of a query's result, drawn here and stored with the reply."""

from __future__ import annotations

import logging
from typing import Annotated

import msgspec
from django.conf import settings
from django.utils.dates import MONTHS_3
from django.utils.translation import gettext, gettext_lazy
from msgspec import Meta

from chat.tools.builtin import query_table
from chat.tools.charts import compiler, svg
from chat.tools.charts.schema import MAX_MEASURES, Chart, ChartRefused, Kind
from chat.tools.registry import Display, ToolContext, ToolError, ToolResult, tool
from chatproject.lib import sandbox

logger = logging.getLogger(__name__)

DRAW = "chat.tools.charts.drawing:draw"
SECONDS = 25
LIMITS = sandbox.Limits(
    # V8 reserves 600 MB of writable memory and 67 GB of addresses, and uses 80 MB.
    memory=1_200_000_000,
    address_space=150_000_000_000,
    seconds=SECONDS,
    cpu=20,
    output=20_000_000,
    file_bytes=1_000_000,
)
LOCALES = {"de": "de-DE", "es": "es-ES"}

REFUSED = gettext_lazy("The chart could not be made.")
Column = Annotated[str, Meta(max_length=200)]


@tool(
    name="make_chart",
    title=gettext_lazy("Make a chart"),
    progress=gettext_lazy("Drawing the chart…"),
    seconds=settings.TABLE_QUERY_SECONDS + SECONDS + 5,
    available=query_table.has_tables,
)
def make_chart(
    context: ToolContext,
    sql: Annotated[
        str,
        Meta(
            max_length=5_000,
            description="One SELECT whose result is drawn, aggregated and in the order to show",
        ),
    ],
    kind: Kind,
    title: Annotated[str, Meta(min_length=1, max_length=120)],
    description: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=500,
            description="What the chart shows, in one or two sentences for people who cannot see it",
        ),
    ],
    x: Annotated[Column, Meta(description="Column of the result: categories, dates or numbers")],
    y: Annotated[
        list[Column],
        Meta(min_length=1, max_length=MAX_MEASURES, description="Numeric columns; usually one"),
    ],
    series: Annotated[
        Column,
        Meta(description="Column whose values are lines, stacks or colours; of a heatmap its rows"),
    ] = "",
    x_title: Annotated[str, Meta(max_length=80)] = "",
    y_title: Annotated[str, Meta(max_length=80)] = "",
) -> ToolResult:
    """Draw a chart of the tables that the user uploaded and show it in your reply. The query gives the data: for a pie x has the names and y the values; year_over_year needs dates in x and draws a line for each year. Do not repeat the data in your text."""
    chart = Chart(kind=kind, title=title, x=x, y=y, series=series, x_title=x_title, y_title=y_title)
    result = query_table.run(context, sql, rows=compiler.MAX_POINTS + 1)
    words = {
        "months": [str(MONTHS_3[number]).capitalize() for number in range(1, 13)],
        "other": gettext("Other"),
    }
    try:
        spec = compiler.compile(chart, result.columns, result.rows, words)
    except ChartRefused as error:
        raise ToolError(REFUSED, detail=str(error), untrusted=True) from error
    data = {
        "title": title,
        "description": description,
        "spec": msgspec.to_builtins(chart),
        "svg": drawn(spec, context.language),
        "columns": result.columns,
        "rows": result.rows,
    }
    return ToolResult(
        text=f"The chart is shown to the user. Its data: {query_table.for_model(result)}",
        summary=title,
        parts=(Display("chart", data),),
        untrusted=True,
    )


def drawn(spec: dict[str, object], language: str) -> str:
    """Return the drawing of a specification. Raises ToolError."""
    argument = {"spec": spec, "locale": LOCALES.get(language[:2])}
    try:
        found = sandbox.call(DRAW, argument, LIMITS)
    except sandbox.SandboxError as error:
        logger.warning("a chart could not be drawn: %s", error)
        raise ToolError(
            REFUSED, detail="It took too long or too much memory. Draw fewer points."
        ) from error
    drawing = svg.clean(found["svg"])
    if not drawing:
        raise ToolError(REFUSED, detail="The drawing is too large. Draw fewer points.")
    return drawing
