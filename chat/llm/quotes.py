"""Text of a prompt that a provider's error quotes: it must not reach the log, nor count as the provider's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SHARED = 20  # characters: a longer sequence that also occurs in a message is a quotation of it
SHORTEST = 4  # "yes" and the like: nothing to protect, and words would be cut up


def texts(value: Any) -> Iterable[str]:
    """Yield the texts of a request's messages, in any nesting."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        no_text = {"role", "type", "image_url"}
        yield from texts([part for key, part in value.items() if key not in no_text])
    elif isinstance(value, list):
        for part in value:
            yield from texts(part)


def without(detail: str, text: str, length: int = SHARED) -> str:
    """Replace every sequence of `length` characters of `text` in `detail` by "[…]"."""
    length = min(length, len(text))
    if length < SHORTEST:
        return detail
    # A shared sequence has a whole block of half its length in it. Searching a long prompt for the blocks
    # only, and not from each character, takes a tenth of the time.
    step = length // 2
    blocks = {at for at in range(0, len(detail), step) if detail[at : at + step] in text}
    kept, at = [], 0
    while at < len(detail):
        end = at + length
        block = -(-at // step) * step
        if end > len(detail) or block not in blocks or detail[at:end] not in text:
            kept.append(detail[at])
            at += 1
            continue
        while end < len(detail) and detail[at : end + 1] in text:
            end += 1
        kept.append("[…]")
        at = end
    return "".join(kept)
