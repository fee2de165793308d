"""Finds the type of each column of texts, over all its cells: a column has a type only if every cell has it.

So nothing is lost: one cell that is no number leaves the column as text. The content of one cell is ambiguous
(1.234, 03/04/2024); the whole column, and then the other columns of the file, decide. Runs in a sandboxed child.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

SAMPLE = 2_000  # cells that a type must suit before all of them are looked at
MAX_DECIMALS = 6

# Words for an empty cell in a column of numbers or dates.
NOTHING = ("", "na", "n/a", "#n/a", "null", "none", "nan", "-", "–", "—", "?", ".")  # noqa: RUF001

# Patterns of both Python and DuckDB.
SPACE = "[ \u00a0\u202f]"
SIGN = "[+\u2212-]?"
UNIT = "(?:[€$£¥₹%]|EUR|USD|GBP|CHF)"
WHOLE = (
    r"(?:0|[1-9]\d{0,17})"  # with a zero before it, it is a postcode or the number of an article
)
NUMBER = rf"(?:{UNIT}{SPACE}?)?{SIGN}(?:{UNIT}{SPACE}?)?DIGITS(?:{SPACE}?{UNIT})?"
INTEGER = rf"{SIGN}{WHOLE}"
POINT = NUMBER.replace(
    "DIGITS", rf"(?:{WHOLE}|[1-9]\d{{0,2}}(?:,\d{{3}}){{1,5}})?(?:\.\d+)?(?:[eE][+-]?\d{{1,3}})?"
)
COMMA = NUMBER.replace(
    "DIGITS",
    rf"(?:{WHOLE}|[1-9]\d{{0,2}}(?:(?:[.'’]|{SPACE})\d{{3}}){{1,5}})?(?:,\d+)?",  # noqa: RUF001
)
TIME = r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?"
DATE_LIKE = re.compile(
    r"(?:\d{1,4}[./-]\d{1,2}[./-]\d{2,4}|\d{1,2}[. -]+[A-Za-z]{3,9}[. ,-]+\d{2,4}|[A-Za-z]{3,9} \d{1,2}, \d{4})"
    r"(?:[ T,]+\d{1,2}:\d{2}.*)?"
)

DAYS = {
    "": ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d"),
    "dmy": ("%d.%m.%Y", "%d/%m/%Y", "%d-%m-%Y", "%d.%m.%y", "%d/%m/%y", "%d-%m-%y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y"),
    "mdy": ("%m/%d/%Y", "%m-%d-%Y", "%m/%d/%y", "%m-%d-%y", "%b %d, %Y", "%B %d, %Y"),
}  # fmt: skip
CLOCKS = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p")


@dataclass(frozen=True, slots=True)
class Reading:
    """How the cells of a column are read. In the SQL `{}` is a cell's text."""

    type: str  # "integer", "number", "date", "datetime", "time", "boolean", "text"
    value: str
    is_one: str = (
        "TRUE"  # whether a text is of the type at all, where its value alone does not show it
    )
    style: str = ""  # one of several possible ones: "point", "comma", "dmy", "mdy"
    unit: str = ""
    plain: str = ""  # of a number: its text with a point and nothing else


TEXT = Reading("text", "{}")


def readings(
    con: duckdb.DuckDBPyConnection, table: str, columns: Sequence[str], *, leans_comma: bool
) -> tuple[list[Reading], list[int]]:
    """Return how each column is read, and the numbers of columns whose days and months could be exchanged."""
    found = [_fitting(con, table, column) for column in columns]
    votes = Counter(one.style for each in found if len(each) == 1 for one in each)
    leaning = "comma" if leans_comma else "point"
    wanted = {
        leaning
        if votes["comma"] == votes["point"]
        else max("comma", "point", key=votes.__getitem__),
        # Most of the world writes the day first.
        "mdy" if votes["mdy"] > votes["dmy"] else "dmy",
    }
    chosen, doubtful = [], []
    for number, each in enumerate(found):
        reading = next((one for one in each if one.style in wanted), each[0] if each else TEXT)
        if len(each) > 1 and reading.style in ("dmy", "mdy"):
            doubtful.append(number)
        chosen.append(reading)
    return chosen, doubtful


def _fitting(con: duckdb.DuckDBPyConnection, table: str, column: str) -> list[Reading]:
    """Return the readings that suit all cells of a column."""
    sample = con.execute(
        f"SELECT trim({column}) FROM {table} WHERE {column} IS NOT NULL LIMIT {SAMPLE}"  # noqa: S608 # our names
    ).fetchall()
    cells = [cell for (cell,) in sample if cell.lower() not in NOTHING]
    if not cells:
        return []
    likely = [*_numbers(cells), *_dates(cells), *_others(cells)]
    if not likely:
        return []
    nothing = ", ".join(f"'{one}'" for one in NOTHING)
    checks = [f"count(*) FILTER ({one.is_one} AND {one.value} IS NOT NULL)" for one in likely]
    counts = con.execute(
        f"SELECT count(*), {', '.join(checks).replace('{}', 'cell')}"  # noqa: S608 # of our own names
        f" FROM (SELECT trim({column}) AS cell FROM {table} WHERE {column} IS NOT NULL)"
        f" WHERE lower(cell) NOT IN ({nothing})"
    ).fetchone()
    assert counts is not None
    fitting = [one for one, count in zip(likely, counts[1:], strict=True) if count == counts[0]]
    return [one for one in fitting if one.type == "integer"] or fitting


