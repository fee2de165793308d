"""Layouts of the headers of WhatsApp's messages, and dates in the calendars of phones."""

from __future__ import annotations

import re
from datetime import date

MARKS = "[\u200e\u200f\u202a-\u202e\u2066-\u2069]"
_SPACE = "[ \u00a0\u202f]"
_BEGIN = rf"\ufeff?{MARKS}*(?P<open>\[)?{MARKS}*"
_DATE = rf"""(?P<a>\d{{1,4}}){MARKS}*{_SPACE}?(?P<sep>[./-]){MARKS}*{_SPACE}?
    (?P<b>\d{{1,2}}){MARKS}*{_SPACE}?[./-]{MARKS}*{_SPACE}?
    (?P<c>\d{{1,4}})"""
_CLOSE = rf"{MARKS}*(?P<close>\]|{_SPACE}[-–](?={_SPACE})|:(?={_SPACE}\S)){_SPACE}?"
# Digits of any script: exports in Arabic may have their own.
HEADER = re.compile(
    rf"""{_BEGIN}{_DATE}
    (?P<between>[^\d\n]{{1,16}}?)
    (?P<hour>\d{{1,2}}){_SPACE}?(?:[:.]|h{_SPACE}|h)(?P<minute>\d{{2}})
    (?:{_SPACE}?(?:[:.]|min){_SPACE}?(?P<second>\d{{2}})(?:{_SPACE}s)?)?
    (?P<period>[^\d\n\]:]{{0,16}}?)
    {_CLOSE}""",
    re.VERBOSE,
)
# In Vietnam the time comes first.
TIME_FIRST = re.compile(
    rf"""{_BEGIN}(?P<hour>\d{{1,2}}):(?P<minute>\d{{2}})(?::(?P<second>\d{{2}}))?
    (?P<period>(?:{_SPACE}[A-Z]{{2}})?)(?P<between>,?{_SPACE}){_DATE}{_CLOSE}""",
    re.VERBOSE,
)

PERSIAN, ISLAMIC = range(1380, 1430), range(1430, 1500)  # years of both that are after 2000
BUDDHIST = 543  # years ahead of the common era, in exports from Thailand
FIRST_YEAR = 2000  # an earlier date is none of a message


def header(line: str) -> re.Match[str] | None:
    """Return the header at the begin of a line."""
    return HEADER.match(line) or TIME_FIRST.match(line)


def day(year: int, month: int, day: int) -> date | None:
    """Return a date of the common era, the Buddhist era or the Persian or Islamic calendar; None if there is none."""
    try:
        if year in PERSIAN:
            return _persian(year, month, day)
        if year in ISLAMIC:
            return _islamic(year, month, day)
        found = date(year - BUDDHIST if year > 2400 else year, month, day)
    except ValueError:
        return None
    return found if found.year >= FIRST_YEAR else None


def calendar(a: str, c: str) -> str:
    """Return the name of a calendar whose years have notes, by the outer parts of a date; empty for the usual ones."""
    for text in (a, c):
        if len(text) == 4:
            year = int(text)
            return "persian" if year in PERSIAN else "islamic" if year in ISLAMIC else ""
    return ""


def _persian(year: int, month: int, day: int) -> date:
    """Return a day of the Persian calendar, by its cycles of 33 years, which hold until 2100. Raises ValueError."""
    if not 1 <= month <= 12 or not 1 <= day <= (31 if month < 7 else 30):
        raise ValueError(month, day)
    before = 31 * (month - 1) - max(0, month - 7)
    years = year + 1595
    leap_days = years // 33 * 8 + (years % 33 + 3) // 4
    return date.fromordinal(365 * years + leap_days + before + day - 356_033)


def _islamic(year: int, month: int, day: int) -> date:
    """Return a day of the Islamic calendar by its table: the moon can differ by a day. Raises ValueError."""
    if not 1 <= month <= 12 or not 1 <= day <= 30:
        raise ValueError(month, day)
    before = (59 * (month - 1) + 1) // 2
    return date.fromordinal(354 * (year - 1) + (3 + 11 * year) // 30 + before + day + 227_014)
