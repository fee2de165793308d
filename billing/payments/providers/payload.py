"""Readers of webhooks and answers that fail in no other way than by BadSignature."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from billing.payments.providers.base import BadSignature

# No provider's identifier contains it, and Postgres would refuse it.
NUL = "\0"


def header(headers: Mapping[str, str], name: str) -> str:
    """Return the header of that name in any case; empty when it is missing."""
    for key, value in headers.items():
        if key.lower() == name.lower() and isinstance(value, str):
            return value
    return ""


def json_object(body: bytes) -> dict[str, Any]:
    """Return the body as a JSON object. Raises BadSignature for anything else."""
    try:
        value = json.loads(body.decode("utf-8"))
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


def word(value: Any, limit: int = 255) -> str:
    """Return an identifier as it is stored; empty when the value is not a usable one."""
    if isinstance(value, str) and len(value) <= limit and NUL not in value:
        return value
    return ""


def reference(value: Any) -> str:
    """Return the identifier of an object that is given whole or by its id."""
    return word(value.get("id") if isinstance(value, dict) else value)
