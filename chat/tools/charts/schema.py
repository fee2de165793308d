"""The charts that a model may ask for: a small schema of our own, which `compiler` makes Vega-Lite of.

It has no addresses, expressions or styles: only which columns of a query's result are shown, and how.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Kind = Literal["line", "bar", "stacked_bar", "pie", "area", "scatter", "heatmap", "year_over_year"]

MAX_MEASURES = 6


class Chart(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A chart of the columns of a table."""

    kind: Kind
    title: Annotated[str, Meta(min_length=1, max_length=120)]
    x: Annotated[str, Meta(max_length=200)]
    y: Annotated[
        list[Annotated[str, Meta(max_length=200)]], Meta(min_length=1, max_length=MAX_MEASURES)
    ]
    series: Annotated[str, Meta(max_length=200)] = ""
    x_title: Annotated[str, Meta(max_length=80)] = ""
    y_title: Annotated[str, Meta(max_length=80)] = ""


class ChartRefused(Exception):
    """A chart that the data does not give; the sentence is for the model."""
