"""Exports of other products and of Parley, recognised by their content and read into one shape.

The formats as their products write them: ChatGPT (`mapping` of nodes, `current_node`), Claude
(`chat_messages`), LibreChat (`messages` with `parentMessageId`, or `children` within each other), Open WebUI
(`chat.history` with `messages` and `currentId`), and Parley (docs/export.md).
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from django.utils.translation import gettext as _

from chat.transfer.documents import FORMAT, VERSION
from chat.transfer.reader import Unreadable

Document = dict[str, Any]


@dataclass(slots=True)
class Node:
    """A message as a file has it. `role` is "user", "assistant", or empty for one that is not shown."""

    id: str
    parent: str | None
    role: str
    text: str
    created: datetime | None = None
    reasoning: str = ""
    status: str = "done"
    model: str = ""  # the name that the product gives it
    attachments: list[Any] = field(default_factory=list)  # as docs/export.md has them, unchecked


@dataclass(slots=True)
class Chat:
    """A conversation as a file has it; `leaf` is the last message of its shown branch, if it names one."""

    source: str
    source_id: str
    title: str
    nodes: list[Node]
    leaf: str | None = None
    created: datetime | None = None
    updated: datetime | None = None
    archived: bool = False
    pinned: bool = False
    project: str = ""
    instructions: str = ""
    system_prompt: str = ""


def convert(document: Any) -> Chat | None:
    """Return a conversation of a file; None for a value that is of no known kind. Raises Unreadable."""
    if not isinstance(document, dict):
        return None
    for is_kind, read in KINDS:
        if is_kind(document):
            return read(document)
    return None


# --- ChatGPT ----------------------------------------------------------------------------------


def chatgpt(document: Document) -> Chat:
    """Read a conversation of ChatGPT's conversations.json. Raises Unreadable for one without messages."""
    nodes = []
    if not isinstance(document.get("mapping"), dict):
        raise Unreadable(_("It has an unexpected form."))
    for id, node in document["mapping"].items():
        if isinstance(node, dict):
            message = _dict(node.get("message"))
            made = Node(id, _id(node.get("parent")), *_chatgpt_message(message))
            made.model = _text(_dict(message.get("metadata")).get("model_slug"))
            nodes.append(made)
    return Chat(
        source="chatgpt",
        source_id=_id(document.get("conversation_id")) or _id(document.get("id")) or "",
        title=_text(document.get("title")),
        nodes=nodes,
        leaf=_id(document.get("current_node")),
        created=moment(document.get("create_time")),
        updated=moment(document.get("update_time")),
        archived=document.get("is_archived") is True,
        pinned=document.get("is_starred") is True or bool(document.get("pinned_time")),
    )


def _chatgpt_message(message: Document) -> tuple[str, str, datetime | None, str]:
    """Return the role, text, time and reasoning of a message; the role is empty for one that is not shown."""
    role = _text(_dict(message.get("author")).get("role"))
    content = _dict(message.get("content"))
    kind = content.get("content_type")
    created = moment(message.get("create_time"))
    hidden = _dict(message.get("metadata")).get("is_visually_hidden_from_conversation")
    if role == "assistant" and message.get("recipient") == "canmore.create_textdoc":
        return role, _canvas(content), created, ""
    if role not in ("user", "assistant") or hidden or message.get("recipient") not in (None, "all"):
        return "", "", created, ""
    if kind == "thoughts":
        found = [_dict(one) for one in _list(content.get("thoughts"))]
        texts = [
            "\n".join(filter(None, [_text(one.get("summary")), _text(one.get("content"))]))
            for one in found
        ]
        return role, "", created, "\n\n".join(filter(None, texts))
    if kind == "code":
        language = _text(content.get("language")).replace("unknown", "")
        return role, f"```{language}\n{_text(content.get('text'))}\n```", created, ""
    if kind not in ("text", "multimodal_text"):
        return "", "", created, ""
    texts = []
    for part in _list(content.get("parts")):
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            is_image = part.get("content_type") == "image_asset_pointer"
            texts.append(_("[Image]") if is_image else _text(part.get("text")))
    return role, "\n\n".join(filter(None, texts)), created, ""


def _canvas(content: Document) -> str:
    """Return the document that a reply of ChatGPT wrote beside the chat; its later changes are left out."""
    parts = [one for one in _list(content.get("parts")) if isinstance(one, str)]
    try:
        made = _dict(json.loads("".join(parts) or _text(content.get("text"))))
    except ValueError:
        return ""
    kind, _slash, language = _text(made.get("type")).partition("/")
    return _made(_text(made.get("name")), _text(made.get("content")), kind == "document", language)


def _made(title: str, content: str, is_markdown: bool, language: str) -> str:
    """Return a document that a reply made, in Markdown under its title; other documents as code."""
    if not content:
        return ""
    if not is_markdown:
        longest = max((len(run) for run in re.findall("`{3,}", content)), default=2)
        fence = "`" * (longest + 1)
        name = re.sub(r"[^\w+#-]", "", language)
        content = f"{fence}{name}\n{content}\n{fence}"
    heading = " ".join(title.replace("*", "").split())
    return f"**{heading}**\n\n{content}" if heading else content