def _numbers(cells: list[str]) -> list[Reading]:
    """Return the ways to read cells as numbers."""
    if not any(char.isdigit() for char in cells[0]):
        return []
    if _all(cells, INTEGER):
        # Later cells may have decimals: then one of the other ways suits.
        whole = Reading(
            "integer",
            "TRY_CAST(replace({}, '\u2212', '-') AS BIGINT)",
            f"regexp_full_match({{}}, '{INTEGER}')",
        )
        return [whole, *_decimals("", "point"), *_decimals("", "comma")]
    units = {unit for cell in cells for unit in re.findall(UNIT, cell)}
    if len(units) > 1:
        return []  # euros and dollars in one column must not be added up
    unit = next(iter(units), "")
    ways = [
        style for style, pattern in (("point", POINT), ("comma", COMMA)) if _all(cells, pattern)
    ]
    return [one for style in ways for one in _decimals(unit, style)]


def _decimals(unit: str, style: str) -> list[Reading]:
    """Return the way to read numbers of a style, each with the column's unit, or none with one."""
    pattern = (POINT if style == "point" else COMMA).replace("'", "''")
    bare = f"replace({{}}, '{unit}', '')" if unit else "{}"
    changed, into = ("\u2212,", "-") if style == "point" else ("\u2212,.", "-.")
    plain = f"translate({bare}, '{changed}+ \u00a0\u202f''’', '{into}')"  # noqa: RUF001
    same_unit = f"contains({{}}, '{unit}')" if unit else f"NOT regexp_matches({{}}, '{UNIT}')"
    return [
        Reading(
            "number",
            f"TRY_CAST({plain} AS DOUBLE)",
            f"regexp_full_match({{}}, '{pattern}') AND {same_unit} AND isfinite(TRY_CAST({plain} AS DOUBLE))",
            style,
            unit,
            plain,
        )
    ]


def _dates(cells: list[str]) -> list[Reading]:
    """Return the ways to read cells as days, or as days with a time."""
    if not _all(cells[:100], DATE_LIKE.pattern):
        return []
    has_time = [":" in cell for cell in cells]
    formats: Callable[[str], list[str]]
    if any(has_time):

        def formats(day: str) -> list[str]:
            timed = [
                f"{day}{gap}{clock}{zone}"
                for gap in (" ", "T", ", ")
                for clock in CLOCKS
                for zone in ("", "Z")
            ]
            return [*timed, day]
    else:

        def formats(day: str) -> list[str]:
            return [day]

    kind, type = ("TIMESTAMP", "datetime") if any(has_time) else ("DATE", "date")
    found = []
    for style, days in DAYS.items():
        used = [
            one
            for day in days
            for one in formats(day)
            if any(_suits(cell, one) for cell in cells[:200])
        ]
        if used:
            listed = ", ".join(f"'{one}'" for one in used)
            value = f"CAST(try_strptime({{}}, [{listed}]) AS {kind})"
            found.append(Reading(type, value, style=style))
    return found


def _suits(cell: str, format: str) -> bool:
    try:
        datetime.datetime.strptime(cell, format)  # noqa: DTZ007 # only whether it can be read
    except ValueError:
        return False
    return True


def _others(cells: list[str]) -> list[Reading]:
    if all(cell.lower() in ("true", "false") for cell in cells):
        return [Reading("boolean", "TRY_CAST({} AS BOOLEAN)", "lower({}) IN ('true', 'false')")]
    if _all(cells, TIME):
        padded = "CASE WHEN instr({}, ':') = 2 THEN '0' || {} ELSE {} END"
        return [
            Reading("time", f"TRY_CAST({padded} AS TIME)", f"regexp_full_match({{}}, '{TIME}')")
        ]
    return []


def _all(cells: list[str], pattern: str) -> bool:
    match = re.compile(pattern).fullmatch
    return all(match(cell) for cell in cells)


def cast(con: duckdb.DuckDBPyConnection, table: str, column: str, reading: Reading) -> str:
    """Return the SQL of a column's values; those of numbers with few decimals are exact, and so are their sums."""
    text = f"trim({column})"
    value = reading.value.replace("{}", text)
    if reading.type == "text":
        return f"CASE WHEN {text} <> '' THEN {column} END"
    if reading.type != "number":
        return value
    plain = reading.plain.replace("{}", text)
    row = con.execute(
        f"SELECT max(abs({value})), max(length(split_part({plain}, '.', 2))), bool_or(contains(lower({plain}), 'e'))"  # noqa: S608
        f" FROM {table} WHERE {value} IS NOT NULL"
    ).fetchone()
    assert row is not None
    largest, decimals, has_exponent = row
    if has_exponent or decimals > MAX_DECIMALS or largest >= 10 ** (17 - decimals):
        return value
    return f"TRY_CAST({plain} AS DECIMAL(18, {decimals}))"
