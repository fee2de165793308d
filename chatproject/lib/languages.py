"""The languages of the interface (gettext), and the forms of numbers and dates in each.

A sentence is translated where its reader's language is known: pages and sockets are in that of their user,
mails in that of their recipient, the events and documents of a run in the language of its request. Rows store
the English source with a code. docs/translations.md has the rules.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from datetime import date, datetime
from decimal import Decimal

from django.conf import settings
from django.utils import formats, timezone, translation
from django.utils.translation import gettext_lazy, pgettext_lazy

CODES = frozenset(code for code, _name in settings.LANGUAGES)


# Formats of Django's `date` filter by their English form; a translation orders the parts as its language does.
FORMATS = {
    "F": pgettext_lazy("date", "F"),
    "F Y": pgettext_lazy("date", "F Y"),
    "M Y": pgettext_lazy("date", "M Y"),
    "j M": pgettext_lazy("date", "j M"),
    "j M Y": pgettext_lazy("date", "j M Y"),
    "j M, H:i": pgettext_lazy("date", "j M, H:i"),
    "j M Y, H:i": pgettext_lazy("date", "j M Y, H:i"),
    "j F": pgettext_lazy("date", "j F"),
    "j F Y": pgettext_lazy("date", "j F Y"),
    "j F Y, H:i": pgettext_lazy("date", "j F Y, H:i"),
    "j F, H:i:s": pgettext_lazy("date", "j F, H:i:s"),
}


# Units by their bytes, with the decimal places of numbers in them.
SIZES = (
    (gettext_lazy("%(number)s kB"), 10**3, 0),
    (gettext_lazy("%(number)s MB"), 10**6, 1),
    (gettext_lazy("%(number)s GB"), 10**9, 1),
)


def known(code: str | None) -> str:
    """Return a language of this site: `code`, or the default for any other value."""
    return code if code in CODES else settings.LANGUAGE_CODE


def active() -> str:
    """Return the language of the present page, socket or job."""
    return known(translation.get_language())


def use(code: str | None) -> AbstractContextManager[None]:
    """Translate into a language inside of a `with`; into the default one for an unknown code."""
    return translation.override(known(code))


def plain_number(text: str) -> str:
    """Return a number that a person typed in the active language as Python writes it: `1.234,5` → `1234.5`.

    Separators of thousands must separate thousands, so that `12.5` is never taken for 125, and a decimal
    point is accepted in each language. Any other text is returned as it is.
    """
    group, decimal = _separators()
    text = text.strip()
    grouped = rf"[+-]?\d{{1,3}}({re.escape(group)}\d{{3}})+({re.escape(decimal)}\d*)?"
    plain = rf"[+-]?\d*{re.escape(decimal)}\d*"
    if re.fullmatch(grouped, text):
        text = text.replace(group, "")
    elif not re.fullmatch(plain, text):
        return text
    return text.replace(decimal, ".")


def written(text: str) -> str:
    """Return a plain decimal number (`1234.5`) as `plain_number` reads it, without separators of thousands."""
    return text.replace(".", _separators()[1])


def _separators() -> tuple[str, str]:
    """Return the separators of thousands and of decimals of the active language."""
    names = ("THOUSAND_SEPARATOR", "DECIMAL_SEPARATOR")
    group, decimal = (str(formats.get_format(name)) for name in names)
    return group, decimal


def number(value: int | Decimal, places: int | None = None) -> str:
    """Format a number for people in the active language: `1,234.50`, in German `1.234,50`."""
    return formats.number_format(value, decimal_pos=places, force_grouping=True)


def size(count: int) -> str:
    """Write a number of bytes for people: `340 kB`, `2.4 MB`, `1 GB`; less than 1 kB counts as 1 kB, unless it is 0."""
    rounded = [(name, round(Decimal(count) / unit, places)) for name, unit, places in SIZES]
    name, value = next((one for one in rounded if one[1] < 1_000), rounded[-1])
    if count:
        value = max(value, Decimal(1))
    return name % {"number": number(value, None if value % 1 else 0)}


def day(value: date | datetime, name: str) -> str:
    """Write a date or time, in the site's time zone, in one of FORMATS."""
    if isinstance(value, datetime) and timezone.is_aware(value):
        value = timezone.localtime(value)
    return formats.date_format(value, str(FORMATS[name]))
