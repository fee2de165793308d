"""The tool `query_table`: SQL over the tables of the documents that a conversation is bound to."""

from __future__ import annotations

import gzip
import time
from typing import Annotated

from django.conf import settings
from django.utils.translation import gettext, gettext_lazy, ngettext
from msgspec import Meta

from chat.documents.datasets import describe, store
from chat.documents.datasets.csv_text import to_csv
from chat.documents.datasets.errors import QueryRefused
from chat.documents.datasets.store import Result, Table
from chat.documents.models import Dataset, TableResult
from chat.tools.registry import Display, ToolContext, ToolError, ToolResult, tool
from chatproject.lib import languages

PREVIEW = 50  # rows that the reply shows
FOR_MODEL = 6_000  # characters of the result that the model reads
REFUSED = gettext_lazy("The query could not be run.")
NO_TABLES = gettext_lazy("There are no tables to ask.")


def has_tables(context: ToolContext) -> bool:
    """Return whether a run may read tables."""
    rows = Dataset.objects.filter(document__in=context.documents, document__deleted_at=None)
    return bool(context.documents) and rows.exists()


def briefing(context: ToolContext) -> str:
    """Return what the model learns of the tables: columns, five rows, and a summary."""
    return describe.prompt_text(context.documents)


@tool(
    name="query_table",
    title=gettext_lazy("Query a table"),
    progress=gettext_lazy("Querying the table…"),
    seconds=settings.TABLE_QUERY_SECONDS + 5,
    available=has_tables,
    briefing=briefing,
)
def query_table(
    context: ToolContext,
    sql: Annotated[
        str,
        Meta(max_length=5_000, description="One SELECT in DuckDB's SQL, over the tables by name"),
    ],
    title: Annotated[
        str, Meta(max_length=120, description="A short title of the result, for the user")
    ] = "",
) -> ToolResult:
    """Run a SQL query over the tables that the user uploaded. The user sees the result as a table with a download of all rows; you see its first rows. Aggregate in SQL rather than reading many rows. Quote names that have spaces or capitals with double quotation marks."""
    result = run(context, sql, csv=True, preview=PREVIEW)
    data = {
        "title": title,
        "columns": result.columns,
        "rows": result.rows,
        "total": result.total,
        "more": result.more,
        "csv": str(stored(context, result).pk),
    }
    return ToolResult(
        text=for_model(result),
        summary=summary(result),
        parts=(Display("table", data),),
        untrusted=True,
    )


def run(
    context: ToolContext,
    sql: str,
    *,
    rows: int | None = None,
    csv: bool = False,
    preview: int | None = None,
) -> Result:
    """Run a query for a call. Raises ToolError with a sentence for the model."""
    tables: list[Table] = store.tables_of(context.documents)
    if not tables:
        raise ToolError(NO_TABLES)
    seconds = context.deadline - time.monotonic() - 1
    try:
        return store.query(
            tables, sql, rows=rows, csv=csv, preview=preview, seconds=max(1, seconds)
        )
    except QueryRefused as error:
        # Words of the engine can have cells of the table.
        raise ToolError(REFUSED, detail=error.sentence, untrusted=True) from error


def stored(context: ToolContext, result: Result) -> TableResult:
    """Store the whole result for its download: once for a call, also if the call is repeated."""
    found, _is_new = TableResult.objects.update_or_create(
        conversation_id=context.conversation_id,
        call=f"{context.run_id}:{context.call}"[:100],
        defaults={"rows": result.total, "content": gzip.compress(result.csv.encode(), 6)},
    )
    return found


def for_model(result: Result) -> str:
    """Return a result as the model reads it: CSV, as many rows as fit."""
    lines = to_csv(result.columns, result.rows).replace("\r\n", "\n").splitlines(keepends=True)
    shown: list[str] = []
    size = 0
    for line in lines:
        size += len(line)
        if size > FOR_MODEL and len(shown) > 1:
            break
        shown.append(line[:FOR_MODEL])
    count = f"more than {result.total:,}" if result.more else f"{result.total:,}"
    read = max(0, len(shown) - 1)
    head = f"{count} rows" if read == result.total else f"{count} rows, the first {read}"
    return f"{head}:\n{''.join(shown)}"


def summary(result: Result) -> str:
    """Return the line of the page on a result."""
    number = languages.number(result.total)
    if result.more:
        return gettext("More than %(count)s rows") % {"count": number}
    return ngettext("%(count)s row", "%(count)s rows", result.total) % {"count": number}
