"""Recognises the format of an uploaded file by its content; its name only decides between kinds of text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from chat.documents.parsing import encodings, whatsapp_layouts, zips
from chat.documents.parsing.errors import ParseError

HEAD = 65_536
PDF, ZIP, OLE = b"%PDF-", b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
ENCRYPTED_OFFICE = "EncryptedPackage".encode("utf-16-le")
IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\x00", b"MM\x00*", b"BM")
IMAGE_BRANDS = (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1")
OTHERS = (b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf", b"\x7fELF", b"MZ", b"OggS", b"ID3", b"{\\rtf")

CHAT_LINES = 0.05  # of the first lines: messages may have many lines
FIRST_LINES = 400
TELEGRAM_KEYS = ("messages", "chats", "personal_information", "frequent_contacts")
MARKDOWN_NAMES, TABLE_NAMES = (".md", ".markdown", ".mdown"), (".csv", ".tsv", ".tab")
MARKDOWN_LINE = re.compile(
    r"(#{1,6}\s+\S|```|\s{0,3}[-*+]\s+\S|\|.+\|\s*$|>\s|\[[^\]]+\]\([^)]+\))"
)
HEADING = re.compile(r"#{1,6}\s+\S")
DELIMITERS = ",;\t|"


def detect(argument: dict[str, Any]) -> dict[str, Any]:
    """Return the `format` of the file `path` and the `options` for its parser. Raises ParseError.

    `name` is what its user called it.
    """
    path, name = Path(argument["path"]), str(argument["name"]).lower()
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head.strip(b"\x00\r\n\t \xef\xbb\xbf\xff\xfe"):
        raise ParseError("empty")
    if PDF in head[:1_024]:
        return {"format": "pdf", "options": {}}
    if head.startswith((ZIP, b"PK\x05\x06")):
        return _of_zip(path)
    if head.startswith(OLE):
        whole = path.read_bytes()
        raise ParseError("encrypted" if ENCRYPTED_OFFICE in whole else "old_office")
    if _is_image(head):
        raise ParseError("image")
    if head.startswith(OTHERS):
        raise ParseError("unknown_type")
    return _of_text(path, "", name)


def _is_image(head: bytes) -> bool:
    is_webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    return is_webp or head.startswith(IMAGES) or head[4:12] in IMAGE_BRANDS


def _of_zip(path: Path) -> dict[str, Any]:
    found = zips.entries(path)
    names = {one.filename for one in found}
    for part, format in (
        ("word/document.xml", "docx"),
        ("xl/workbook.xml", "xlsx"),
        ("xl/workbook.bin", "xlsx"),
    ):
        if part in names and "[Content_Types].xml" in names:
            if any(zips.is_encrypted(one) for one in found):
                raise ParseError("encrypted")
            zips.check_expansion(found, zips.MAX_OFFICE_BYTES)
            return {"format": format, "options": {}}
    if "[Content_Types].xml" in names or "mimetype" in names:  # slides, OpenDocument, books
        raise ParseError("unknown_type")
    chat = zips.chat_of(found)
    made = _of_text(path, chat.filename, chat.filename.lower())
    if made["format"] not in ("whatsapp", "telegram"):
        raise ParseError("zip_without_chat")
    made["options"]["member"] = chat.filename
    made["options"]["left_out"] = len(found) - 1
    return made


def _of_text(path: Path, member: str, name: str) -> dict[str, Any]:
    encoding, is_sure = encodings.encoding_of(path, member)
    options: dict[str, Any] = {"encoding": encoding}
    if not is_sure:
        options["encoding_guessed"] = True
    with encodings.opened(path, member) as file:
        text = file.read(HEAD).decode(encoding, "ignore").lstrip("\ufeff")
    if not text.strip():
        raise ParseError("empty")
    lines = text.splitlines()[:FIRST_LINES]
    if _is_telegram(text):
        return {"format": "telegram", "options": options}
    headers = sum(whatsapp_layouts.header(line) is not None for line in lines)
    if headers >= max(1, CHAT_LINES * len(lines)) and whatsapp_layouts.header(_first(lines)):
        return {"format": "whatsapp", "options": options}
    if name.endswith(TABLE_NAMES) or not name.endswith((*MARKDOWN_NAMES, ".txt", ".log")):
        complete = lines[:-1] if len(text) > HEAD // 2 and len(lines) > 1 else lines
        if _is_table(complete, is_named=name.endswith(TABLE_NAMES)):
            return {"format": "csv", "options": options}
    if name.endswith(MARKDOWN_NAMES) or _is_markdown(lines):
        return {"format": "markdown", "options": options}
    return {"format": "text", "options": options}


def _first(lines: list[str]) -> str:
    return next((line for line in lines if line.strip()), "")


def _is_telegram(text: str) -> bool:
    return text.lstrip().startswith("{") and any(json.dumps(key) in text for key in TELEGRAM_KEYS)


def _is_table(lines: list[str], *, is_named: bool) -> bool:
    """Return whether most lines have the same number of a delimiter; a file that is called a table needs less."""
    filled = [line for line in lines if line.strip()]
    if not filled:
        return False
    if is_named:
        return any(delimiter in filled[0] for delimiter in DELIMITERS) or len(filled) > 1
    if len(filled) < 3:
        return False
    for delimiter in DELIMITERS:
        counts = [line.count(delimiter) for line in filled]
        usual = max(set(counts), key=counts.count)
        if usual >= 1 and counts[0] == usual and counts.count(usual) >= 0.95 * len(counts):
            return not any(line.endswith((".", "?", "!")) for line in filled[:20])
    return False


def _is_markdown(lines: list[str]) -> bool:
    """Return whether a text that is not called so has headings and other marks of Markdown."""
    headings = sum(HEADING.match(line) is not None for line in lines)
    marks = sum(MARKDOWN_LINE.match(line) is not None for line in lines)
    return headings >= 2 and marks >= max(3, 0.05 * len(lines))
