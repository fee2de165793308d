"""Reads the conversations of an uploaded file one at a time, within a bound of memory.

The file is JSON, or a zip archive with JSON in it. The text is decoded leniently; a conversation that is too
large is left out while the others are read.
"""

from __future__ import annotations

import codecs
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

import ijson
import ijson.common
from django.utils.translation import gettext as _

CHAT_CHARACTERS = 20_000_000  # of the texts of one conversation
FILE_CHARACTERS = 60_000_000  # of the files of one conversation; further ones are left out
CHAT_VALUES = 1_000_000  # values and keys of one conversation
STRING_BYTES = 32_000_000  # of one text
JSON_BYTES = 1_000_000_000  # of all JSON in an archive
FILE_EVENTS = (
    30_000_000  # of the parser for a whole file, some 20 s of work; a large export has 5 million
)
DIRECTORY_BYTES = 10_000_000  # of an archive's list of files
CHUNK = 65_536
# zipfile unpacks these in parts of a bounded size, others in whole blocks of any size.
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
LISTS = ("conversations", "chats")  # keys of an object that holds a list of conversations


class Unreadable(Exception):
    """A file, or a conversation of it, that cannot be read; `str` is a sentence for the user."""


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A conversation that exceeds a bound."""

    title: str


def read(path: Path, progress: Callable[[int], None]) -> Iterator[Any]:
    """Yield the conversations of a file, unchecked, or TooLarge in place of one.

    `progress` is called often, with the percentage that has been read. Raises Unreadable, also after some
    conversations.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        is_archive = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
        file.seek(0)
        if is_archive:
            yield from _read_archive(file, progress)
        elif size == 0:
            raise Unreadable(_("The file is empty. Choose another one."))
        else:
            yield from _read_json(Utf8(file, size, progress), count(1))


def _read_archive(file: IO[bytes], progress: Callable[[int], None]) -> Iterator[Any]:
    _check_directory(file)
    try:
        with zipfile.ZipFile(file) as archive:
            members = [one for one in archive.infolist() if one.filename.lower().endswith(".json")]
            if sum(one.file_size for one in members) > JSON_BYTES:
                raise Unreadable(_("The archive is too large when it is unpacked."))
            if not members:
                raise Unreadable(_("The archive has no JSON file. Choose an export of chats."))
            if any(one.compress_type not in COMPRESSIONS for one in members):
                raise Unreadable(_("The archive is packed in an unusual way. Unpack it first."))
            total = sum(one.file_size for one in members) or 1
            before = 0
            unreadable: Unreadable | None = None
            events = count(1)
            for member in members:
                with archive.open(member) as unpacked:
                    # Not more than it announces, whatever its data unpack to.
                    text = Utf8(unpacked, total, progress, before, member.file_size)
                    try:
                        yield from _read_json(text, events)
                    except Unreadable as error:
                        unreadable = unreadable or error  # the others are read all the same
                before += member.file_size
            if unreadable is not None:
                raise unreadable
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:
        raise Unreadable(_("The archive is damaged. Download it again.")) from error
    except RuntimeError as error:  # of zipfile, for a password
        raise Unreadable(_("The archive has a password. Unpack it and upload the JSON.")) from error


