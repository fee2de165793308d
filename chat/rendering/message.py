"""Renders a message, with one template for pages, events and exports."""

from __future__ import annotations

from functools import cache
from typing import Any
from uuid import UUID

from django.template.loader import render_to_string
from django.utils.safestring import SafeString
from django.utils.translation import get_language

from chat.models import Message

TEMPLATE = "chat/_message.html"
BUTTONS = "chat/_buttons.html"
RATING = "chat/_rating.html"

PLACEHOLDER = str(UUID(int=0))  # of a message's id

PROSE, REASONING = '<div class="prose">', '<div class="reasoning-text" dir="auto">'


def streamed_spans(html: str, message: Message) -> list[tuple[int, int]]:
    """Return the places of a reply's reasoning and text in its rendered message, in characters."""
    spans: list[tuple[int, int]] = []
    if message.ordered_parts:
        begin = html.index(REASONING) + len(REASONING)
        spans.append((begin, html.index("</div>", begin)))
    begin = html.index(PROSE, spans[-1][1] if spans else 0) + len(PROSE)
    return [*spans, (begin, begin + len(message.html))]


def rating_html(message: Message) -> SafeString:
    """Render the buttons that rate a reply, by `message.rating`."""
    return render_to_string(RATING, {"rating": message.rating, "id": message.pk})


def message_html(message: Message, **context: Any) -> SafeString:
    """Render a message as HTML, without a request: a worker's events carry the same HTML.

    The template reads a reply's `message.run` for the model's name; set it beforehand to save a
    query. A page calls this for each message, too: in the context of the whole page the template
    would take twice the time.
    """
    if message.role == Message.Role.USER:
        kind = "own" if message.text else "files"
    else:
        kind = "done" if message.status == Message.Status.DONE else "ended"
    buttons = _buttons(kind, message.rating, get_language() or "")
    buttons = SafeString(buttons.replace(PLACEHOLDER, str(message.pk)))
    return render_to_string(TEMPLATE, {**context, "message": message, "buttons": buttons})


@cache
def _buttons(kind: str, rating: str, language: str) -> str:
    """Render the buttons of all messages of a kind in a language, once: they take half of a message's time."""
    return render_to_string(BUTTONS, {"kind": kind, "rating": rating, "id": PLACEHOLDER})
