"""Sentences about tables: why a file became none, and how one was read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.utils.translation import gettext, gettext_lazy, ngettext

from chatproject.lib import languages

# Why a document failed: its `reason`. Each says what happened and what to do.
REASONS = {
    "table_empty": gettext_lazy("The file has no rows. Check that you chose the right file."),
    "table_damaged": gettext_lazy(
        "The table cannot be read: the file is damaged, or not what its name says. Save it again, for example as CSV, and upload that."
    ),
    "table_encrypted": gettext_lazy(
        "The workbook is protected by a password, or in an old format. Save it as .xlsx without a password and upload that."
    ),
    "table_expands_too_much": gettext_lazy(
        "The workbook would be far too large when unpacked. Save the sheet that you need as CSV and upload that."
    ),
    "table_too_large": gettext_lazy(
        "The table needs more memory than there is for one file. Upload a part of it."
    ),
    "table_too_slow": gettext_lazy("Reading the table took too long. Upload a part of it."),
    "table_too_many_rows": gettext_lazy(
        "The table has more rows than can be read. Upload a part of it."
    ),
    "table_too_many_columns": gettext_lazy(
        "The table has more columns than can be read. Remove those that you do not need."
    ),
    "table_too_many_cells": gettext_lazy(
        "The table has more cells than can be read. Remove columns or rows that you do not need."
    ),
    "table_too_many_sheets": gettext_lazy(
        "The workbook has more sheets than can be read. Save those that you need as a workbook of their own."
    ),
    "table_row_too_long": gettext_lazy(
        "A line of the file is too long for a row of a table. Check that it is a CSV file with one row a line."
    ),
    "table_cell_too_long": gettext_lazy(
        "A cell of the file is too long. Check that each quotation mark is closed."
    ),
    "table_begins_blank": gettext_lazy(
        "The file begins with hundreds of blank rows. Remove them and upload it again."
    ),
}


TYPES = {
    "integer": gettext_lazy("Whole number"),
    "number": gettext_lazy("Number"),
    "date": gettext_lazy("Date"),
    "datetime": gettext_lazy("Date and time"),
    "time": gettext_lazy("Time"),
    "boolean": gettext_lazy("Yes or no"),
    "text": gettext_lazy("Text"),
}


def note(one: Mapping[str, Any]) -> str:
    """Return a note on how a table was read; empty for one of another release."""
    count = int(one.get("count", one.get("rows", 0)))
    column = str(one.get("column", ""))
    match one["code"]:
        case "encoding":
            return gettext("The letters were read as %(encoding)s.") % {"encoding": one["encoding"]}
        case "quotes":
            return gettext("Quotation marks were read as ordinary characters: one was not closed.")
        case "preamble":
            return ngettext(
                "%(count)s line above the table was left out.",
                "%(count)s lines above the table were left out.",
                count,
            ) % {"count": languages.number(count)}
        case "no_names":
            return gettext("The first row has no names, so the columns are numbered.")
        case "ragged":
            return ngettext(
                "%(count)s row has more cells than the first one.",
                "%(count)s rows have more cells than the first one.",
                count,
            ) % {"count": languages.number(count)}
        case "cut":
            return ngettext(
                "%(count)s very long cell was cut.", "%(count)s very long cells were cut.", count
            ) % {"count": languages.number(count)}
        case "blank":
            return ngettext(
                "%(count)s blank row was left out.", "%(count)s blank rows were left out.", count
            ) % {"count": languages.number(count)}
        case "dmy":
            return gettext(
                "Days and months of “%(column)s” could be exchanged: read as day, month."
            ) % {"column": column}
        case "mdy":
            return gettext(
                "Days and months of “%(column)s” could be exchanged: read as month, day."
            ) % {"column": column}
        case _:
            return ""
