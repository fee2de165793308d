"""Citations in a reply: its marks such as `[1]` become links to the passages that the search found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from chat.models import Message

KIND = "citation"  # of a MessagePart

# A tag, or a mark with one or more numbers. Models also write 【1】 and "[1, 2]".
TOKEN = re.compile(
    r"<(/?)([a-zA-Z][\w-]*)[^>]*>|(?:\[|\u3010)(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)(?:\]|\u3011)"
)
# Inside of these a mark is no citation.
OPAQUE = frozenset({"a", "code", "pre", "math", "svg"})
NUMBER = re.compile(r"\d+")


def citations_of(parts: Sequence[Any], chat: UUID | None = None) -> list[dict[str, Any]]:
    """Return the data of the citations among the parts of a message, each with the address of its passage.

    The page of the passage leads back to the `chat`. A citation in the copy of another user's chat has no address.
    """
    return [
        {**part.data, "url": address(part.data, chat)}
        for part in parts
        if part.kind == KIND and isinstance(part.data, dict) and is_number(part.data.get("number"))
    ]


def sources_of(message: Message) -> list[dict[str, Any]]:
    """Return the data of the citations that the text of a stored reply has marks of."""
    found = citations_of(message.ordered_parts)
    _html, numbers = linked(message.html, found)
    return [one for one in found if one["number"] in numbers]


def is_number(value: Any) -> bool:
    """Return whether a value can be the number of a citation: the column holds any JSON."""
    return isinstance(value, int) and not isinstance(value, bool)


def address(data: Any, chat: UUID | None = None) -> str:
    """Return the address of a citation's passage; "" for data that has none."""
    try:
        place = [UUID(str(data["document"])), int(data["first"]), int(data["last"])]
        url = reverse("chat:passage", args=place)
    except (KeyError, TypeError, ValueError):
        return ""
    query: dict[str, str | int] = {}
    if isinstance(data.get("start"), int) and isinstance(data.get("end"), int):
        query = {"start": data["start"], "end": data["end"]}
    if chat is not None:
        query["chat"] = str(chat)
    return f"{url}?{urlencode(query)}#passage" if query else f"{url}#passage"


def linked(html: str, citations: Sequence[dict[str, Any]]) -> tuple[str, set[int]]:
    """Return the HTML of a reply with its marks as links, and the numbers that it cites.

    Marks inside of links, code and formulas stay as they are, and so do numbers that are no citation.
    """
    by_number = {one["number"]: one for one in citations}
    if not by_number:
        return html, set()
    cited: set[int] = set()
    depth = 0

    def replaced(match: re.Match[str]) -> str:
        nonlocal depth
        is_end, tag, marks = match.groups()
        if tag is not None:
            if tag.lower() in OPAQUE:
                depth = max(0, depth - 1) if is_end else depth + 1
            return match.group()
        numbers = [int(number) for number in NUMBER.findall(marks)]
        if depth or not all(number in by_number for number in numbers):
            return match.group()
        cited.update(numbers)
        if not all(by_number[number]["url"] for number in numbers):
            return match.group()
        return "".join(link(by_number[number]) for number in numbers)

    return TOKEN.sub(replaced, html), cited


def link(citation: dict[str, Any]) -> SafeString:
    """Return the link of a mark, with the passage's place and beginning as its tooltip."""
    place = " · ".join(
        filter(None, [str(citation.get("name", "")), str(citation.get("label", ""))])
    )
    return format_html(
        '<a class="cite" href="{}" title="{}">[{}]</a>',
        citation["url"],
        f"{place}\n{citation.get('excerpt', '')}",
        citation["number"],
    )
