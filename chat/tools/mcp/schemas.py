"""The JSON schemas of other servers' tools: bounded before they are stored, sent to models or read by anything."""

from __future__ import annotations

import json
from typing import Any

MAX_CHARACTERS = 20_000
MAX_DEPTH = 12
MAX_NODES = 2_000
MAX_REFERENCES = 50

# Words of a schema that no model needs, and that may be long or lead elsewhere.
DROPPED = frozenset(
    ("$id", "$schema", "$comment", "$anchor", "$dynamicRef", "$dynamicAnchor", "examples")
)
PROPERTIES = frozenset(("properties", "patternProperties", "dependentSchemas"))


class BadSchema(ValueError):
    """A schema that is not offered to models; the text says why."""


def bounded(schema: Any) -> dict[str, Any]:
    """Return the schema of a tool's arguments, with its references resolved. Raises BadSchema."""
    if not isinstance(schema, dict):
        raise BadSchema("the schema is not an object")
    if schema.get("type", "object") != "object":
        raise BadSchema("the schema does not describe an object")
    found = _Resolver(schema).resolve(schema, 0, ())
    assert isinstance(found, dict)
    found.setdefault("type", "object")
    found.setdefault("properties", {})
    for name in ("$defs", "definitions"):
        found.pop(name, None)
    # Resolving can multiply what was small.
    if len(json.dumps(found)) > MAX_CHARACTERS:
        raise BadSchema(f"the schema has more than {MAX_CHARACTERS} characters")
    return found


class _Resolver:
    """Copies a schema with its references in place, within limits for the whole of it."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._nodes = 0
        self._references = 0

    def resolve(self, value: Any, depth: int, within: tuple[str, ...]) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise BadSchema(f"the schema has more than {MAX_NODES} parts")
        if depth > MAX_DEPTH:
            raise BadSchema(f"the schema is nested more than {MAX_DEPTH} deep")
        if isinstance(value, list):
            return [self.resolve(one, depth + 1, within) for one in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref")
        if isinstance(reference, str):
            rest = {name: one for name, one in value.items() if name != "$ref"}
            target = self._target(reference, within)
            found = self.resolve(target, depth, (*within, reference))
            others = self.resolve(rest, depth, within)
            return {**found, **others} if isinstance(found, dict) else others
        found = {}
        for name, one in value.items():
            if name in DROPPED or (depth == 0 and name in ("$defs", "definitions")):
                continue
            if name in PROPERTIES and isinstance(one, dict):
                # Its names are the tool's own, such as "examples".
                found[name] = {
                    key: self.resolve(each, depth + 2, within) for key, each in one.items()
                }
            else:
                found[name] = self.resolve(one, depth + 1, within)
        return found

    def _target(self, reference: str, within: tuple[str, ...]) -> Any:
        self._references += 1
        if reference in within or reference == "#":
            raise BadSchema("the schema refers to itself")
        if self._references > MAX_REFERENCES:
            raise BadSchema(f"the schema has more than {MAX_REFERENCES} references")
        if not reference.startswith("#/"):
            raise BadSchema("the schema refers to another document")
        found: Any = self._root
        for name in reference[2:].split("/"):
            key = name.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                raise BadSchema("the schema refers to a part that it does not have")
            found = found[key]
        return found
