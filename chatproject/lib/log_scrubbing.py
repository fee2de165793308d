"""Logs without secrets: links that confirm an address or reset a password, and session keys."""

from __future__ import annotations

import logging
import re
from urllib.parse import quote, unquote

REPLACEMENT = "[key]"

# A mailed link up to the end of its line: a link that was pasted with a space, a quote or a bracket
# still has its key. The text after the path alone (a status, a duration) is short.
LINKS = re.compile(
    r"((?:confirm-email|reset/+key)(?:/+|(?=[-:\w%.+=])))(?!/|\[key\])(?:[^\s]|[^\S\n]+[^\s]{8})[^\n]*",
    re.IGNORECASE,
)
# As in a header, in the text of a dict, and in Postgres' words for a row: (session_key)=(abc).
VALUES = re.compile(
    r"(\b(?:sessionid|session_key|csrftoken|csrfmiddlewaretoken)['\"]?+\)?+\s*+[=:]\s*+\(?+b?+['\"]?+)"
    r"(?!\[key\])[^\s;,'\")]+",
    re.IGNORECASE,
)
ENCODED = re.compile(r"(?:%[0-9a-f]{2})+", re.IGNORECASE)


class ScrubbingFormatter(logging.Formatter):
    """Formats records, tracebacks included, without these secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


def scrub(text: str) -> str:
    """Replace keys in links, session keys and CSRF tokens by `[key]`."""
    text = VALUES.sub(rf"\1{REPLACEMENT}", text)
    plain = text
    # A proxy or a mail program may have encoded the link, even twice.
    for _ in range(3):
        if LINKS.search(plain):
            return LINKS.sub(rf"\1{REPLACEMENT}", plain)
        # A decoded line break would let a client write lines of its own into the log.
        plain = ENCODED.sub(
            lambda encoded: "".join(
                char if char.isprintable() else "?" for char in unquote(encoded[0])
            ),
            plain,
        )
    return text


def scrub_path(path: str) -> str:
    """Replace the key in a path as it came from a client, which stays percent-encoded."""
    scrubbed = scrub(path)
    return path if scrubbed == path else quote(scrubbed, safe="/[]%:?=&-")
