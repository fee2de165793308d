"""Template filters that write dates in the language of the page."""

from __future__ import annotations

from datetime import date, datetime

from django import template
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import pgettext_lazy

register = template.Library()

# Formats of Django's `date` filter by their English form; a translation orders the parts as its language does.
FORMATS = {
    "F": pgettext_lazy("date", "F"),
    "F Y": pgettext_lazy("date", "F Y"),
    "j M": pgettext_lazy("date", "j M"),
    "j M Y": pgettext_lazy("date", "j M Y"),
    "j M, H:i": pgettext_lazy("date", "j M, H:i"),
    "j M Y, H:i": pgettext_lazy("date", "j M Y, H:i"),
    "j F": pgettext_lazy("date", "j F"),
    "j F Y": pgettext_lazy("date", "j F Y"),
    "j F Y, H:i": pgettext_lazy("date", "j F Y, H:i"),
    "j F, H:i:s": pgettext_lazy("date", "j F, H:i:s"),
}


@register.filter
def localdate(value: date | datetime | None, name: str) -> str:
    """Write a date or time, in the site's time zone, in one of FORMATS: `{{ day|localdate:"j M Y" }}`."""
    if value is None:
        return ""
    if isinstance(value, datetime) and timezone.is_aware(value):
        value = timezone.localtime(value)
    return date_format(value, str(FORMATS[name]))
