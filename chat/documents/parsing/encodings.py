"""The encoding of a text: by its mark, else UTF-8, UTF-16 by its zeros, else the most likely one of its bytes."""

from __future__ import annotations

import codecs
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from chat.documents.parsing.errors import ParseError

CHUNK = 1_048_576
HEAD = 4_096
SAMPLE = 100_000  # bytes of lines beyond ASCII, from which an encoding is guessed
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MOST_ZEROS = 0.001  # of the bytes of a text in an encoding of single bytes
FALLBACK = "cp1252"
# Encodings that any bytes pass, and that no text is in any more.
EXCLUDED = ["utf_7", "utf_16", "utf_32", "cp037", "cp500", "cp875", "cp1026", "cp1140", "hz"]


@contextmanager
def opened(path: Path, member: str = "") -> Iterator[IO[bytes]]:
    """Open a file, or a file of an archive, for reading bytes."""
    if not member:
        with path.open("rb") as file:
            yield file
        return
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            yield stream
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError) as error:
        raise ParseError("broken_file") from error
    except RuntimeError as error:  # it needs a password
        raise ParseError("encrypted") from error


def encoding_of(path: Path, member: str = "") -> tuple[str, bool]:
    """Return the encoding of a text, and whether it is sure. Raises ParseError `unknown_type` for what is no text."""
    with opened(path, member) as file:
        head = file.read(HEAD)
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding, True
    if wide := _wide(head):
        return wide, True
    decoder = codecs.getincrementaldecoder("utf-8")()
    zeros = size = 0
    is_utf8 = True
    sample = bytearray()
    with opened(path, member) as file:
        while chunk := file.read(CHUNK):
            size += len(chunk)
            zeros += chunk.count(0)
            if is_utf8:
                try:
                    decoder.decode(chunk)
                except UnicodeDecodeError:
                    is_utf8 = False
            if not chunk.isascii() and len(sample) < SAMPLE:
                for line in io.BytesIO(chunk):
                    if not line.isascii() and len(sample) < SAMPLE:
                        sample += line[:SAMPLE]
    if zeros > MOST_ZEROS * size:
        raise ParseError("unknown_type")
    if is_utf8:
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            is_utf8 = size > HEAD  # cut off in its last character
    if is_utf8:
        return "utf-8-sig", True
    return _guessed(bytes(sample)), False


def _wide(head: bytes) -> str:
    """Return the name of UTF-16 for bytes of which every second one is mostly zero, else an empty text."""
    pairs = len(head) // 2
    if pairs < 2:
        return ""
    first, second = head[0 : 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0)
    if second > 0.7 * pairs and first < 0.05 * pairs:
        return "utf-16-le"
    if first > 0.7 * pairs and second < 0.05 * pairs:
        return "utf-16-be"
    return ""


def _guessed(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_exclusion=EXCLUDED).best()
    return str(best.encoding) if best is not None else FALLBACK
