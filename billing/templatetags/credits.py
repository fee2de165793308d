"""Template filters that format amounts."""

from __future__ import annotations

from django import template

from billing.credits import in_column as credits_in_column
from billing.credits import show, show_money
from chatproject.lib import languages

register = template.Library()


@register.filter
def credits(micro: int) -> str:
    """Micro-credits: `1,234.5`."""
    return show(micro)


@register.filter
def in_column(micro: int, *, signed: bool = False) -> str:
    """Micro-credits in a column of figures, always with two decimals: `100.00`."""
    return credits_in_column(micro, signed=signed)


@register.filter
def movement_in_column(micro: int) -> str:
    """Micro-credits in a column of figures, with their sign: `+100.00`."""
    return in_column(micro, signed=True)


@register.filter
def money(minor: int, currency: str) -> str:
    """Minor units of a currency: `USD 5.00`."""
    return show_money(minor, currency)


@register.filter
def thousands(count: int) -> str:
    """A count: `2,048`."""
    return languages.number(count)
