"""Arabic with the digits 0 to 9, as amounts and codes are written beside Latin words (CLDR: ar-u-nu-latn)."""

from __future__ import annotations

THOUSAND_SEPARATOR = ","
DECIMAL_SEPARATOR = "."
NUMBER_GROUPING = 3
