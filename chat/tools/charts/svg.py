"""SVG of charts: only shapes, letters and their colours, and no address or script can be in them."""

from __future__ import annotations

import re
import textwrap

import nh3
from django.utils.html import escape

from chat.rendering import colours

MAX_BYTES = 400_000

TAGS = {"svg", "g", "path", "rect", "text", "tspan", "line", "circle"}
SHARED = {
    "transform", "fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray",
    "stroke-dashoffset", "stroke-linejoin", "stroke-linecap", "stroke-miterlimit", "opacity",
}  # fmt: skip
OWN = {
    "svg": {"viewBox"},
    "g": set(),
    "path": {"d"},
    "rect": {"x", "y", "width", "height", "rx", "ry"},
    "text": {"x", "y", "dx", "dy", "text-anchor", "font-family", "font-size", "font-weight", "dominant-baseline"},
    "tspan": {"x", "y", "dx", "dy"},
    "line": {"x1", "y1", "x2", "y2"},
    "circle": {"cx", "cy", "r"},
}  # fmt: skip
VALUE = re.compile(
    r"[\w\s.,#%+-]*|var\(--[a-z0-9-]+\)|(?:(?:translate|rotate|scale)\([\d\s.,eE+-]*\)\s*)+"
)
LONG_FRACTION = re.compile(r"(\d\.\d)\d{2,}")
NOTHING = re.compile(r'<path[^>]*\bd=""[^>]*></path>')
EMPTY_GROUP = re.compile(r"<g[^>]*></g>")
VIEW_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def _allowed(tag: str, attribute: str, value: str) -> str | None:
    if VALUE.fullmatch(value) is None:
        return None
    return LONG_FRACTION.sub(r"\1", value) if attribute in ("d", "transform") else value


_cleaner = nh3.Cleaner(
    tags=TAGS,
    attributes={tag: own | SHARED for tag, own in OWN.items()},
    attribute_filter=_allowed,
    clean_content_tags={"script", "style", "title", "desc"},
    generic_attribute_prefixes=None,
    link_rel=None,
)


def clean(svg: str) -> str:
    """Return a drawing with nothing but allowed elements and attributes; empty if it is none or too large."""
    cleaned = _cleaner.clean(svg)
    cleaned = NOTHING.sub("", cleaned)
    while True:
        smaller = EMPTY_GROUP.sub("", cleaned)
        if smaller == cleaned:
            break
        cleaned = smaller
    is_drawing = cleaned.startswith("<svg ") and VIEW_BOX.search(cleaned) is not None
    return cleaned if is_drawing and len(cleaned) <= MAX_BYTES else ""


def picture(svg: str, title: str, *, dark: bool = False) -> str:
    """Return a drawing as a file of its own, in the colours of a theme, with its title above it."""
    found = VIEW_BOX.search(svg)
    assert found is not None
    width, height = float(found[1]), float(found[2])
    lines = textwrap.wrap(title, max(12, int(width / 8.5)))[:3]
    top = 12 + 20 * len(lines)
    ground, ink = colours.TOKENS["--surface"][dark], colours.TOKENS["--text"][dark]
    words = "".join(
        f'<text x="12" y="{26 + 20 * number}" font-family="sans-serif" font-size="15" font-weight="bold" fill="{ink}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    inner = colours.fixed(svg, dark=dark).replace(
        "<svg ", f'<svg x="0" y="{top}" width="{width:g}" height="{height:g}" ', 1
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height + top:g}" width="{width:g}" height="{height + top:g}">'
        f'<rect width="100%" height="100%" fill="{ground}"></rect>{words}{inner}</svg>'
    )
