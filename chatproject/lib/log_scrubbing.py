"""Logs without secrets and without texts of users.

Removed are the keys of links that invite, confirm an address or reset a password, session keys, passwords and
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
    r"((?:confirm-email|reset/+key|(?<!admin/)accounts/+(?:invitation|login/+link))(?:/+|(?=[-:\w%.+=])))(?!/|\[key\])(?:[^\s]|[^\S\n]+[^\s]{8})[^\n]*",
    re.IGNORECASE,
)
# As in a header, in the text of a dict or of a list of headers, in a query, and in Postgres' words for
# a row: (session_key)=(abc). A value in quotes may contain spaces.
VALUES = re.compile(
    r"(\b(?:\w{1,40}[-_])?(?:sessionid|session_key|csrftoken|csrfmiddlewaretoken|pass(?:word|wd|phrase)\d?"
    r"|oldpassword|api[-_]?key|(?:private|secret|signing)[-_]?key|secret|token)"
    r"(?:['\"]?+\)?+\s*+(?:[=:]|%3D)|['\"],)\s*+\(?+b?+)"
    r"(?!['\"]?\[key\])(?:(?P<quote>['\"])[^'\"\n]+|[^\s;,&'\")]+)",
    re.IGNORECASE,
)
SIGNATURES = re.compile(
    r"(\b(?:stripe-signature|x-razorpay-signature|x-parley-doctor)['\"]?+\s*+[=:,]\s*+b?+['\"]?+)"
    r"(?!\[key\])[^\s'\"]+",
    re.IGNORECASE,
)
# Of the header Authorization, and keys of providers by their form.
TOKENS = re.compile(
    r"(\b(?:Bearer|Basic)\s++|\bauthorization['\"]?+\s*+[=:,]\s*+b?+['\"]?+\w{1,20}\s++)"
    r"(?!\[key\])[\w.+/=~-]{8,}"
    r"|\b(?:sk|rk|pk|whsec|rzp|gsk|xai|hf|r8|ghp|github_pat|glpat|pplx|nvapi|xox[a-z])[-_](?=\w*\d)[\w-]{8,}"
    r"|\b(?:sk|rk|pk|whsec|rzp)[-_][\w-]{8,}"
    r"|(?<=/s/)[\w-]{32,}"  # of a public link to a chat
    r"|\bAIza[\w-]{20,}|\bAKIA[A-Z0-9]{12,}|\beyJ[\w-]{8,}\.[\w.-]{8,}",
    re.IGNORECASE,
)
CREDENTIALS = re.compile(r"(://[^\s/:@]{0,200}:)(?!\[key\])[^\s/@]+(?=@)")
# Postgres quotes rows that break a rule, values that it cannot read, and the values of a key: any of
# them may be the text of a message. A row may have several lines; each of its values is short.
ROWS = re.compile(r"(\bFailing row contains \()(?!\[row\])(?:[^\0]{0,4000}\)\.(?=\s|$)|[^\n]*)")
UNREADABLE = re.compile(
    r"(JSON data, line \d+: |invalid input syntax for type [\w ]{1,60}: |invalid input value for enum [\w.\"]{1,130}: "
    r"|value out of range: |\bToken (?=\")|\$\d+ = ')(?!\[row\])[^\n]*"
)
KEYS = re.compile(
    r"(\bKey \([^\n=]{1,300}\)=\()(?![\w-]{1,36}\) |\[key\])[^\n]*?(?=\) (?:already|is |conflicts)|\n|$)"
)
ADDRESSES = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}+@(?:[\w-]+\.)+[a-z]{2,}\b", re.IGNORECASE)
ENCODED = re.compile(r"(?:%[0-9a-f]{2})+", re.IGNORECASE)
# Of an error's text, which a server may send: it would move the cursor of a terminal, or hide lines.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
MOST = 50_000  # characters of a line or traceback; the patterns take milliseconds for so many


class ScrubbingFormatter(logging.Formatter):
    """Formats records, tracebacks included, without these secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


def scrub(text: str) -> str:
    """Replace secrets by `[key]`, e-mail addresses by `[address]`, and quoted rows by `[row]`.

    Control characters are escaped, except line breaks and tabs, and a very long text is shortened.
    """
    if len(text) > MOST:
        # Not in the middle of a word, half of which would not look like a secret any longer.
        kept = text[:MOST].rpartition(" ")[0]
        text = f"{kept} … ({len(text) - len(kept)} more characters)"
    text = CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)
    known = known_secrets()
    if known is not None:
        text = known.sub(REPLACEMENT, text)
    text = _without_forms(text)
    plain = text
    # A proxy or a mail program may have encoded a link or a form, even twice.
    for _ in range(3):
        if LINKS.search(plain):
            return LINKS.sub(rf"\1{REPLACEMENT}", plain)
        # A decoded line break would let a client write lines of its own into the log.
        decoded = ENCODED.sub(
            lambda encoded: "".join(
                char if char.isprintable() else "?" for char in unquote(encoded[0])
            ),
            plain,
        )
        if decoded == plain:
            break
        plain = decoded
        if (scrubbed := _without_forms(plain)) != plain:
            return LINKS.sub(rf"\1{REPLACEMENT}", scrubbed)
    return text


def _without_forms(text: str) -> str:
    """Replace what is found by its form or by the words before it."""
    text = VALUES.sub(rf"\1\g<quote>{REPLACEMENT}", text)
    text = SIGNATURES.sub(rf"\1{REPLACEMENT}", text)
    text = TOKENS.sub(rf"\1{REPLACEMENT}", text)
    text = CREDENTIALS.sub(rf"\1{REPLACEMENT}", text)
    text = ROWS.sub(r"\1[row]", text)
    text = UNREADABLE.sub(r"\1[row]", text)
    text = KEYS.sub(r"\1[key]", text)
    return ADDRESSES.sub("[address]", text)


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
    "OIDC_CLIENT_SECRET",
    "GOOGLE_CLIENT_SECRET",
    "GITHUB_CLIENT_SECRET",
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
