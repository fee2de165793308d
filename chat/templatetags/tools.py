"""Templates: the calls of tools in a reply, and the cards of those that wait for their user."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django import template
from django.utils.safestring import SafeString, mark_safe

from chat.models import Message, Run
from chat.rendering import citations, tools
from chat.runs import approve, steps

register = template.Library()


@register.filter
def reader_html(message: Message) -> SafeString:
    """Return the HTML of a reply for its readers: without the arguments and results of its calls."""
    return mark_safe(tools.shown_html(message, is_owner=False))  # noqa: S308 # sanitised when stored


@register.filter
def paper_html(message: Message) -> SafeString:
    """Return the HTML of a reply for paper."""
    return mark_safe(tools.shown_html(message, is_paper=True))  # noqa: S308 # sanitised when stored


@register.filter
def site(address: str) -> str:
    """Return the host of a web page's address."""
    return (urlsplit(address).hostname or "").removeprefix("www.")


@register.inclusion_tag("chat/_sources.html")
def sources(message: Message, *, is_paper: bool = False) -> dict[str, Any]:
    """Show the sources that a reply cites without links; their words on the owner's paper alone, not to readers."""
    found = citations.sources_of(message)
    return {"sources": found, "others": [], "is_named": True, "is_paper": is_paper}


@register.simple_tag
def tool_cards(run: Run) -> SafeString:
    """Return the cards of the calls of a run that wait for its user's answer."""
    cards = [
        tools.card_html(run.pk, steps.part_of(one), run.waits_until)
        for one in approve.waiting_calls(run)
        if run.waits_until is not None
    ]
    return mark_safe("".join(cards))  # noqa: S308 # rendered by a template
