"""Readers of webhooks and answers that fail in no other way than by BadSignature.

Postgres refuses NUL and lone surrogates, and a column its maximum length: text from outside passes
one of the functions below before it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from billing.payments.providers.base import MAX_ID, MAX_INTEGER, BadSignature, is_usable
from chatproject.lib import strict_json

MAX_URL = 2000


def header(headers: Mapping[str, str], name: str) -> str:
    """Return the header of that name in any case; empty when it is missing."""
    for key, value in headers.items():
        if key.lower() == name.lower() and isinstance(value, str):
            return value
    return ""


def json_object(body: bytes) -> dict[str, Any]:
    """Return the body as a JSON object. Raises BadSignature for anything else."""
    try:
        value = strict_json.loads(body.decode("utf-8"), unique_names=True)
    except (ValueError, RecursionError) as error:
        raise BadSignature("The webhook is signed, but is not JSON.") from error
    if not isinstance(value, dict):
        raise BadSignature("The webhook is signed, but is not an object.")
    return value


def part(value: Any, *names: str) -> dict[str, Any]:
    """Return the object found by following the names; empty when there is none.

    Providers send null, and even an empty list, where an object has no fields.
    """
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def word(value: Any, limit: int = MAX_ID) -> str:
    """Return an identifier as it is stored; empty when the value is not a usable one."""
    return value if is_usable(value, limit) else ""


def identifier(value: Any, limit: int = MAX_ID) -> str:
    """Return an identifier of a webhook; empty when there is none. Raises BadSignature for an odd one."""
    if value is None or value == "" or is_usable(value, limit):
        return value or ""
    raise BadSignature("The webhook is signed, but contains an id that is not one.")


def foreign_identifier(value: Any) -> str:
    """Return our order's id from metadata, where another shop on the same account may have its own."""
    if type(value) is int and abs(value) <= MAX_INTEGER:
        return ""
    found = identifier(value, 500)
    return found if len(found) <= MAX_ID else ""


def reference(value: Any) -> str:
    """Return the identifier of an object that is given whole or by its id."""
    return word(value.get("id") if isinstance(value, dict) else value)


def sentence(value: Any, limit: int = 300) -> str:
    """Return text for people in one line; empty when the value is no text."""
    if not isinstance(value, str):
        return ""
    return "".join(letter for letter in value if letter.isprintable())[:limit]


def https_url(value: Any) -> str:
    """Return a link that a page may show; empty for every other scheme, and for one too long."""
    if not is_usable(value, MAX_URL):
        return ""
    try:
        parts = urlsplit(value)
    except ValueError:
        return ""
    is_link = parts.scheme == "https" and parts.hostname and " " not in value
    return value if is_link else ""
