"""Converts formulas from LaTeX to MathML, which browsers show without a script.

The converter's elements are written out by an allow list, so that nothing else of a formula reaches the page.
Without a result a formula is shown as it is written.
"""

from __future__ import annotations

import re
from html import unescape
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element
from markdown_it.common.utils import escapeHtml

MAX_CHARACTERS = 3_000

# Definitions of macros can grow without end, and others load files or name addresses.
REFUSED = re.compile(
    r"\\(?:def|gdef|edef|let|newcommand|renewcommand|providecommand|newenvironment|include|input|href|url)(?![a-z])"
)

ELEMENTS = frozenset(
    "math mrow mi mo mn mtext ms mspace mfrac msqrt mroot msub msup msubsup munder mover munderover"  # noqa: SIM905
    " mmultiscripts mprescripts none mtable mtr mtd mstyle mpadded mphantom menclose".split()
)
ATTRIBUTES = frozenset(
    "accent accentunder columnalign columnlines columnspacing depth display displaystyle fence form height"  # noqa: SIM905
    " largeop linethickness lspace mathvariant maxsize minsize movablelimits notation rowlines rowspacing rspace"
    " scriptlevel separator stretchy symmetric voffset width".split()
)
VALUE = re.compile(r"[\w.%+ -]{1,60}")

# A formula between single dollar signs has one of these, or is a short name or a number.
SIGN = re.compile(r"[\\^_=<>+*/|!\u2200-\u22ff]|\w\(")
SHORT = re.compile(r"-?\d*[A-Za-z]?'*|[A-Za-z]{1,2}|-?[\d.,]*\d%?")
WORD = re.compile(r"[A-Za-z]{4,}")
COMMAND = re.compile(r"\\(?:text|mathrm|operatorname|textbf)\s*\{[^{}]*\}|\\[A-Za-z]+")


def looks_like_math(source: str) -> bool:
    """Return whether a text between single dollar signs is a formula, not a price or names of variables."""
    return SHORT.fullmatch(source) is not None or (
        SIGN.search(source) is not None and WORD.search(COMMAND.sub("", source)) is None
    )


def to_mathml(source: str, *, is_block: bool, shown: str) -> str | None:
    """Return the MathML of a formula; None if it cannot be converted. `shown` is kept as its source."""
    if len(source) > MAX_CHARACTERS or REFUSED.search(source) is not None:
        return None
    try:
        element = convert_to_element(source, display="block" if is_block else "inline")
        html = written(element, f' alttext="{escapeHtml(shown)}"')
    except Exception:  # noqa: BLE001 # of many kinds, for a formula that is wrong or too deep
        return None
    return None if "\\" in unescape(re.sub(r"<[^>]*>", "", html)) else html


def written(element: Element, attributes: str = "") -> str:
    """Return the HTML of an element. Raises ValueError for an element that is not allowed."""
    if element.tag not in ELEMENTS:
        raise ValueError(element.tag)
    for name, value in element.attrib.items():
        if name in ATTRIBUTES and VALUE.fullmatch(value):
            attributes += f' {name}="{value}"'
    inner = escapeHtml(unescape(element.text or "")) + "".join(written(child) for child in element)
    return f"<{element.tag}{attributes}>{inner}</{element.tag}>"
