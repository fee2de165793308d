"""The colours of drawings: the design tokens of the page, so that one drawing suits both themes."""

from __future__ import annotations

import re

# Of static/css/tokens.css, for pictures that are shown outside of the page: in light and in dark.
TOKENS = {
    "--surface": ("#ffffff", "#1d1c19"),
    "--border": ("#e3dfd7", "#37342e"),
    "--text": ("#1f1d1a", "#ece9e3"),
    "--muted": ("#615c53", "#aba59a"),
    "--part-1": ("#2b5aa6", "#8db3f2"),
    "--part-2": ("#b8651b", "#e0a15c"),
    "--part-3": ("#2a8466", "#6fcbab"),
    "--part-4": ("#8d4a9e", "#c79ad6"),
    "--part-5": ("#a8324a", "#ef8fa0"),
    "--part-6": ("#857f74", "#8c8579"),
}
PARTS = [f"var({name})" for name in TOKENS if name.startswith("--part-")]
SURFACE, BORDER, TEXT, MUTED = (f"var(--{name})" for name in ("surface", "border", "text", "muted"))

VARIABLE = re.compile(r"var\((--[a-z0-9-]+)\)")


def fixed(svg: str, *, dark: bool = False) -> str:
    """Return a drawing with the colours of one theme in place of the page's."""
    return VARIABLE.sub(lambda found: TOKENS[found[1]][dark], svg)
