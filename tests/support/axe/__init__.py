"""axe-core 4.14.1, unchanged from its npm package `axe-core` (MPL 2.0): the checker of accessibility rules."""

from __future__ import annotations

from pathlib import Path

SCRIPT = Path(__file__).with_name("axe.min.js").read_text()
