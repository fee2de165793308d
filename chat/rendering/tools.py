"""Lines of a reply that show its calls of tools, and what they add to it: tables, charts.

The stored HTML of a reply has a slot for each call, at its place in the text; the line is made from the message's
parts when it is shown. A line is a block of its own, so a call ends the paragraph before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import msgspec
from django.template import TemplateDoesNotExist
from django.template.loader import get_template, render_to_string
from django.utils.safestring import SafeString
from django.utils.translation import gettext

from chat.models import Message, MessagePart
from chat.rendering.document import to_html

TEMPLATE = "chat/_tool.html"
CARD = "chat/_tool_card.html"
SLOT = re.compile(r'<div data-tool="(\d+)"></div>')


def slot(call: str) -> str:
    """Return the place of a call in the stored HTML of a reply."""
    return f'<div data-tool="{call}"></div>'


def to_html_with_slots(text: str, calls: Sequence[tuple[int, str]]) -> str:
    """Render a reply as HTML with the slots of its calls, each with the characters of the text before it."""
    pieces: list[str] = []
    begin = 0
    for at, call in sorted(calls, key=lambda one: (one[0], int(one[1]))):
        if at > begin:
            pieces.append(to_html(text[begin:at]))
            begin = at
        pieces.append(slot(call))
    pieces.append(to_html(text[begin:]))
    return "".join(pieces)


def has_slots(html: str, calls: Iterable[str]) -> bool:
    """Return whether the HTML has a slot for each call."""
    return {*calls} == {*SLOT.findall(html)}


def shown_html(
    message: Message, *, html: str | None = None, is_owner: bool = True, is_paper: bool = False
) -> str:
    """Return the HTML of a reply with the lines of its calls; arguments and results are for its owner.

    `html` is by default that of the message, and has its slots.
    """
    html = message.html if html is None else html
    if "data-tool" not in html:
        return html
    tools: dict[str, Mapping[str, Any]] = {}
    further: dict[str, list[MessagePart]] = {}
    for part in message.ordered_parts:
        if part.kind == MessagePart.Kind.TOOL:
            tools[part.data["call"]] = part.data
        elif isinstance(part.data, dict) and part.data.get("call"):
            further.setdefault(part.data["call"], []).append(part)
    details = message.pk if is_owner and not is_paper else None

    def line(found: re.Match[str]) -> str:
        call = found[1]
        if call not in tools:
            return ""
        parts = [(one.kind, one.data, one.pk) for one in further.get(call, [])]
        return tool_html(tools[call], parts, message=details, is_paper=is_paper)

    return SLOT.sub(line, html)


def tool_html(
    data: Mapping[str, Any],
    parts: Sequence[tuple[str, Mapping[str, Any], Any]] = (),
    *,
    message: Any = None,
    is_paper: bool = False,
) -> SafeString:
    """Return the line of a call, with what it adds to the reply.

    `data` is that of its part (docs/tools.md); `message` the id of the stored reply, which has pages for the whole
    result. `parts` are kind, data and id of the further ones.
    """
    shown = [
        render_to_string(
            template, {"data": one, "part": id, "message": message, "is_paper": is_paper}
        )
        for kind, one, id in parts
        if (template := template_of(kind))
    ]
    context = {
        "tool": data,
        "parts": shown,
        "message": message,
        "arguments": words(data.get("arguments")) if message else (),
    }
    return render_to_string(TEMPLATE, context)


def card_html(run_id: UUID, data: Mapping[str, Any], until: datetime) -> SafeString:
    """Return the card by which the user allows or refuses a call that waits; its buttons need a page's forms."""
    context = {
        "run": run_id,
        "tool": data,
        "until": until,
        "arguments": words(data.get("arguments")),
    }
    return render_to_string(CARD, context)


@cache
def template_of(kind: str) -> str:
    """Return the template of a part that stands below its call's line; "" if it is not shown there."""
    name = f"chat/parts/{kind}.html"
    try:
        get_template(name)
    except TemplateDoesNotExist:
        return ""
    return name


def words(arguments: Any) -> list[tuple[str, str]]:
    """Return arguments as pairs of a name and a text, for people."""
    if not isinstance(arguments, dict):
        return [(gettext("Text"), str(arguments))] if arguments else []
    return [
        (
            str(name).replace("_", " "),
            one if isinstance(one, str) else msgspec.json.encode(one).decode(),
        )
        for name, one in arguments.items()
    ]
