"""Logs without secrets and without texts of users.

Removed are the keys of links that confirm an address or reset a password, session keys, passwords and
tokens, the secrets of the settings wherever they are quoted, e-mail addresses, and the rows that
Postgres quotes in its errors.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import cache
from urllib.parse import quote, unquote, urlsplit

from django.conf import settings

REPLACEMENT = "[key]"

# A mailed link up to the end of its line: a link that was pasted with a space, a quote or a bracket
# still has its key. The text after the path alone (a status, a duration) is short.
LINKS = re.compile(
    r"((?:confirm-email|reset/+key)(?:/+|(?=[-:\w%.+=])))(?!/|\[key\])(?:[^\s]|[^\S\n]+[^\s]{8})[^\n]*",
    re.IGNORECASE,
)
# As in a header, in the text of a dict, and in Postgres' words for a row: (session_key)=(abc).
VALUES = re.compile(
    r"(\b(?:sessionid|session_key|csrftoken|csrfmiddlewaretoken|password[12]?|api[-_]?key|secret"
    r"|stripe-signature|x-razorpay-signature)['\"]?+\)?+\s*+[=:]\s*+\(?+b?+['\"]?+)"
    r"(?!\[key\])[^\s;,'\")]+",
    re.IGNORECASE,
)
# Of the header Authorization, and keys of providers by their form.
TOKENS = re.compile(
    r"(\b(?:Bearer|Basic)\s++)(?!\[key\])[\w.+/=~-]{8,}|\b(?:sk|rk|pk|whsec|rzp)[-_][\w-]{8,}",
    re.IGNORECASE,
)
CREDENTIALS = re.compile(r"(://[^\s/:@]*:)(?!\[key\])[^\s/@]+(?=@)")
ADDRESSES = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}+@(?:[\w-]+\.)+[a-z]{2,}\b", re.IGNORECASE)
# Postgres quotes rows that break a rule, values that it cannot read, and the values of a key: any of
# them may be the text of a message.
ROWS = re.compile(
    r"(Failing row contains \(|JSON data, line \d+: |invalid input syntax for type [\w ]+: |\$\d+ = ')"
    r"(?!\[row\])[^\n]*"
)
KEYS = re.compile(
    r"(\bKey \([^\n]*?\)=\()(?![\w-]{1,36}\) |\[key\])[^\n]*?(?=\) (?:already|is |conflicts))"
)
ENCODED = re.compile(r"(?:%[0-9a-f]{2})+", re.IGNORECASE)


class ScrubbingFormatter(logging.Formatter):
    """Formats records, tracebacks included, without these secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


def scrub(text: str) -> str:
    """Replace secrets by `[key]`, e-mail addresses by `[address]`, and quoted rows by `[row]`."""
    known = known_secrets()
    if known is not None:
        text = known.sub(REPLACEMENT, text)
    text = VALUES.sub(rf"\1{REPLACEMENT}", text)
    text = TOKENS.sub(rf"\1{REPLACEMENT}", text)
    text = CREDENTIALS.sub(rf"\1{REPLACEMENT}", text)
    text = ROWS.sub(r"\1[row]", text)
    text = KEYS.sub(r"\1[key]", text)
    text = ADDRESSES.sub("[address]", text)
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


# Settings with secrets, each a text or a list of texts.
SECRETS = (
    "SECRET_KEY",
    "SECRET_KEY_FALLBACKS",
    "ENCRYPTION_KEYS",
    "OPENAI_API_KEY",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRETS",
    "RAZORPAY_KEY_SECRET",
    "RAZORPAY_WEBHOOK_SECRETS",
    "EMAIL_HOST_PASSWORD",
    "METRICS_TOKEN",
    "ALERT_WEBHOOK_URL",
)
LEAST_LENGTH = 8  # a shorter one would take common words out of the log


@cache
def known_secrets() -> re.Pattern[str] | None:
    """Return a pattern of the secrets of the settings; None without any."""
    found = sorted({one for one in _secrets() if len(one) >= LEAST_LENGTH}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None


def _secrets() -> Iterator[str]:
    if not settings.configured:
        return
    for name in SECRETS:
        value = getattr(settings, name, "")
        yield from [value] if isinstance(value, str) else value
    yield settings.DATABASES["default"]["PASSWORD"]
    yield unquote(urlsplit(settings.REDIS_URL).password or "")
