"""Spanish, as browsers format it (CLDR)."""

from __future__ import annotations

THOUSAND_SEPARATOR = "."
DECIMAL_SEPARATOR = ","
NUMBER_GROUPING = 3
