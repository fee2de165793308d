"""Reads text files of users: any file that is text, whatever its ending."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from django.utils.translation import gettext as _

from chat.errors import ChatError
from chat.llm.tokens import count_tokens, token_upper_bound, typical_tokens

MAX_BYTES = 1_000_000  # in UTF-8: some 250,000 tokens, more than most models read

# Control characters that text does not have, and NUL, of which every other type has some.
CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffe\uffff]")
MOST_CONTROL = 0.002  # of all characters: logs have a few
ODD = re.compile("[\x00\ud800-\udfff]")  # what JSON and Postgres do not take
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Text:
    """A text as it is stored, with its estimated tokens (see Attachment)."""

    text: str
    tokens: int
    counted: int
    bound: int


def read(data: bytes) -> Text:
    """Decode a text: UTF-8, UTF-16 and UTF-32 with their marks, else Windows-1252.

    Raises ChatError `bad_file` for a file that is no text, and `file_too_large`.
    """
    text = _decoded(data).replace("\r\n", "\n").replace("\r", "\n")
    found = len(CONTROL.findall(text))
    if "\x00" in text or found > max(1, MOST_CONTROL * len(text)):
        raise not_text()
    text = ODD.sub("\ufffd", text)
    if not text.strip():
        raise ChatError("bad_file", _("The file is empty. Attach another one."))
    if len(text.encode()) > MAX_BYTES:
        raise too_long()
    return Text(text, typical_tokens(text), count_tokens(text), token_upper_bound(text))


def not_text() -> ChatError:
    """Return the refusal of a file that is neither an image nor a text."""
    return ChatError(
        "bad_file",
        _(
            "This type of file cannot be attached. Attach an image (JPEG, PNG, WebP, GIF) or a text."
        ),
    )


def too_long() -> ChatError:
    """Return the refusal of a text that is too long."""
    return ChatError(
        "file_too_large",
        _("The text is larger than %(most)d kB. Attach a part of it.")
        % {"most": MAX_BYTES // 1000},
    )


def _decoded(data: bytes) -> str:
    try:
        for mark, encoding in MARKS:
            if data.startswith(mark):
                return data.decode(encoding)
        return data.decode()
    except UnicodeDecodeError as error:
        # Windows-1252 has undefined bytes, by which binary data are recognised; other charsets have none.
        if b"\x00" in data or data.startswith(codecs.BOM_UTF8):
            raise not_text() from error
        try:
            return data.decode("cp1252")
        except UnicodeDecodeError:
            raise not_text() from error
