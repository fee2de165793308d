"""The fonts of receipts, for every script.

Each font is read from its package when a text needs it, and reduced to the letters of that text: a
receipt in Latin, Greek or Cyrillic letters reads one font of 0.7 MB. The fonts are variable; the
weight is fixed in the same step. Nothing stays in memory.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import manimgx_fonts
import manimgx_fonts_cjk
from fontTools import subset
from fontTools.ttLib import TTFont
from fontTools.varLib import instancer
from fpdf import FPDF

FAMILY = "receipt"
REGULAR, BOLD = 400, 700
ASCII = "".join(map(chr, range(0x20, 0x7F)))

FOLDER = Path(manimgx_fonts.__file__).parent
LATIN = FOLDER / "NotoSans[wght].ttf"
CJK = Path(manimgx_fonts_cjk.__file__).parent / "NotoSansCJK-VF.otf.ttc"

# In the order in which they are searched.
FILES = (
    LATIN,
    *(
        path
        for path in sorted(FOLDER.glob("NotoSans?*.ttf"))
        if path.name != LATIN.name and "Italic" not in path.name
    ),
    FOLDER / "NotoEmoji[wght].ttf",
    CJK,
)

# Tables that the letters of Chinese, Japanese and Korean do without, and take a second to reduce.
LAYOUT = ("GSUB", "GPOS", "GDEF", "BASE", "VORG", "VVAR", "vhea", "vmtx", "STAT")


def add(document: FPDF, text: str, folder: Path) -> set[str]:
    """Add the fonts that a text needs to a document; return the characters that no font has.

    The reduced fonts are written to `folder`, which must exist until the document is complete.
    """
    missing = {letter for letter in text if not _is_invisible(letter)} | set(ASCII)
    fallbacks: list[str] = []
    for path in FILES:
        found: set[str] = set()
        if missing:
            with TTFont(path, fontNumber=0, lazy=True) as font:
                known = font.getBestCmap()
                found = {letter for letter in missing if ord(letter) in known}
        missing -= found
        if path == LATIN:
            document.add_font(FAMILY, "", _reduced(path, found, REGULAR, folder))
            document.add_font(FAMILY, "B", _reduced(path, found, BOLD, folder))
        elif found:
            # Punctuation and digits too: a font joins and orders only its own letters.
            name = f"fallback{len(fallbacks)}"
            document.add_font(name, "", _reduced(path, found | set(ASCII), REGULAR, folder))
            fallbacks.append(name)
    document.set_fallback_fonts(fallbacks, exact_match=False)
    document.set_font(FAMILY, "", 10)
    # Joins letters, and orders those that are written from right to left.
    document.set_text_shaping(use_shaping_engine=True)
    return missing


def _is_invisible(letter: str) -> bool:
    """Return whether a character is a control or a mark of direction, which has no glyph."""
    return (
        unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp")
        or letter == "\N{VARIATION SELECTOR-16}"
    )


def _reduced(path: Path, letters: set[str], weight: int, folder: Path) -> Path:
    """Write a font of these letters alone in one weight; return its path."""
    options = subset.Options()
    options.layout_features = ["*"]
    options.notdef_outline = True
    options.name_IDs = [1, 2, 4, 6]
    font = TTFont(path, fontNumber=0, lazy=True)
    if path == CJK:
        for table in LAYOUT:
            if table in font:
                del font[table]
    reducer = subset.Subsetter(options)
    reducer.populate(text="".join(sorted(letters)))
    reducer.subset(font)
    instancer.instantiateVariableFont(font, {"wght": weight}, inplace=True)
    target = folder / f"{path.stem}-{weight}{'.otf' if path == CJK else '.ttf'}"
    font.save(target)
    font.close()
    return target
