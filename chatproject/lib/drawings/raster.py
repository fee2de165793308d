"""PNG files of drawings: in a sandboxed process, which needs no engine of Vega."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from chatproject.lib import sandbox

PNG = "chatproject.lib.drawings.child:png"
LIMITS = sandbox.Limits(
    memory=300_000_000, address_space=2_000_000_000, seconds=20, cpu=15, output=20_000_000
)
BEYOND_LATIN = re.compile("[^\u0000-\u024f\u2000-\u206f\u20a0-\u20bf\u2212]")
EAST_ASIAN = re.compile("[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff]")


def png(svg: str, *, scale: float) -> bytes:
    """Return a drawing as a PNG of `scale` times its size. Raises SandboxError."""
    packages = []
    if BEYOND_LATIN.search(svg):
        packages.append("manimgx_fonts")
    if EAST_ASIAN.search(svg):
        packages.append("manimgx_fonts_cjk")
    argument = {"svg": svg, "scale": scale, "fonts": [_folder(name) for name in packages]}
    found: bytes = sandbox.call(PNG, argument, LIMITS)
    return found


def _folder(package: str) -> str:
    """Return the folder of a package without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent)
