"""Template filters that format amounts."""

from __future__ import annotations

from django import template

from billing.credits import show, show_money

register = template.Library()


@register.filter
def credits(micro: int) -> str:
    """Micro-credits: `1,234.5`."""
    return show(micro)


@register.filter
def in_column(micro: int, *, signed: bool = False) -> str:
    """Micro-credits in a column of figures, always with two decimals: `100.00`."""
    text = show(micro, signed=signed)
    return text if "." in text else f"{text}.00"


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
    return f"{count:,}"
