"""Parser of Telegram's exports in JSON (`result.json`): of one chat, or of an account, whose chats are chosen.

The file is read as a stream; one message at a time is in memory.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import ijson
import ijson.common

from chat.documents.parsing import encodings
from chat.documents.parsing.errors import ParseError

Block = dict[str, Any]

TEXT_LENGTH = 65_536  # of one block
NAME_LENGTH = 150
MOST_CHATS = 5_000  # of an export
MESSAGE_EVENTS = 100_000  # values of one message
MEDIA = ("photo", "file", "media_type", "location_information", "contact_information", "game_title")
MEDIA_KINDS = {
    "sticker": "Sticker",
    "voice_message": "Voice message",
    "video_message": "Video message",
    "video_file": "Video",
    "audio_file": "Audio",
    "animation": "GIF",
}
# Sentences of service messages; others are made from the name of the action.
ACTIONS = {
    "create_group": "{actor} created the group “{title}”",
    "create_channel": "The channel “{title}” was created",
    "edit_group_title": "{actor} changed the name to “{title}”",
    "edit_group_photo": "{actor} changed the photo",
    "delete_group_photo": "{actor} removed the photo",
    "invite_members": "{actor} invited {members}",
    "remove_members": "{actor} removed {members}",
    "join_group_by_link": "{actor} joined by a link",
    "join_group_by_request": "{actor} joined on request",
    "pin_message": "{actor} pinned a message",
    "phone_call": "Call by {actor}",
    "group_call": "{actor} began a group call",
    "migrate_to_supergroup": "The group became a supergroup",
    "migrate_from_group": "The group became a supergroup",
    "score_in_game": "{actor} scored in a game",
    "clear_history": "The history was cleared",
    "joined_telegram": "{actor} joined Telegram",
}


def chats(path: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the chats of an export as `id`, `name`, `type` and number of `messages`, in its order.

    Raises ParseError `not_a_chat`, `invalid_json`.
    """
    found: list[dict[str, Any]] = []
    with _open(path, options) as file, _errors():
        for index, (head, messages) in enumerate(_walk(file)):
            count = sum(1 for _message in messages)
            if len(found) < MOST_CHATS:
                found.append({**_described(head, index), "messages": count})
    if not found:
        raise ParseError("not_a_chat")
    return found


