"""The parser of WhatsApp's exports, on exports of many countries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chat.documents.parsing import detect, whatsapp
from chat.documents.parsing.errors import ParseError
from chat.documents.statistics.chats import of_chat
from tests.support.chat_exports import EXPORTS, Export


def parse(folder: Path, text: str, **options: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    path = folder / "chat.txt"
    path.write_bytes(text.encode())
    *blocks, last = whatsapp.parse(str(path), {"today": "2026-06-01", **options})
    assert last["kind"] == "notes"
    return blocks, last["notes"]


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.name)
def test_export_of_a_country_is_read_whole(export: Export, tmp_path):
    blocks, notes = parse(tmp_path, export.text, **export.options)
    recognised = detect.detect({"path": str(tmp_path / "chat.txt"), "name": "chat.txt"})
    assert recognised["format"] == "whatsapp"
    assert "unknown_times_of_day" not in notes
    found = [
        (block["kind"], block["sender"], block["sent_at"].removesuffix("+00:00"), block["text"])
        for block in blocks
    ]
    assert found == export.blocks
    assert ("date_order_guessed" not in notes) == export.is_sure


def test_extras_name_files_captions_and_edits(tmp_path):
    blocks, _notes = parse(tmp_path, EXPORTS[1].text)
    assert [block.get("extra") for block in blocks] == [
        None,
        {"caption": ""},
        None,
        {"file": "00000012-PHOTO-2024-03-13-08-00-00.jpg", "caption": "Hinweg"},
        {"edited": True},
        None,
        None,
        {"caption": "Liste.pdf • 3 Seiten"},
        None,
    ]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "not_a_chat"),
        ("A letter.\nSee you at 10:15 - Anna: bring it\n", "not_a_chat"),
        ("99.99.2024, 10:15 - Anna: never\n", "not_a_chat"),
        ("12.03.24, 09:58 - Nachrichten und Anrufe sind verschlüsselt.\n", "empty_chat"),
    ],
)
def test_file_without_messages_is_refused(text: str, code: str, tmp_path):
    with pytest.raises(ParseError) as refused:
        parse(tmp_path, text)
    assert refused.value.code == code


def test_dates_of_other_calendars_are_noted(tmp_path):
    _blocks, notes = parse(tmp_path, "[1403/1/1, 08:05:01] Sara: salam\n")
    assert notes["calendar"] == "persian"
    _blocks, notes = parse(tmp_path, "[1/9/1446, 08:05:01] Layla: salam\n")
    assert notes["calendar"] == "islamic"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", [" " * 30_000 + "<", "<a:" * 10_000, "a'" * 15_000, "www." * 8_000]
)
def test_repetitive_lines_take_linear_time(text: str, tmp_path):
    blocks, _notes = parse(tmp_path, f"13.01.2026, 10:15 - Anna: {text}\n" * 20)
    assert len(of_chat([*blocks])["people"]) == 1


def test_clock_set_back_is_accepted(tmp_path):
    text = "13.01.2026, 10:15 - Anna: wrong clock\n" + "".join(
        f"{day}.03.2024, 10:15 - Ben: {day}\n" for day in range(1, 29)
    )
    blocks, notes = parse(tmp_path, text)
    assert [block["text"] for block in blocks] == ["wrong clock", *map(str, range(1, 29))]
    assert "quoted_headers" not in notes


def test_text_of_any_length_is_kept_in_bounded_blocks(tmp_path):
    long = "x" * 200_000
    text = f"13.01.2026, 10:15 - Anna: {long}\n13.01.2026, 10:16 - Ben: short\n"
    blocks, notes = parse(tmp_path, text)
    assert "".join(block["text"] for block in blocks[:-1]) == long
    assert max(len(block["text"]) for block in blocks) <= whatsapp.TEXT_LENGTH
    assert {block["sender"] for block in blocks[:-1]} == {"Anna"}
    assert blocks[-1]["text"] == "short"
    assert notes["long_texts_split"] == len(blocks) - 2
