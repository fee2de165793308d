"""Template filters that write dates and sizes in the language of the page."""

from __future__ import annotations

from datetime import date, datetime

from django import template

from chatproject.lib import languages

register = template.Library()


@register.filter
def localdate(value: date | datetime | None, name: str) -> str:
    """Write a date or time: `{{ day|localdate:"j M Y" }}`; nothing for None."""
    return "" if value is None else languages.day(value, name)


@register.filter
def filesize(count: int) -> str:
    """Write a number of bytes: `{{ file.size|filesize }}`."""
    return languages.size(count)
