"""A conversation as a document: Markdown and HTML of the shown branch, JSON of the whole tree.

Each document is made in parts of MESSAGES messages, so that a long conversation needs little memory.
docs/export.md describes the JSON.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.translation import gettext as _

from chat.conversations.branches import LONGEST_PATH
from chat.conversations.path import path_to_root
from chat.conversations.transcript import LAST_SHOWN
from chat.models import Conversation, Message, MessagePart
from chat.rendering import citations
from chat.transfer import files
from chatproject.lib.db import prepared

FORMAT = "parley.conversation"
VERSION = 1
MESSAGES = 50  # of one part
PART_BYTES = 4_000_000  # of the files of one part, and the last message
NAME_BYTES = 120  # of a file's name, in UTF-8: file systems allow 255, with its date and its ending

Part = tuple[str, int | None]  # a text, and the message at which the next part begins

SHOWN = f"""
{path_to_root(LAST_SHOWN, "%(max)s")}
SELECT id FROM path ORDER BY depth DESC
"""  # noqa: S608 # of names alone


def shown_ids(conversation: Conversation) -> list[UUID]:
    """Return the ids of the messages of the shown branch, oldest first."""
    values = {"conversation": conversation.pk, "end": None, "max": LONGEST_PATH}
    return [id for [id] in prepared.all(SHOWN, values)]


def all_ids(conversation: Conversation) -> list[UUID]:
    """Return the ids of all messages of a conversation: each after its parent."""
    found = Message.objects.filter(conversation=conversation).order_by("pk")
    return list(found.values_list("pk", flat=True))


def _in_parts(
    ids: Sequence[UUID], write: Callable[[list[Message]], str], *related: str
) -> Callable[[int], Part]:
    """Return the function that makes the part from a position on; `write` writes its messages.

    Their run, parts and `related` rows are read along.
    """

    whole = Message.objects.select_related("run").prefetch_related("parts", *related)

    def part(at: int) -> Part:
        next = at + MESSAGES
        found = whole.in_bulk(list(ids[at:next]))
        messages: list[Message] = []
        size = 0
        for number, id in enumerate(ids[at:next], at + 1):
            if id not in found:
                continue  # purged meanwhile
            messages.append(found[id])
            size += files.size_of(found[id])
            if size > PART_BYTES:
                next = number
                break
        return write(messages), next if next < len(ids) else None

    return part


# --- Markdown ---------------------------------------------------------------------------------


def markdown(conversation: Conversation) -> Callable[[int], Part]:
    """Return the function that makes the parts of a Markdown document."""
    part = _in_parts(
        shown_ids(conversation), lambda messages: "".join(map(_markdown_message, messages))
    )
    title = " ".join(conversation.name.split())

    def with_head(at: int) -> Part:
        text, next = part(at)
        return (text if at else f"# {title}\n{text}"), next

    return with_head


def _markdown_message(message: Message) -> str:
    moment = timezone.localtime(message.created_at).strftime("%Y-%m-%d %H:%M %Z")
    blocks = [f"## {author(message)} · {moment}"]
    for thoughts in reasoning(message):
        quoted = "\n".join(f"> {line}".rstrip() for line in thoughts.splitlines())
        blocks.append(f"> **{_('Reasoning')}**\n>\n{quoted}")
    if message.files:
        attached = ", ".join(MARKUP.sub(r"\\\g<0>", one["name"]) for one in message.files)
        blocks.append(f"*{_('Attached:')}* {attached}")
    calls = [
        _call(part.data) for part in message.ordered_parts if part.kind == MessagePart.Kind.TOOL
    ]
    if calls:
        blocks.append("\n".join([f"*{_('Tools')}:*\n", *calls]))
    if message.text:
        blocks.append(closed(message.text.strip("\n")))
    blocks += [
        _markdown_table(part.data)
        for part in message.ordered_parts
        if part.kind in (MessagePart.Kind.TABLE, MessagePart.Kind.CHART)
    ]
    if found := citations.sources_of(message):
        blocks.append("\n".join([f"**{_('Sources')}**\n", *map(_markdown_source, found)]))
    if note := ending(message):
        blocks.append(f"*{note}*")
    return "\n" + "\n\n".join(blocks) + "\n"


def _call(data: dict[str, Any]) -> str:
    """Return a call of a tool as an item of a list: its name, and what came of it."""
    words = filter(None, (data.get("title"), data.get("summary")))
    return "- " + ": ".join(MARKUP.sub(r"\\\g<0>", " ".join(str(one).split())) for one in words)


MARKUP = re.compile(r"[\\`*_\[\]<>#|~&!]")
MOST_ROWS = 50  # of a table


def _markdown_table(data: dict[str, Any]) -> str:
    """Return a table, or the data of a chart, with its title and description."""
    columns = data.get("columns", [])
    lines = [[one.get("name", "") for one in columns], *data.get("rows", [])[:MOST_ROWS]]
    head, *rows = [
        f"| {' | '.join('' if cell is None else _plain(cell) for cell in line)} |" for line in lines
    ]
    table = "\n".join([head, f"|{' --- |' * len(columns)}", *rows])
    title = " ".join(str(data.get("title", "")).split())
    texts = [f"**{_plain(title)}**" if title else "", _plain(data.get("description", "")), table]
    return "\n\n".join(filter(None, texts))


def _markdown_source(source: dict[str, Any]) -> str:
    """Return the line of a passage that a reply cites: document, place and beginning."""
    place = ", ".join(filter(None, [source.get("name"), source.get("label")]))
    excerpt = source.get("excerpt")
    return f"- \\[{source['number']}\\] {_plain(place)}" + (
        f": {_plain(excerpt)}" if excerpt else ""
    )


def _plain(value: Any) -> str:
    """Return a text on one line, without the meaning that Markdown gives to its characters."""
    return MARKUP.sub(r"\\\g<0>", " ".join(str(value).split()))


FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$")


def closed(text: str) -> str:
    """Return Markdown with its last code block closed, or it would take in the next messages."""
    fence = ""
    for line in text.splitlines():
        match = FENCE.match(line)
        if match is None:
            continue
        mark, rest = match.groups()
        if not fence:
            if mark[0] == "~" or "`" not in rest:
                fence = mark
        elif mark.startswith(fence) and not rest.strip():
            fence = ""
    return f"{text}\n{fence}" if fence else text


# --- JSON -------------------------------------------------------------------------------------


def json(conversation: Conversation) -> Callable[[int], Part]:
    """Return the function that makes the parts of a JSON document of the whole tree (docs/export.md)."""
    part = _in_parts(all_ids(conversation), _json_messages, "feedback")
    head = {
        "format": FORMAT,
        "version": VERSION,
        "exported_at": timezone.now(),
        "id": conversation.pk,
        "title": conversation.name,
        "assistant": conversation.assistant.name,
        "system_prompt": conversation.system_prompt,
        "created_at": conversation.created_at,
        "updated_at": conversation.updated_at,
        "pinned": conversation.pinned_at is not None,
        "archived": conversation.archived_at is not None,
        "leaf": conversation.leaf_id,
        "project": _json_project(conversation),
        **_json_sharing(conversation),
    }

    def with_head(at: int) -> Part:
        text, next = part(at)
        if at == 0:
            text = f'{_encode(head)[:-1]},"messages":[\n{text}'
        elif text:
            text = f",\n{text}"
        return (text if next is not None else f"{text}\n]}}\n"), next

    return with_head


def _json_project(conversation: Conversation) -> dict[str, str] | None:
    project = conversation.project
    if project is None:
        return None
    return {"name": project.name, "instructions": project.instructions}


def _json_sharing(conversation: Conversation) -> dict[str, Any]:
    """Return with whom the conversation is shared, and its public links, without their addresses."""
    readers = list(conversation.shares.values_list("email", flat=True))
    links = [
        {"created_at": one.created_at, "expires_at": one.expires_at, "live": one.last is None}
        for one in conversation.links.all()
    ]
    return {
        **({"shared_with": readers} if readers else {}),
        **({"public_links": links} if links else {}),
    }


def _json_messages(messages: list[Message]) -> str:
    found = files.exported(messages)
    return ",\n".join(_encode(_json_message(one, found.get(one.pk))) for one in messages)


def _json_message(message: Message, attached: list[dict[str, Any]] | None) -> dict[str, Any]:
    run = getattr(message, "run", None)
    fields: dict[str, Any] = {
        "id": message.pk,
        "parent": message.parent_id,
        "role": message.role,
        "status": message.status,
        "created_at": message.created_at,
        "text": message.text,
        **({"attachments": attached} if attached else {}),
        "parts": [{"kind": part.kind, "data": part.data} for part in message.ordered_parts],
    }
    if run is not None:
        fields |= {
            "model": run.model_snapshot.get("name", ""),
            "tokens": {"input": run.prompt_tokens, "output": run.completion_tokens},
        }
    elif message.origin_model:
        fields["model"] = message.origin_model
    for given in message.feedback.all():
        fields["feedback"] = {name: getattr(given, name) for name in ("rating", "reason", "text")}
    return fields


def _encode(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode()


# --- HTML -------------------------------------------------------------------------------------

PLACE = "<!-- messages -->"  # of the messages in templates/chat/print.html


def html(conversation: Conversation, page: str) -> Callable[[int], Part]:
    """Return the function that makes the parts of a page for printing: `page` with the messages at PLACE."""
    part = _in_parts(shown_ids(conversation), _html_messages)
    head, _place, foot = page.partition(PLACE)

    def with_head(at: int) -> Part:
        text, next = part(at)
        text = text if at else f"{head}{text}"
        return (text if next is not None else f"{text}{foot}"), next

    return with_head


def _html_messages(messages: list[Message]) -> str:
    shown = [
        {
            "message": message,
            "author": author(message),
            "reasoning": reasoning(message),
            "ending": ending(message),
        }
        for message in messages
    ]
    return render_to_string("chat/_print_messages.html", {"shown": shown})


# --- Of all -----------------------------------------------------------------------------------


def author(message: Message) -> str:
    """Return the author of a message in words: the user, or the model's name."""
    if message.role == Message.Role.USER:
        return _("You")
    run = getattr(message, "run", None)
    name = run.model_snapshot.get("name") if run is not None else message.origin_model
    return name or _("Reply")


