"""English; dates of the site's pages have formats of their own (chatproject/templatetags/words.py)."""

from __future__ import annotations

THOUSAND_SEPARATOR = ","
DECIMAL_SEPARATOR = "."
NUMBER_GROUPING = 3
