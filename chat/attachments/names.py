"""Names of files, as users see them: they never reach the file system."""

from __future__ import annotations

import re
import unicodedata

from django.utils.translation import gettext as _

MOST_CHARACTERS = 120
READ_CHARACTERS = 2_000  # at the end of a name, of which an import may have any number
LONGEST_ENDING = 12
JOINERS = "\u200c\u200d"


def clean(name: str) -> str:
    """Return the name of an upload in one line: its last part, without characters that deceive.

    Control and formatting characters go, among them those that reverse the direction and so hide an
    ending; joiners of emoji and of scripts stay. A long name keeps its ending.
    """
    plain = "".join(
        " " if unicodedata.category(one)[0] == "C" and one not in JOINERS else one
        for one in re.split(r"[/\\]", name[-READ_CHARACTERS:])[-1]
    )
    plain = " ".join(plain.split())
    if not plain.strip(f". {JOINERS}"):
        return _("File")
    if len(plain) > MOST_CHARACTERS:
        stem, dot, ending = plain.rpartition(".")
        ending = f"{dot}{ending}" if stem and len(ending) <= LONGEST_ENDING else ""
        plain = f"{plain[: MOST_CHARACTERS - len(ending) - 1].rstrip()}…{ending}"
    return plain
