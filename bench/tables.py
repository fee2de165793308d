"""Times and memory of tables: a large CSV file made into a dataset, a query over it, and a chart.

    python -m bench tables [--mb 25]

Each part runs in its sandboxed process with the limits of the product, one after the other, without a database. The
memory is the highest of the child's process, as the system counts it.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MB = 1_000_000
SHOPS = [f"Shop {number}" for number in range(40)]
QUERY = (
    "SELECT shop, month(day) AS month, round(sum(amount), 2) AS revenue, count(*) AS sales, median(amount) AS usual"
    " FROM sales GROUP BY ALL ORDER BY revenue DESC"
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m bench tables", description=__doc__)
    parser.add_argument("--mb", type=float, default=25.0, help="size of the CSV file")
    options = parser.parse_args(arguments)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatproject.settings")
    os.environ.setdefault("SECRET_KEY", "only-for-the-bench-of-tables-0f6c2d9e8b7a4135")
    os.environ.setdefault("DATABASE_URL", "postgres://nobody@127.0.0.1:9/none")
    os.environ.setdefault("REDIS_URL", "redis://127.0.0.1:9/0")
    os.environ.setdefault("DEBUG", "1")
    import django

    django.setup()
    with tempfile.TemporaryDirectory() as folder:
        report(Path(folder), options.mb)


def report(folder: Path, size: float) -> None:
    """Print a line for each part: seconds, the highest memory of its process, and what it made."""
    from chat.documents.datasets import store
    from chat.tools.builtin import make_chart
    from chat.tools.charts import compiler, pictures
    from chat.tools.charts.schema import Chart
    from chatproject.lib import sandbox

    source = folder / "sales.csv"
    made = write(source, int(size * MB))
    out = folder / "out"
    out.mkdir()
    target = out / "tables.duckdb"
    limits = {"rows": 1_000_000, "columns": 1_000, "cells": store.MAX_CELLS, "tables": 50}
    build = {
        "path": str(source), "target": str(target), "format": "csv", "title": "Sales",
        "memory_mb": store.BUILD_MEMORY_MB, "limits": limits,
    }  # fmt: skip
    memory = store.BUILD_MEMORY_MB * MB + store.SPARE_MEMORY
    bounds = sandbox.Limits(
        memory=memory, address_space=4_000 * MB, seconds=300, cpu=300, output=64 * MB,
        file_bytes=store.MAX_FILE,
    )  # fmt: skip
    built = line(
        f"build of {source.stat().st_size / MB:.0f} MB, {made:,} rows",
        lambda: sandbox.call(store.BUILD, build, bounds, readable=[source], writable=[out]),
    )
    assert built["tables"][0]["rows"] == made
    query = {
        "tables": [{"name": "sales", "stored": "sales", "path": str(target)}],
        "sql": QUERY, "rows": 10_000, "bytes": store.RESULT_BYTES, "csv": True, "preview": 50,
        "memory_mb": store.QUERY_MEMORY_MB,
    }  # fmt: skip
    memory = store.QUERY_MEMORY_MB * MB + store.SPARE_MEMORY
    bounds = sandbox.Limits(
        memory=memory, address_space=4_000 * MB, seconds=60, cpu=60, output=40 * MB
    )
    found = line(
        "query with two groups and a median",
        lambda: sandbox.call(store.QUERY, query, bounds, readable=[target]),
    )
    chart = Chart(kind="bar", title="Revenue", x="shop", y=["revenue"])
    first = {row[0]: row for row in found["rows"]}
    spec = compiler.compile(
        chart, found["columns"], [*first.values()][:40], {"months": [], "other": ""}
    )
    drawing = line("chart as SVG", lambda: make_chart.drawn(spec, "en"))
    line("chart as PNG", lambda: pictures.png(drawing, "Revenue"))


def write(path: Path, size: int) -> int:
    """Write a CSV file of about so many bytes; return the number of its rows."""
    chosen = random.Random(7)
    rows = 0
    with path.open("w") as file:
        file.write("day,shop,article,amount,note\n")
        while file.tell() < size:
            lines = []
            for _ in range(1_000):
                day = f"2024-{chosen.randrange(12) + 1:02}-{chosen.randrange(28) + 1:02}"
                amount = chosen.randrange(100, 99_999) / 100
                lines.append(
                    f'{day},{chosen.choice(SHOPS)},{chosen.randrange(9_999)},{amount},"paid, in {rows % 5} parts"\n'
                )
            file.write("".join(lines))
            rows += len(lines)
    return rows


def line(name: str, work: Callable[[], Any]) -> Any:
    """Do a part, print its line, and return what it made.

    The system counts the highest memory of all children so far: the figure of a part that needs less than those
    before it is theirs, with "≤".
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    began = time.perf_counter()
    made = work()
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    sign = "≤ " if after == before else ""
    print(f"{name:44} {seconds:6.1f} s  {sign}{after * 1024 / MB:,.0f} MB", flush=True)
    return made
