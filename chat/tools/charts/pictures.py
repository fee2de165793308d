"""Charts as PNG files, drawn anew from the stored drawing."""

from __future__ import annotations

from chat.tools.charts import svg
from chatproject.lib.drawings import raster

SCALE = 2.5  # of a drawing 400 units wide


def png(drawing: str, title: str, *, dark: bool = False) -> bytes:
    """Return a stored drawing with its title as a PNG. Raises SandboxError."""
    return raster.png(svg.picture(drawing, title, dark=dark), scale=SCALE)