def _check_directory(file: IO[bytes]) -> None:
    """Raise Unreadable for an archive whose list of files would fill the memory."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 65_600))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    file.seek(0)
    if at < 0 or b"PK\x06\x07" in tail[max(0, at - 20) : at]:
        raise Unreadable(_("The archive is damaged. Download it again."))
    if int.from_bytes(tail[at + 12 : at + 16], "little") > DIRECTORY_BYTES:
        raise Unreadable(_("The archive has too many files. Unpack it and upload the JSON."))


# A quotation mark that ends a text, except after a backslash.
QUOTE = re.compile(rb'(?<!\\)"')


class Utf8:
    """A file in UTF-8 or UTF-16, as valid UTF-8 for the parser; bounds the length of a text in it."""

    def __init__(
        self,
        file: IO[bytes],
        total: int,
        progress: Callable[[int], None],
        before: int = 0,
        most: int | None = None,
    ) -> None:
        self._file, self._total, self._progress = file, total, progress
        self._read, self._left = before, most
        self._decoder: codecs.IncrementalDecoder | None = None
        self._since_quote = 0

    def read(self, _size: int = -1) -> bytes:
        """Return the next part; empty at the end. The parser asks with 0 first, to see the type."""
        if _size == 0:
            return b""
        text = ""
        while not text:
            raw = self._file.read(CHUNK)
            if self._decoder is None:
                utf16 = raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                self._decoder = codecs.getincrementaldecoder("utf-16" if utf16 else "utf-8-sig")(
                    "replace"
                )
            self._read += len(raw)
            if self._left is not None:
                self._left -= len(raw)
                if self._left < 0:
                    raise Unreadable(_("The archive is damaged. Download it again."))
            self._progress(min(99, 100 * self._read // self._total))
            text = self._decoder.decode(raw, final=not raw)
            if not raw:
                break
        data = text.encode(errors="replace")
        quotes = [match.end() for match in QUOTE.finditer(data)]
        self._since_quote = len(data) - quotes[-1] if quotes else self._since_quote + len(data)
        if self._since_quote > STRING_BYTES:
            raise Unreadable(_("The file has a text that is too long to be read."))
        return data


@dataclass(slots=True)
class Size:
    """The size of the values that one conversation has so far."""

    characters: int = 0
    values: int = 0
    files: int = 0

    @property
    def is_too_large(self) -> bool:
        return self.characters > CHAT_CHARACTERS or self.values > CHAT_VALUES


def _read_json(text: Utf8, numbers: Iterator[int]) -> Iterator[Any]:
    """Yield the conversations of a text; `numbers` counts the events of the whole file."""
    parsed = ijson.basic_parse(text, buf_size=CHUNK, use_float=True)
    events = _bounded(parsed, numbers)
    try:
        event, _value = next(events)
        if event == "start_array":
            yield from _items(events)
        elif event == "start_map":
            yield from _from_object(events)
        else:
            raise Unreadable(_("The file has no chats. Choose an export of chats."))
        for _rest in events:
            pass  # raises for anything after the end
    except (ijson.common.JSONError, StopIteration, ValueError, OverflowError) as error:
        raise Unreadable(
            _("The file is not valid JSON, or is cut off. Download it again.")
        ) from error


def _bounded(
    events: Iterator[tuple[str, Any]], numbers: Iterator[int]
) -> Iterator[tuple[str, Any]]:
    for event, number in zip(events, numbers, strict=False):
        if number > FILE_EVENTS:
            raise Unreadable(_("The file has more parts than can be read. Split it."))
        yield event


def _items(events: Iterator[tuple[str, Any]]) -> Iterator[Any]:
    """Yield the items of a list, up to its end."""
    for event, value in events:
        if event == "end_array":
            return
        yield _build(events, event, value, Size())


def _from_object(events: Iterator[tuple[str, Any]]) -> Iterator[Any]:
    """Yield the conversations of a list in an object; without such a list the object itself."""
    others: dict[str, Any] = {}
    size = Size()
    title = ""
    has_list = False
    for event, key in events:
        if event == "end_map":
            break
        event, value = next(events)
        if key in LISTS and event == "start_array":
            has_list = True
            yield from _items(events)
        else:
            size.characters += len(key)
            if key in ("title", "name") and event == "string":
                title = title or value[:200]
            built = _build(events, event, value, size)
            if size.is_too_large:
                others.clear()
            else:
                others[key] = built
    if not has_list:
        yield TooLarge(title) if size.is_too_large else others


def _build(events: Iterator[tuple[str, Any]], event: str, value: Any, size: Size) -> Any:
    """Return the value that begins with an event; TooLarge for one beyond the bounds, read to its end.

    `size` is that of the conversation before it, and then after it.
    """
    root: list[Any] = []
    stack: list[list[Any] | dict[str, Any]] = [root]
    keys: list[str] = [""]
    characters, values, files = size.characters, size.values, size.files
    title = ""
    depth = 0
    while True:
        if event == "map_key":
            if stack:
                keys[-1] = value
            characters += len(value)
        elif event in ("end_map", "end_array"):
            depth -= 1
            if stack:
                stack.pop()
                keys.pop()
        else:
            is_opening = event in ("start_map", "start_array")
            made: Any = ({} if event == "start_map" else []) if is_opening else value
            if isinstance(value, str):
                if keys and keys[-1] == "data":  # a file of Parley's own export
                    files += len(value)
                    if files > FILE_CHARACTERS:
                        files -= len(value)
                        made = ""
                else:
                    characters += len(value)
                if depth == 1 and keys and keys[-1] in ("title", "name"):
                    title = value[:200]
            values += 1
            if stack:
                parent = stack[-1]
                if isinstance(parent, dict):
                    parent[keys[-1]] = made
                else:
                    parent.append(made)
            if is_opening:
                depth += 1
                if stack:
                    stack.append(made)
                    keys.append("")
        if stack and (characters > CHAT_CHARACTERS or values > CHAT_VALUES):
            stack, keys = [], []  # the rest is read and forgotten
            root.clear()
        if depth == 0:
            size.characters, size.values, size.files = characters, values, files
            return root[0] if root else TooLarge(title)
        event, value = next(events)
