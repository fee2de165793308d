"""The encoding of a text: by its mark, else UTF-8, UTF-16 by its zeros, else the most likely one of its bytes."""

from __future__ import annotations

import codecs
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from unicodedata import category

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
REPLACED = "\ufffd"
MOST_BROKEN = 0.02  # of the letters beyond ASCII of a text in UTF-8: phones cut emoji in two
MOST_ZEROS = 0.001  # of the bytes of a text in an encoding of single bytes
FALLBACK = "cp1252"
# Of UTF-16 without a mark: spaces and ends of lines at least, and characters that no text has at most.
WORD_ENDS, LEAST_ENDS = " \n", 0.02
NO_LETTERS, MOST_ODD = {"Cc", "Cn", "Co", "Cs"}, 0.01
# What the decompressors raise for bytes that are none of theirs.
DAMAGED = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError),
    *(zlib.error, lzma.LZMAError),
)
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
    except DAMAGED as error:
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
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    zeros = size = letters = broken = 0
    sample = bytearray()
    with opened(path, member) as file:
        while chunk := file.read(CHUNK):
            size += len(chunk)
            zeros += chunk.count(0)
            if chunk.isascii():
                continue
            text = decoder.decode(chunk)
            broken += text.count(REPLACED)
            letters += len(text) - len(text.encode("ascii", "ignore"))
            for line in io.BytesIO(chunk):
                if not line.isascii() and len(sample) < SAMPLE:
                    sample += line[:SAMPLE]
    if zeros > MOST_ZEROS * size:
        raise ParseError("unknown_type")
    if size <= HEAD:  # a longer one may be cut off in its last character
        broken += decoder.decode(b"", final=True).count(REPLACED)
    if broken <= MOST_BROKEN * (letters - broken):
        return "utf-8-sig", True
    return _guessed(bytes(sample)), False


def _wide(head: bytes) -> str:
    """Return the name of UTF-16 for bytes that are a text in it, else an empty text."""
    for encoding in ("utf-16-le", "utf-16-be"):
        text = head[: len(head) // 2 * 2].decode(encoding, "replace")
        ends = sum(map(text.count, WORD_ENDS))
        odd = sum(one not in "\t\r\n" and category(one) in NO_LETTERS for one in text)
        is_latin = len(text) > 1 and sum(one < "\u0100" for one in text) > 0.7 * len(text)
        # Bytes in another encoding seem to be letters of East Asia, without a space between them.
        if odd <= MOST_ODD * len(text) and (is_latin or ends > LEAST_ENDS * len(text)):
            return encoding
    return ""


def _guessed(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_exclusion=EXCLUDED).best()
    return str(best.encoding) if best is not None else FALLBACK
