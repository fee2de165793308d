"""The JSON schemas of insights: a small part of JSON Schema, so that each answer can be shown as a card.

An answer is an object. There are no references, so no schema recurses, and no patterns, so none is slow to check;
depth and size are bounded. Answers are validated by jsonschema-rs, which only workers and the admin import.
"""

from __future__ import annotations

import json
from typing import Any

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

DEEPEST = 5
MOST_BYTES = 8_000
MOST_PROPERTIES = 20  # of one object
MOST_ITEMS = 30  # of an array, if its schema does not say less
MOST_ERRORS = 5  # that a repair quotes

KEYWORDS: dict[str, frozenset[str]] = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "minItems", "maxItems")),
    "string": frozenset(("enum", "minLength", "maxLength")),
    "number": frozenset(("minimum", "maximum")),
    "integer": frozenset(("minimum", "maximum")),
    "boolean": frozenset(),
}
COMMON = frozenset(("type", "title", "description"))
NUMBERS = frozenset(("minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum"))
COUNTS = frozenset(("minItems", "maxItems", "minLength", "maxLength"))


def validate(schema: Any) -> None:
    """Raise ValidationError, with the place, unless the schema is of the part that we know."""
    try:
        size = len(json.dumps(schema, allow_nan=False))
    except (RecursionError, ValueError, TypeError) as error:
        raise ValidationError(_("The schema is not JSON, or is too deep.")) from error
    if size > MOST_BYTES:
        raise ValidationError(
            _("The schema has %(size)d bytes; at most %(most)d are allowed.")
            % {"size": size, "most": MOST_BYTES}
        )
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise ValidationError(_("The schema must describe an object: its type is “object”."))
    _check(schema, "schema", 1)


def _check(schema: Any, place: str, depth: int) -> None:
    if depth > DEEPEST:
        raise _refused(place, _("it is nested deeper than %(most)d levels") % {"most": DEEPEST})
    if not isinstance(schema, dict):
        raise _refused(place, _("it is not an object"))
    if "$ref" in schema:
        raise _refused(place, _("references ($ref) are not supported; write the schema out"))
    kind = schema.get("type")
    if not isinstance(kind, str) or kind not in KEYWORDS:
        raise _refused(
            place, _("its type must be one of %(known)s") % {"known": ", ".join(KEYWORDS)}
        )
    unknown = sorted(set(schema) - COMMON - KEYWORDS[kind])
    if unknown:
        raise _refused(
            place, _("the keyword “%(name)s” is not supported") % {"name": unknown[0][:40]}
        )
    for name in ("title", "description"):
        if not isinstance(schema.get(name, ""), str):
            raise _refused(place, _("“%(name)s” must be a text") % {"name": name})
    for name in NUMBERS & set(schema):
        value = schema[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (name in COUNTS and (not isinstance(value, int) or value < 0)):
            raise _refused(place, _("“%(name)s” must be a number") % {"name": name})
    for least, most in (
        ("minItems", "maxItems"),
        ("minLength", "maxLength"),
        ("minimum", "maximum"),
    ):
        if least in schema and most in schema and schema[least] > schema[most]:
            raise _refused(place, _("“%(name)s” is above its maximum") % {"name": least})
    if kind == "object":
        _check_object(schema, place, depth)
    elif kind == "array":
        _check(schema.get("items"), f"{place}.items", depth + 1)
    elif "enum" in schema:
        values = schema["enum"]
        if (
            not isinstance(values, list)
            or not values
            or not all(isinstance(one, str) for one in values)
        ):
            raise _refused(place, _("“enum” must be a list of texts"))


def _check_object(schema: dict[str, Any], place: str, depth: int) -> None:
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties:
        raise _refused(place, _("an object needs “properties”"))
    if len(properties) > MOST_PROPERTIES:
        raise _refused(place, _("it has more than %(most)d properties") % {"most": MOST_PROPERTIES})
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(
        isinstance(name, str) and name in properties for name in required
    ):
        raise _refused(place, _("“required” must name properties"))
    if not isinstance(schema.get("additionalProperties", False), bool):
        raise _refused(place, _("“additionalProperties” must be true or false"))
    for name, one in properties.items():
        _check(one, f"{place}.{name}", depth + 1)


def _refused(place: str, problem: str) -> ValidationError:
    return ValidationError(
        _("%(place)s: %(problem)s.") % {"place": place[:200], "problem": problem}
    )


def validate_example(schema: dict[str, Any], example: Any) -> None:
    """Raise ValidationError unless an example fits a valid schema."""
    validate(schema)
    if found := problems(schema, example):
        raise ValidationError(
            _("The example does not fit the schema: %(problem)s") % {"problem": found[0]}
        )


def problems(schema: dict[str, Any], answer: Any) -> list[str]:
    """Return what is wrong with an answer, as sentences with places; an empty list if it fits."""
    import jsonschema_rs  # not in web processes, until staff save a type

    validator = jsonschema_rs.validator_for(strict(schema))
    found = []
    for error in validator.iter_errors(answer):
        place = "/".join(str(part) for part in error.instance_path) or "the answer"
        found.append(f"{place}: {error.message[:300]}")
        if len(found) == MOST_ERRORS:
            break
    return found


def properties_of(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the properties of an object: the required ones in that order, as the database keeps no other."""
    first = {name: place for place, name in enumerate(schema.get("required", []))}
    return sorted(schema["properties"].items(), key=lambda one: first.get(one[0], len(first)))


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with bounds where it has none: servers that take schemas ask for `additionalProperties`."""
    if schema["type"] == "object":
        properties = {name: strict(one) for name, one in properties_of(schema)}
        return {"additionalProperties": False, **schema, "properties": properties}
    if schema["type"] == "array":
        return {"maxItems": MOST_ITEMS, **schema, "items": strict(schema["items"])}
    return schema
