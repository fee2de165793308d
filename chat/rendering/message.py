"""Renders a message, with one template for pages, events and exports."""

from __future__ import annotations

from functools import cache
from typing import Any

from django.template.loader import render_to_string
from django.utils.safestring import SafeString
from django.utils.translation import get_language

from chat.models import Message

TEMPLATE = "chat/_message.html"


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
    """Return the buttons that rate a reply, by `message.rating`."""
    html = _rating_html(message.rating, get_language() or "")
    return SafeString(html.replace(RATED, str(message.pk)))


RATED = "00000000-0000-0000-0000-000000000000"  # in place of the message


@cache
def _rating_html(rating: str, language: str) -> str:
    """Render the buttons in a language, once: a page has a hundred, at 50 µs each."""
    return render_to_string("chat/_rating.html", {"rating": rating, "id": RATED})


def message_html(message: Message, **context: Any) -> SafeString:
    """Render a message as HTML, without a request: a worker's events carry the same HTML.

    The template reads a reply's `message.run` for the model's name; set it beforehand to save a
    query.
    """
    return render_to_string(TEMPLATE, {**context, "message": message})
