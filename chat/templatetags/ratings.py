"""Templates: the buttons that rate a reply."""

from __future__ import annotations

from django import template

from chat.rendering.message import rating_html

register = template.Library()
register.filter("rating_buttons", rating_html)
