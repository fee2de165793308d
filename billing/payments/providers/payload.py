"""Reading webhooks without ever failing in another way than by BadSignature."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from billing.payments.providers.base import BadSignature

# Not an identifier of a provider's, and Postgres would refuse it.
NUL = "\0"


def header(headers: Mapping[str, str], name: str) -> str:
    """The header of that name in any case; empty when it is missing."""
    for key, value in headers.items():
        if key.lower() == name.lower() and isinstance(value, str):
            return value
    return ""


def json_object(body: bytes) -> dict[str, Any]:
    """The body as an object of JSON. Raises BadSignature for anything else."""
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadSignature("The webhook is signed, but is not JSON.") from error
    if not isinstance(value, dict):
        raise BadSignature("The webhook is signed, but is not an object.")
    return value


def part(value: Any, *names: str) -> dict[str, Any]:
    """The object found by following the names; empty where there is none.

    Providers send null, and even an empty list, where an object has no fields.
    """
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def word(value: Any, limit: int = 255) -> str:
    """An identifier as it is stored; empty when the value is none."""
    if isinstance(value, str) and len(value) <= limit and NUL not in value:
        return value
    return ""


def reference(value: Any) -> str:
    """The identifier of an object that may be given whole or by its id."""
    return word(value.get("id") if isinstance(value, dict) else value)
