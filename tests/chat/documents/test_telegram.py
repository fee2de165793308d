"""The parser of Telegram's exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chat.documents.parsing import telegram
from chat.documents.parsing.errors import ParseError

MESSAGES: list[dict[str, Any]] = [
    {
        "id": 1,
        "type": "service",
        "date": "2024-03-12T09:00:00",
        "actor": "Anna",
        "action": "create_group",
        "title": "Trip",
        "members": ["Anna", "Ben"],
    },
    {"id": 2, "type": "message", "date": "2024-03-12T10:15:00", "from": "Anna", "text": "Hello"},
    {
        "id": 3,
        "type": "message",
        "date": "2024-03-12T10:16:00",
        "from": "Ben",
        "reply_to_message_id": 2,
        "edited": "2024-03-12T10:20:00",
        "text": [
            "See ",
            {"type": "link", "text": "https://example.org"},
            " and ",
            {"type": "text_link", "text": "this", "href": "https://example.org/x"},
        ],
    },
    {
        "id": 4,
        "type": "message",
        "date": "2024-03-12T10:17:00",
        "from": None,
        "from_id": "user77",
        "forwarded_from": "Cem",
        "text": "passed on",
    },
    {
        "id": 5,
        "type": "message",
        "date": "2024-03-12T10:18:00",
        "from": "Ben",
        "photo": "photos/photo_1.jpg",
        "width": 1,
        "height": 1,
        "text": "The sea",
    },
    {
        "id": 6,
        "type": "message",
        "date": "2024-03-12T10:19:00",
        "from": "Ben",
        "file": "(File not included.)",
        "media_type": "sticker",
        "sticker_emoji": "🦊",
        "text": "",
    },
    {
        "id": 7,
        "type": "message",
        "date": "2024-03-12T10:20:00",
        "from": "Anna",
        "text": "",
        "poll": {
            "question": "Pizza?",
            "closed": False,
            "answers": [{"text": "Yes", "voters": 2}, {"text": "No", "voters": 0}],
        },
    },
    {"id": 8, "type": "service", "date": "2024-03-12T10:21:00", "actor": "Ben", "action": "x_y"},
]
CHAT = {"name": "Trip", "type": "private_group", "id": 4711, "messages": MESSAGES}
ACCOUNT = {
    "about": "Here is your data",
    "personal_information": {"first_name": "Anna"},
    "chats": {
        "about": "…",
        "list": [
            CHAT,
            {"name": "Empty", "type": "personal_chat", "id": 1, "messages": []},
            {"type": "saved_messages", "id": 2, "messages": [MESSAGES[1]]},
        ],
    },
}


def parse(folder: Path, data: Any, **options: str) -> list[dict[str, Any]]:
    path = folder / "result.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data, ensure_ascii=False))
    return list(telegram.parse(str(path), options))


def test_chat_is_read_whole(tmp_path):
    *blocks, last = parse(tmp_path, CHAT)
    assert [(one["kind"], one["sender"], one["text"]) for one in blocks] == [
        ("system", "", "Anna created the group “Trip”"),
        ("message", "Anna", "Hello"),
        ("message", "Ben", "See https://example.org and this (https://example.org/x)"),
        ("message", "user77", "passed on"),
        ("media", "Ben", "The sea\n[Photo]"),
        ("media", "Ben", "[Sticker 🦊]"),
        ("poll", "Anna", "Pizza?\n• Yes (2)\n• No (0)"),
        ("system", "", "Ben: x y"),
    ]
    assert blocks[1]["sent_at"] == "2024-03-12T10:15:00+00:00"
    assert blocks[2]["extra"] == {"edited": True, "reply_to": 2, "message": 3}
    assert blocks[3]["extra"]["forwarded"] == "Cem"
    assert blocks[4]["extra"] == {"message": 5, "caption": "The sea", "file": "photo_1.jpg"}
    assert last == {"kind": "notes", "notes": {"chat_name": "Trip"}}


def test_account_asks_for_a_chat_and_reads_it(tmp_path):
    with pytest.raises(ParseError) as refused:
        parse(tmp_path, ACCOUNT)
    assert refused.value.code == "choose_chat"
    assert refused.value.details["chats"] == [
        {"id": "4711", "name": "Trip", "type": "private_group", "messages": 8},
        {"id": "2", "name": "", "type": "saved_messages", "messages": 1},
    ]
    assert [one["kind"] for one in parse(tmp_path, ACCOUNT, chat="2")] == ["message", "notes"]
    assert len(parse(tmp_path, ACCOUNT, chat="4711")) == len(parse(tmp_path, CHAT))


@pytest.mark.parametrize(
    ("data", "options", "code"),
    [
        ("{}", {}, "not_a_chat"),
        ("[1, 2]", {}, "not_a_chat"),
        ('{"name": "x", "messages": [{"id": 1,', {}, "invalid_json"),
        ('{"name": "x", "messages": []}', {}, "empty_chat"),
        ({"messages": MESSAGES[:1]}, {}, "empty_chat"),
        (ACCOUNT, {"chat": "3"}, "not_a_chat"),
    ],
)
def test_export_without_messages_is_refused(data, options, code, tmp_path):
    with pytest.raises(ParseError) as refused:
        parse(tmp_path, data, **options)
    assert refused.value.code == code


def test_odd_values_of_messages_lose_no_other_message(tmp_path):
    odd: list[dict[str, Any]] = [
        {"type": "message", "date": 7, "from": {"a": 1}, "text": {"b": 2}},
        {"type": "message", "date": "never", "from": "Ben", "text": [1, None, {"text": 3}, "ok"]},
        {"type": "service", "action": None, "members": [None, 3]},
        {
            "type": "message",
            "from": "Ben",
            "poll": {"answers": [1, {"text": 2}]},
            "text": "x" * 70_000,
        },
        {"type": "message", "date": "2024-03-12T10:15:00", "from": "Ben", "text": "y" * 70_000},
    ]
    *blocks, _notes = parse(tmp_path, {"id": None, "messages": [*odd, MESSAGES[1]]})
    assert [one["text"][:5] for one in blocks] == ["", "ok", "?", "\n• ", "yyyyy", "yyyyy", "Hello"]
    assert blocks[5]["extra"] == {"continued": True}
