"""Reads the cells of a CSV file, whatever its encoding and dialect. Runs in a sandboxed child."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from charset_normalizer import from_bytes

from chat.documents.datasets.errors import TableRefused

DELIMITERS = ",;\t|"
SAMPLE_CHARACTERS = 64 * 1024
SAMPLE_LINES = 200
SAMPLE_BYTES = 64 * 1024
CHUNK = 1 << 20
MAX_ENDLESS = 3  # chunks without the end of a line

# Of a cell that is read at all: beyond it a quotation mark was never closed.
LONGEST_FIELD = 1_000_000

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Encodings that spreadsheets write, the commonest first.
LEGACY = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp932", "gb18030", "big5",
    "cp949", "mac_roman", "cp437",
]  # fmt: skip
WESTERN = frozenset(
    "äöüÄÖÜßéèêëàâáãåæçñóòôõøœúùûîíïìÉÈÊÀÂÁÅÆØŒÇÑÓÔÕÚÍ€£§°´–—‘’‚“”„…©®½²³µ«»·\u00a0"  # noqa: RUF001
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file writes its cells."""

    encoding: str
    delimiter: str
    has_quotes: bool = True
    skip: int = 0  # lines before the first row: Excel's "sep=;"
    has_zeros: bool = False  # characters that no text has


def sniff(path: Path) -> Dialect:
    """Return the dialect of a file. Raises TableRefused for one without any text."""
    encoding = encoding_of(path)
    has_zeros = _scan(path, encoding)
    with opened(path, encoding) as file:
        sample = file.read(SAMPLE_CHARACTERS)
    if not sample.strip():
        raise TableRefused("table_empty")
    first = sample.split("\n", 1)[0].strip()
    if first.lower().startswith("sep=") and len(first) == len("sep=") + 1:
        return Dialect(encoding, first[-1], skip=1, has_zeros=has_zeros)
    lines = sample.splitlines(keepends=True)[:SAMPLE_LINES]
    if len(sample) == SAMPLE_CHARACTERS and len(lines) > 1:
        lines.pop()  # cut off in its middle
    delimiter = max(DELIMITERS, key=lambda one: _fitness(lines, one))
    return Dialect(encoding, delimiter, has_zeros=has_zeros)


def _scan(path: Path, encoding: str) -> bool:
    """Return whether a file has zeros in its text. Raises TableRefused for a line of megabytes."""
    has_zeros, endless = False, 0
    with opened(path, encoding) as file:
        while chunk := file.read(CHUNK):
            has_zeros = has_zeros or "\0" in chunk
            endless = 0 if "\n" in chunk or "\r" in chunk else endless + 1
            if endless > MAX_ENDLESS:
                raise TableRefused("table_row_too_long")
    return has_zeros


def encoding_of(path: Path) -> str:
    """Return the encoding of a file: by its mark, UTF-8 where that decodes, else the most likely legacy one."""
    with path.open("rb") as file:
        start = file.read(SAMPLE_BYTES)
        for mark, encoding in BOMS:
            if start.startswith(mark):
                return encoding
        zeros = start.count(0)
        if zeros > len(start) // 4:
            return (
                "utf-16-be" if start[:2000:2].count(0) > start[1:2000:2].count(0) else "utf-16-le"
            )
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while chunk := file.read(CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
            return "utf-8"
        except UnicodeDecodeError:
            file.seek(0)
            odd = b"".join(_lines_beyond_ascii(file))
    # A few accented letters among many plain ones are too little for a guess by frequency.
    western = odd.decode("cp1252", "replace")
    letters = [char for char in western if char.isalpha()]
    accented = [char for char in western if not char.isascii()]
    if WESTERN.issuperset(accented) and len(accented) < len(letters) / 3:
        return "cp1252"
    found = from_bytes(odd, cp_isolation=LEGACY, threshold=0.6).best()
    return found.encoding if found is not None else "cp1252"


def _lines_beyond_ascii(file: io.BufferedReader) -> Iterator[bytes]:
    """Yield the parts of a file that tell its encoding, as many as a guess needs."""
    size = 0
    while size < SAMPLE_BYTES and (line := file.readline(4096)):
        if not line.isascii():
            size += len(line)
            yield line


def opened(path: Path, encoding: str) -> TextIO:
    """Open a file as text; bytes that are none become replacement characters, and line ends stay."""
    return path.open(encoding=encoding, errors="replace", newline="")


def _fitness(lines: list[str], delimiter: str) -> tuple[float, int]:
    """Return how well a delimiter divides lines: the share of rows of the commonest width, and that width."""
    try:
        rows = list(csv.reader(lines, delimiter=delimiter))
    except csv.Error:
        return 0.0, 0
    widths = Counter(map(len, filter(None, rows)))
    if not widths:
        return 0.0, 0
    width, count = max(widths.items(), key=lambda item: (item[1] * (item[0] > 1), item[0]))
    if width < 2:
        return 0.0, 1
    return round(count / widths.total(), 1), width


def rows(path: Path, dialect: Dialect) -> Iterator[list[str]]:
    """Yield the rows of a file. Raises csv.Error for a cell longer than any real one."""
    csv.field_size_limit(LONGEST_FIELD)
    with opened(path, dialect.encoding) as file:
        for _ in range(dialect.skip):
            file.readline()
        yield from csv.reader(
            (line.replace("\0", "") for line in file) if dialect.has_zeros else file,
            delimiter=dialect.delimiter,
            quoting=csv.QUOTE_MINIMAL if dialect.has_quotes else csv.QUOTE_NONE,
        )