def parse(path: str, options: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the messages of one chat of an export as blocks, in the order of the file.

    Options: `chat` (an id as `chats` returns it; needed when there are several) and `member` (of a zip). A block of
    kind `notes` at the end says what was found. Raises ParseError `not_a_chat`, `invalid_json`, `empty_chat`, and
    `choose_chat` whose details name the `chats`.
    """
    chosen = str(options.get("chat") or "")
    if not chosen:
        all_chats = chats(path, options)
        if len(all_chats) > 1:
            with_messages = [one for one in all_chats if one["messages"]]
            raise ParseError("choose_chat", chats=with_messages)
        chosen = all_chats[0]["id"]
    count = 0
    notes: dict[str, Any] = {}
    with _open(path, options) as file, _errors():
        for index, (head, messages) in enumerate(_walk(file)):
            if _described(head, index)["id"] != chosen:
                continue
            name = _described(head, index)["name"]
            if name:
                notes["chat_name"] = name
            for message in messages:
                for block in _blocks(message):
                    count += block["kind"] != "system"
                    yield block
            break
        else:
            raise ParseError("not_a_chat")
    if not count:
        raise ParseError("empty_chat")
    yield {"kind": "notes", "notes": notes}


@contextmanager
def _open(path: str, options: Mapping[str, Any]) -> Iterator[IO[bytes]]:
    with encodings.opened(Path(path), options.get("member") or "") as file:
        yield _without_mark(file)


def _without_mark(file: IO[bytes]) -> IO[bytes]:
    reader = io.BufferedReader(file)  # type: ignore[type-var] # a raw or buffered file
    if reader.peek(3)[:3] == b"\xef\xbb\xbf":
        reader.read(3)
    return reader


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (ijson.common.JSONError, UnicodeDecodeError, OverflowError) as error:
        raise ParseError("invalid_json") from error


def _walk(file: IO[bytes]) -> Iterator[tuple[dict[str, Any], Iterator[dict[str, Any]]]]:
    """Yield each chat of an export: its name, type and id, and its messages, which are read as they are asked for.

    Telegram writes the name, type and id of a chat before its messages.
    """
    events = ijson.parse(file, use_float=True)
    head: dict[str, Any] = {}
    for prefix, event, value in events:
        base, _dot, key = prefix.rpartition(".")
        if base not in ("", "chats.list.item", "left_chats.list.item"):
            continue
        if key in ("name", "type", "id") and event in ("string", "number", "null"):
            head[key] = value
        elif key == "messages" and event == "start_array":
            messages = _messages(events, prefix)
            yield head, messages
            for _message in messages:
                pass  # of a chat that was not asked for, or not to its end
            head = {}
        elif event == "start_map" and prefix.endswith(".item"):
            head = {}


def _messages(events: Iterator[tuple[str, str, Any]], prefix: str) -> Iterator[dict[str, Any]]:
    item = f"{prefix}.item"
    for at, event, _value in events:
        if at == prefix and event == "end_array":
            return
        if at != item or event != "start_map":
            continue
        builder: Any = ijson.common.ObjectBuilder()  # type: ignore[no-untyped-call]
        builder.event(event, None)
        for number, (at, event, value) in enumerate(events):
            if number < MESSAGE_EVENTS:
                builder.event(event, value)
            if at == item and event == "end_map":
                if number < MESSAGE_EVENTS:
                    yield builder.value
                break


def _described(head: Mapping[str, Any], index: int) -> dict[str, Any]:
    id = head.get("id")
    return {
        "id": str(id) if isinstance(id, int | str) and id != "" else f"#{index}",
        "name": _name(head.get("name")),
        "type": str(head.get("type") or "")[:NAME_LENGTH],
    }


def _name(value: Any) -> str:
    return " ".join(value.split())[:NAME_LENGTH] if isinstance(value, str) else ""


def _blocks(message: Mapping[str, Any]) -> Iterator[Block]:
    sent_at = _time(message)
    if message.get("type") == "service":
        yield {"kind": "system", "sender": "", "sent_at": sent_at, "text": _service(message)}
        return
    sender = _name(message.get("from")) or _name(message.get("actor"))
    if not sender:
        # Of a deleted account only its id is left.
        sender = str(message.get("from_id") or "")[:NAME_LENGTH] or "?"
    text = _text(message.get("text"))
    extra: dict[str, Any] = {}
    if message.get("edited"):
        extra["edited"] = True
    if message.get("forwarded_from") is not None or message.get("saved_from") is not None:
        extra["forwarded"] = _name(message.get("forwarded_from")) or True
    if isinstance(message.get("reply_to_message_id"), int):
        extra["reply_to"] = message["reply_to_message_id"]
    if isinstance(message.get("id"), int):
        extra["message"] = message["id"]
    kind = "message"
    poll = message.get("poll")
    if isinstance(poll, Mapping):
        kind, text = "poll", _poll(poll)
    elif any(message.get(name) for name in MEDIA):
        kind = "media"
        extra["caption"] = text[:TEXT_LENGTH]
        label = _media(message, extra)
        text = f"{text}\n[{label}]" if text else f"[{label}]"
    for start in range(0, max(len(text), 1), TEXT_LENGTH):
        block: Block = {
            "kind": kind if not start else "message",
            "sender": sender,
            "sent_at": sent_at,
            "text": text[start : start + TEXT_LENGTH],
        }
        if start:
            block["extra"] = {"continued": True}
        elif extra:
            block["extra"] = extra
        yield block


def _time(message: Mapping[str, Any]) -> str | None:
    """Return the time that the exporting computer's clock showed, or, in exports without it, UTC."""
    date = message.get("date")
    try:
        if isinstance(date, str):
            found = datetime.fromisoformat(date)
        else:
            seconds = message.get("date_unixtime", date)
            found = datetime.fromtimestamp(int(seconds), UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None
    if not 1970 <= found.year <= 9998:
        return None
    return found.replace(tzinfo=UTC, microsecond=0).isoformat()


def _text(value: Any) -> str:
    """Return a text that is a string, or a list of strings and of entities with their text."""
    if isinstance(value, str):
        return _storable(value)
    if not isinstance(value, list):
        return ""
    parts = []
    for part in value:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            text = part["text"]
            link = part.get("href")
            if part.get("type") == "text_link" and isinstance(link, str) and link != text:
                text = f"{text} ({link})"
            parts.append(text)
    return _storable("".join(parts))


def _storable(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _poll(poll: Mapping[str, Any]) -> str:
    lines = [_text(poll.get("question"))]
    answers = poll.get("answers")
    for answer in answers if isinstance(answers, list) else []:
        if isinstance(answer, Mapping):
            votes = answer.get("voters")
            count = f" ({votes})" if isinstance(votes, int) else ""
            lines.append(f"• {_text(answer.get('text'))}{count}")
    return "\n".join(lines)


def _media(message: Mapping[str, Any], extra: dict[str, Any]) -> str:
    kind = MEDIA_KINDS.get(str(message.get("media_type")), "")
    for name in ("file_name", "file", "photo"):
        value = message.get(name)
        if isinstance(value, str) and value and not value.startswith("("):
            # "(File not included. …)" stands for files that were left out.
            extra["file"] = _name(value.replace("\\", "/").rsplit("/", 1)[-1])
            break
    if kind == "Sticker" and isinstance(message.get("sticker_emoji"), str):
        kind = f"Sticker {message['sticker_emoji'][:10]}"
    if not kind:
        place, person = message.get("location_information"), message.get("contact_information")
        if isinstance(place, Mapping):
            kind = f"Place {place.get('latitude')}, {place.get('longitude')}"
        elif isinstance(person, Mapping):
            kind = f"Contact {_name(person.get('first_name'))} {_name(person.get('last_name'))}".strip()
        elif message.get("photo"):
            kind = "Photo"
        elif message.get("game_title"):
            kind = f"Game {_name(message['game_title'])}"
        else:
            kind = "File"
    return _storable(f"{kind}: {extra['file']}" if "file" in extra and kind == "File" else kind)


def _service(message: Mapping[str, Any]) -> str:
    action = str(message.get("action") or "")[:NAME_LENGTH]
    members = message.get("members")
    names = [_name(one) or "?" for one in members[:50]] if isinstance(members, list) else []
    words = {
        "actor": _name(message.get("actor")) or "?",
        "title": _name(message.get("title")),
        "members": ", ".join(names),
    }
    sentence = ACTIONS.get(action)
    if sentence is None:
        return _storable(f"{words['actor']}: {action.replace('_', ' ')}".rstrip(": "))
    return _storable(sentence.format(**words))


def is_export(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is likely an export, which is JSON with chats or messages."""
    text = head.decode("utf-8-sig", "ignore").lstrip()
    return text.startswith("{") and any(
        json.dumps(name) in text for name in ("messages", "chats", "personal_information")
    )