# --- Claude -----------------------------------------------------------------------------------


def claude(document: Document) -> Chat:
    """Read a conversation of Claude's conversations.json. Older files have no parents: one line of messages."""
    messages = [one for one in document["chat_messages"] if isinstance(one, dict)]
    has_parents = any("parent_message_uuid" in one for one in messages)
    nodes: list[Node] = []
    for message in messages:
        before = nodes[-1].id if nodes else None
        blocks = [_dict(one) for one in _list(message.get("content"))]
        texts = [
            _artifact(one) if one.get("type") == "tool_use" else _text(one.get("text"))
            for one in blocks
            if one.get("type") in ("text", "tool_use")
        ]
        text = "\n\n".join(filter(None, texts)) or _text(message.get("text"))
        for name, content in _claude_files(message):
            text += f"\n\n[{name}]" + (f"\n{content}" if content else "")
        thoughts = [_text(one.get("thinking")) for one in blocks if one.get("type") == "thinking"]
        nodes.append(
            Node(
                id=_id(message.get("uuid")) or str(len(nodes)),
                parent=_id(message.get("parent_message_uuid")) if has_parents else before,
                role={"human": "user", "assistant": "assistant"}.get(
                    _text(message.get("sender")), ""
                ),
                text=text.strip("\n"),
                created=moment(message.get("created_at")),
                reasoning="\n\n".join(filter(None, thoughts)),
                model=_text(message.get("model")) or _text(document.get("model")),
            )
        )
    return Chat(
        source="claude",
        source_id=_id(document.get("uuid")) or "",
        title=_text(document.get("name")),
        nodes=nodes,
        leaf=_id(document.get("current_leaf_message_uuid")),
        created=moment(document.get("created_at")),
        updated=moment(document.get("updated_at")),
        pinned=document.get("is_starred") is True,
    )


def _artifact(block: Document) -> str:
    """Return the whole document of an artifact; nothing of a change to one, or of another tool."""
    made = _dict(block.get("input"))
    if block.get("name") != "artifacts" or made.get("command") not in ("create", "rewrite"):
        return ""
    kind = _text(made.get("type"))
    language = _text(made.get("language")) or {
        "text/html": "html",
        "image/svg+xml": "svg",
        "application/vnd.ant.mermaid": "mermaid",
        "application/vnd.ant.react": "jsx",
    }.get(kind, "")
    is_markdown = kind == "text/markdown"
    return _made(_text(made.get("title")), _text(made.get("content")), is_markdown, language)


def _claude_files(message: Document) -> Iterator[tuple[str, str]]:
    """Yield the names of the files of a message, with the text that Claude took from them."""
    seen = set()
    for one in [*_list(message.get("attachments")), *_list(message.get("files"))]:
        name = _text(_dict(one).get("file_name"))
        if name and name not in seen:
            seen.add(name)
            yield name, _text(_dict(one).get("extracted_content"))


# --- LibreChat --------------------------------------------------------------------------------

NO_PARENT = "00000000-0000-0000-0000-000000000000"


def librechat(document: Document) -> Chat:
    """Read a conversation of LibreChat, with its messages in one list or within each other."""
    nodes: list[Node] = []
    found = document.get("messages") or document.get("messagesTree")
    pending: list[tuple[Any, str | None]] = [(one, None) for one in reversed(_list(found))]
    while pending:
        message, above = pending.pop()
        if not isinstance(message, dict):
            continue
        id = _id(message.get("messageId")) or str(len(nodes))
        parent = above or _id(message.get("parentMessageId"))
        blocks = [_dict(one) for one in _list(message.get("content"))]
        texts = [_block_text(one.get("text")) for one in blocks if one.get("type") == "text"]
        thoughts = [_block_text(one.get("think")) for one in blocks if one.get("type") == "think"]
        nodes.append(
            Node(
                id=id,
                parent=None if parent == NO_PARENT else parent,
                role="user" if message.get("isCreatedByUser") else "assistant",
                text="\n\n".join(filter(None, texts)) or _text(message.get("text")),
                created=moment(message.get("createdAt")),
                reasoning="\n\n".join(filter(None, thoughts)),
                status="failed" if message.get("error") is True else "done",
                model=_text(message.get("model")),
            )
        )
        pending += [(child, id) for child in reversed(_list(message.get("children")))]
    return Chat(
        source="librechat",
        source_id=_id(document.get("conversationId")) or "",
        title=_text(document.get("title")),
        nodes=nodes,
        created=moment(document.get("createdAt")),
        updated=moment(document.get("updatedAt")),
    )


def _block_text(value: Any) -> str:
    return _text(value.get("value")) if isinstance(value, dict) else _text(value)


# --- Open WebUI -------------------------------------------------------------------------------