def reasoning(message: Message) -> list[str]:
    """Return the texts of a reply's reasoning."""
    return [
        str(part.data.get("text", ""))
        for part in message.ordered_parts
        if part.kind == MessagePart.Kind.REASONING and part.data.get("text")
    ]


def ending(message: Message) -> str:
    """Return a sentence about a reply that did not end as usual; empty for others."""
    return {
        Message.Status.PENDING: _("This reply is still being written."),
        Message.Status.STOPPED: _("This reply was stopped."),
        Message.Status.FAILED: _("This reply failed."),
    }.get(Message.Status(message.status), "")


# Separators of paths, and characters that Windows refuses.
REFUSED = re.compile(r'[/\\:*?"<>|]+')


def file_name(title: str, moment: datetime, ending: str) -> str:
    """Return the name of a file: a title in any script, a day and an ending ("md").

    Without control, formatting and bidirectional characters, which could hide the ending.
    """
    plain = "".join(
        " "
        if unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp") and one not in "\u200c\u200d"
        else one
        for one in REFUSED.sub(" ", title)
    )
    cut = " ".join(plain.split()).encode()[:NAME_BYTES].decode(errors="ignore").strip(" .")
    day = timezone.localdate(moment).isoformat()
    return f"{cut or _('Chat')} {day}.{ending}"
