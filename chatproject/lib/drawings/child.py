"""The function that makes a PNG, in the sandboxed child: no other process imports the library."""

from __future__ import annotations

from typing import Any

import vl_convert


def png(argument: dict[str, Any]) -> bytes:
    """Return the PNG of an `svg` with letters of the folders `fonts`."""
    for folder in argument["fonts"]:
        vl_convert.register_font_directory(folder)
    return bytes(vl_convert.svg_to_png(argument["svg"], scale=argument["scale"]))
