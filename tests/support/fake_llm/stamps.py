"""Stamped tokens: ` 0n3x9k.17;` is token 17, emitted at the microsecond 0n3x9k (base 36).

The stamp has the last six digits of the time since 1970. The first token has no leading space.
Everything about a token but its stamp is encoded in advance: the provider shares the machine with
the systems that the bench measures, and a token costs it two table look-ups, one join and one write.
"""

from __future__ import annotations

import time

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
STAMP_DIGITS = 6
SPAN: int = 36**STAMP_DIGITS  # microseconds after which the stamps begin anew: 36 minutes
HALF: int = 36 ** (STAMP_DIGITS // 2)
HALVES = [f"{a}{b}{c}".encode() for a in DIGITS for b in DIGITS for c in DIGITS]
BLANK = b"?" * STAMP_DIGITS  # the stamp in a token that is encoded in advance
END = ";"  # of a token


def delay(stamp: int, now: int) -> int:
    """Microseconds from a stamp to the time `now` (microseconds since 1970)."""
    passed = (now - stamp) % SPAN
    # The clock may be set back by a little between two readings.
    return passed if passed < SPAN - 10_000_000 else passed - SPAN


def blank_token(number: int) -> str:
    """The text of a token, with BLANK for its stamp."""
    return f"{' ' if number else ''}{BLANK.decode()}.{number}{END}"


def stamped(before: bytes, after: bytes) -> bytes:
    """The parts of an encoded token, with the current time between them."""
    high, low = divmod((time.time_ns() // 1000) % SPAN, HALF)
    return b"".join((before, HALVES[high], HALVES[low], after))
