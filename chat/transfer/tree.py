"""Makes the tree of a conversation from the messages of a file: parents first, user and reply in turn."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.conf import settings
from django.utils.translation import gettext as _

from chat.transfer.formats import Chat, Node
from chat.transfer.reader import CHAT_CHARACTERS, Unreadable

MAX_MESSAGES = 20_000  # of one conversation
TEXT_CHARACTERS = 200_000  # of one message; longer ones are cut
MODEL_CHARACTERS = 100

ODD = re.compile("[\x00\ud800-\udfff]")  # Postgres stores neither


@dataclass(slots=True)
class Placed:
    """A message in the tree: `parent` is the position of another one that precedes it in the list."""

    node: Node
    parent: int | None
    role: str
    text: str
    reasoning: str
    created: datetime | None
    model: str = ""
    attachments: list[Any] = field(default_factory=list)
    is_kept: bool = True


@dataclass(frozen=True, slots=True)
class Tree:
    """The messages, each after its parent; `leaf` is a position, `cut` counts texts that were too long."""

    messages: list[Placed]
    leaf: int
    cut: int


def build(chat: Chat) -> Tree:
    """Return the tree of a conversation. Raises Unreadable.

    Messages that are not shown are left out; their children follow the message above. Successive messages
    of one role become one, as with a product that stores the steps of a reply apart.
    """
    if len(chat.nodes) > MAX_MESSAGES:
        raise Unreadable(_("It has more than %(most)s messages.") % {"most": f"{MAX_MESSAGES:,}"})
    placed, place_of = _place(chat.nodes)
    _join_roles(placed)
    kept = [one for one in placed if one.is_kept]
    if not kept:
        raise Unreadable(_("It has no messages."))
    position = {id(one): at for at, one in enumerate(kept)}
    leaf = place_of.get(chat.leaf or "")
    # Of the newest messages the last one: `max` returns the first.
    newest = max(reversed(kept), key=lambda one: one.created.timestamp() if one.created else 0.0)
    last = placed[leaf] if leaf is not None else newest
    if not last.is_kept:  # it went into its children
        last = next(one for one in kept if one.node.parent == last.node.id or one is kept[-1])
    cut = 0
    for one in kept:
        if one.parent is not None:
            one.parent = position[id(placed[one.parent])]
        cut += len(one.text) > TEXT_CHARACTERS
        one.text = one.text[:TEXT_CHARACTERS]
        one.reasoning = one.reasoning[:TEXT_CHARACTERS]
    return Tree(kept, position[id(last)], cut)


def _place(nodes: list[Node]) -> tuple[list[Placed], dict[str, int]]:
    """Return the messages that are shown, each after its parent, and their positions by id.

    The position of one that is not shown is that of the message above it.
    """
    known = {node.id for node in nodes}
    children: dict[str | None, list[Node]] = {}
    for node in nodes:
        children.setdefault(node.parent if node.parent in known else None, []).append(node)
    placed: list[Placed] = []
    place_of: dict[str, int] = {}
    pending: list[tuple[Node, int | None]] = [
        (one, None) for one in reversed(children.get(None, []))
    ]
    seen: set[str] = set()
    while pending:
        node, above = pending.pop()
        if node.id in seen:
            raise Unreadable(_("Two of its messages have the same id."))
        seen.add(node.id)
        text, reasoning = ODD.sub("\ufffd", node.text), ODD.sub("\ufffd", node.reasoning)
        attachments = node.attachments if node.role == "user" else []
        attachments = attachments[: settings.ATTACHMENTS_PER_MESSAGE]
        is_shown = text.strip() or reasoning.strip() or attachments
        if node.role in ("user", "assistant") and is_shown:
            created = node.created or (placed[above].created if above is not None else None)
            model = ODD.sub("\ufffd", node.model)[:MODEL_CHARACTERS]
            placed.append(
                Placed(node, above, node.role, text, reasoning, created, model, attachments)
            )
            above = len(placed) - 1
        if above is not None:
            place_of[node.id] = above
        pending += [(child, above) for child in reversed(children.get(node.id, []))]
    if len(seen) < len(known):
        raise Unreadable(_("Its messages form a circle."))
    return placed, place_of


def _join_roles(placed: list[Placed]) -> None:
    """Put the text of a message before that of its children with the same role."""
    has_other: set[int] = set()
    characters = sum(len(one.text) + len(one.reasoning) for one in placed)
    for one in placed:
        if one.parent is None:
            continue
        above = placed[one.parent]
        if above.role != one.role:
            has_other.add(one.parent)
            continue
        characters += len(above.text) + len(above.reasoning)
        if characters > CHAT_CHARACTERS:
            raise Unreadable(_("It is too large."))
        one.text = "\n\n".join(filter(None, [above.text, one.text]))
        one.reasoning = "\n\n".join(filter(None, [above.reasoning, one.reasoning]))
        one.model = one.model or above.model
        # No more than a message may have, or a long line of messages would fill the memory.
        attached = [*above.attachments, *one.attachments]
        one.attachments = attached[: settings.ATTACHMENTS_PER_MESSAGE]
        one.parent = above.parent
        above.is_kept = False
    for at in has_other:
        placed[at].is_kept = True
