"""Zip archives of users: what is in them, within limits, without unpacking anything.

Only one text of an archive is ever read, as a stream; names of its files reach no file system.
"""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path

from chat.documents.parsing.errors import ParseError

MAX_ENTRIES = 20_000  # a chat with media has thousands
MAX_TEXT_BYTES = 100_000_000  # of a text, unpacked
MAX_OFFICE_BYTES = 300_000_000  # of all parts of an Office file, unpacked
MAX_RATIO = 250  # of unpacked to packed: chats have about 5, repetitive sheets 50
RATIO_FROM = 10_000_000  # unpacked bytes from which the ratio counts

END, END_SIZE, END_SEARCHED = b"PK\x05\x06", 22, 66_000
ZIP64_LOCATOR, LOCATOR_SIZE = b"PK\x06\x07", 20
DIRECTORY_BYTES = 4_000_000
ENCRYPTED = 0x1

ARCHIVES = (".zip", ".rar", ".7z", ".gz", ".tar", ".tgz")
# How WhatsApp names the text: "_chat.txt" on iOS, "WhatsApp Chat with Anna.txt" in the phone's language on Android.
CHAT_NAME = re.compile(r"(^|/)(_chat|[^/]*whatsapp[^/]*)\.txt$", re.IGNORECASE)
TELEGRAM_NAME = re.compile(r"(^|/)result\.json$", re.IGNORECASE)


def entries(path: Path) -> list[zipfile.ZipInfo]:
    """Return the files of an archive. Raises ParseError `broken_file` and `zip_too_many`."""
    _check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            found = [one for one in archive.infolist() if not one.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise ParseError("broken_file") from error
    if len(found) > MAX_ENTRIES:
        raise ParseError("zip_too_many")
    return found


def _check_directory(path: Path) -> None:
    """Refuse a directory that would take much memory before it is read; zip64 has no use in files of this size."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - END_SEARCHED))
        tail = file.read()
    at = tail.rfind(END)
    if at < 0 or len(tail) - at < END_SIZE:
        raise ParseError("broken_file")
    if tail[max(0, at - LOCATOR_SIZE) : at].startswith(ZIP64_LOCATOR):
        raise ParseError("zip_too_many")
    (directory,) = struct.unpack("<L", tail[at + 12 : at + 16])
    if directory > DIRECTORY_BYTES:
        raise ParseError("zip_too_many")


def is_encrypted(entry: zipfile.ZipInfo) -> bool:
    """Return whether a file of an archive needs a password."""
    return bool(entry.flag_bits & ENCRYPTED)


def chat_of(found: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    """Return the text of the chat that an archive has; its other files, such as photos, are left out.

    Raises ParseError `encrypted`, `nested_archive`, `zip_without_chat`, `zip_many_texts`, `expands_too_much`.
    """
    texts = [one for one in found if one.filename.lower().endswith(".txt")]
    for chats in (
        [one for one in found if TELEGRAM_NAME.search(one.filename)],
        [one for one in texts if CHAT_NAME.search(one.filename)],
        texts,
    ):
        if len(chats) > 1:
            raise ParseError("zip_many_texts", texts=len(chats))
        if chats:
            chat = chats[0]
            break
    else:
        if any(one.filename.lower().endswith(ARCHIVES) for one in found):
            raise ParseError("nested_archive")
        raise ParseError("zip_without_chat")
    if is_encrypted(chat):
        raise ParseError("encrypted")
    check_expansion([chat], MAX_TEXT_BYTES)
    return chat


def check_expansion(found: list[zipfile.ZipInfo], most: int) -> None:
    """Raise ParseError `expands_too_much` if files unpack to too much; a reader gets no more than they declare."""
    unpacked = sum(one.file_size for one in found)
    packed = sum(one.compress_size for one in found)
    if unpacked > most or (unpacked > RATIO_FROM and unpacked > MAX_RATIO * max(1, packed)):
        raise ParseError("expands_too_much", bytes=unpacked)