def open_webui(document: Document) -> Chat:
    """Read a chat of Open WebUI; without a history, its list of messages is one line."""
    chat = document["chat"] if isinstance(document.get("chat"), dict) else document
    history = _dict(chat.get("history"))
    nodes: list[Node] = []
    if isinstance(history.get("messages"), dict):
        for id, message in history["messages"].items():
            if isinstance(message, dict):
                nodes.append(_open_webui_node(id, _id(message.get("parentId")), message))
    else:
        for message in _list(chat.get("messages")):
            if isinstance(message, dict):
                id = _id(message.get("id")) or str(len(nodes))
                nodes.append(_open_webui_node(id, nodes[-1].id if nodes else None, message))
    return Chat(
        source="open_webui",
        source_id=_id(document.get("id")) or "",
        title=_text(document.get("title")) or _text(chat.get("title")),
        nodes=nodes,
        leaf=_id(history.get("currentId")),
        created=moment(document.get("created_at") or chat.get("timestamp")),
        updated=moment(document.get("updated_at")),
        archived=document.get("archived") is True,
        pinned=document.get("pinned") is True,
    )


def _open_webui_node(id: str, parent: str | None, message: Document) -> Node:
    content = message.get("content")
    if isinstance(content, list):
        texts = [_text(_dict(one).get("text")) for one in content]
        content = "\n\n".join(filter(None, texts))
    role = _text(message.get("role"))
    text, reasoning = without_details(_text(content)) if role == "assistant" else (content, "")
    return Node(
        id=id,
        parent=parent,
        role=role if role in ("user", "assistant") else "",
        text=_text(text),
        created=moment(message.get("timestamp")),
        reasoning=reasoning,
        status="failed" if message.get("error") and not text else "done",
        model=_text(message.get("modelName")) or _text(message.get("model")),
    )


def without_details(text: str) -> tuple[str, str]:
    """Return a reply of Open WebUI without its folded parts, and the reasoning that was in them."""
    kept, thoughts, at = [], [], 0
    while (start := text.find('<details type="', at)) >= 0:
        end = text.find("</details>", start)
        if end < 0:
            break
        kept.append(text[at:start])
        if text.startswith("reasoning", start + len('<details type="')):
            inner = text[text.find(">", start) + 1 : end]
            inner = inner.partition("</summary>")[2] or inner
            lines = html.unescape(inner).strip().splitlines()
            thoughts.append("\n".join(line.removeprefix(">").removeprefix(" ") for line in lines))
        at = end + len("</details>")
    kept.append(text[at:])
    return "".join(kept).strip("\n"), "\n\n".join(filter(None, thoughts))


# --- Parley -----------------------------------------------------------------------------------


def parley(document: Document) -> Chat:
    """Read Parley's own JSON. Raises Unreadable for a version that is newer than this one."""
    version = document.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise Unreadable(_("It comes from a newer version of Parley."))
    nodes: list[Node] = []
    for message in map(_dict, _list(document.get("messages"))):
        parts = [_dict(one) for one in _list(message.get("parts"))]
        thoughts = [
            _text(_dict(one.get("data")).get("text"))
            for one in parts
            if one.get("kind") == "reasoning"
        ]
        status = _text(message.get("status"))
        nodes.append(
            Node(
                id=_id(message.get("id")) or str(len(nodes)),
                parent=_id(message.get("parent")),
                role=_text(message.get("role")),
                text=_text(message.get("text")),
                created=moment(message.get("created_at")),
                reasoning="\n\n".join(filter(None, thoughts)),
                status=status if status in ("done", "stopped", "failed") else "stopped",
                model=_text(message.get("model")),
                attachments=_list(message.get("attachments")),
            )
        )
    return Chat(
        source="parley",
        source_id=_id(document.get("id")) or "",
        title=_text(document.get("title")),
        nodes=nodes,
        leaf=_id(document.get("leaf")),
        created=moment(document.get("created_at")),
        updated=moment(document.get("updated_at")),
        archived=document.get("archived") is True,
        pinned=document.get("pinned") is True,
        project=_text(_dict(document.get("project")).get("name")),
        instructions=_text(_dict(document.get("project")).get("instructions")),
        system_prompt=_text(document.get("system_prompt")),
    )


# --- Of all -----------------------------------------------------------------------------------

KINDS: list[tuple[Callable[[Document], bool], Callable[[Document], Chat]]] = [
    (lambda one: one.get("format") == FORMAT, parley),
    (
        lambda one: "mapping" in one or {"title", "create_time", "conversation_id"} <= one.keys(),
        chatgpt,
    ),
    (lambda one: isinstance(one.get("chat_messages"), list), claude),
    (
        lambda one: (
            "conversationId" in one
            and isinstance(one.get("messages") or one.get("messagesTree"), list)
        ),
        librechat,
    ),
    (
        lambda one: (
            isinstance(one.get("chat"), dict)
            or isinstance(_dict(one.get("history")).get("messages"), dict)
        ),
        open_webui,
    ),
]

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)


def moment(value: Any) -> datetime | None:
    """Return a time of seconds, milliseconds or ISO 8601; None for any other value, and out of range."""
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            found = found if found.tzinfo else found.replace(tzinfo=UTC)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found = datetime.fromtimestamp(value / 1000 if value > 1e11 else value, UTC)
        else:
            return None
        return found if EARLIEST <= found <= datetime.now(UTC) else None
    except (ValueError, OverflowError, OSError):
        return None


def _dict(value: Any) -> Document:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _id(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
