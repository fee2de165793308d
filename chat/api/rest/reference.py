"""The OpenAPI document of the REST API, and a page that shows it without scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from ninja import NinjaAPI
from ninja.openapi.schema import get_schema

PREFIX = "/api/v1/"
TITLES = {
    "conversations": "Conversations and messages",
    "runs": "Runs",
    "documents": "Documents",
    "insights": "Insights into documents",
    "search": "Search",
    "account": "Credits",
    "webhooks": "Webhooks",
}


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter, or a field of a body or an answer; `link` is the name of the schema of its value."""

    name: str
    type: str
    link: str
    description: str
    is_required: bool
    place: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation as the page shows it."""

    id: str
    method: str
    path: str
    summary: str
    description: list[str]
    parameters: list[Field]
    body: str  # the name of its schema, or empty
    answers: list[tuple[str, str, str]]  # status, meaning, name of the schema


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema as the page shows it."""

    name: str
    description: str
    fields: list[Field]


@cache
def document(api: NinjaAPI) -> dict[str, Any]:
    """Return the OpenAPI document."""
    return dict(get_schema(api, PREFIX.strip("/") + "/"))


def page(request: HttpRequest, api: NinjaAPI) -> HttpResponse:
    """Show the document."""
    found = document(api)
    groups: dict[str, list[Operation]] = {}
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            title = TITLES[operation["tags"][-1]]
            groups.setdefault(title, []).append(_operation(path, method, operation))
    context = {
        "groups": list(groups.items()),
        "schemas": [
            _schema(name, one) for name, one in sorted(found["components"]["schemas"].items())
        ],
    }
    return render(request, "chat/api_reference.html", context)


def _operation(path: str, method: str, found: dict[str, Any]) -> Operation:
    parameters = [
        Field(
            name=one["name"],
            type=_type(one["schema"]),
            link="",
            description=_prose(one.get("description", "")),
            is_required=one["required"],
            place=one["in"],
        )
        for one in found["parameters"]
    ]
    body = ""
    if "requestBody" in found:
        sent = found["requestBody"]["content"]
        if "application/json" in sent:
            body = _link(sent["application/json"]["schema"])
        else:  # a form, whose fields no other operation has
            parameters += _form(sent["multipart/form-data"]["schema"])
    answers = [
        (str(status), one["description"], _link(_content(one)))
        for status, one in sorted(found["responses"].items(), key=lambda item: str(item[0]))
    ]
    return Operation(
        id=found["operationId"],
        method=method.upper(),
        path=path,
        summary=found["summary"],
        description=[_prose(part) for part in found.get("description", "").split("\n\n")],
        parameters=parameters,
        body=body,
        answers=answers,
    )


def _form(found: dict[str, Any]) -> list[Field]:
    return [
        Field(
            name=name,
            type="file" if one.get("format") == "binary" else _type(one),
            link="",
            description=_prose(one.get("description", "")),
            is_required=name in found.get("required", ()),
            place="form",
        )
        for name, one in found["properties"].items()
    ]


def _prose(text: str) -> SafeString:
    """Return a description as HTML; of Markdown it has code spans alone."""
    return mark_safe(re.sub("`([^`]+)`", r"<code>\1</code>", escape(text)))  # noqa: S308 # escaped


def _content(answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(answer.get("content", {"": {}}).values())).get("schema", {})
    return found


def _schema(name: str, found: dict[str, Any]) -> Schema:
    required = set(found.get("required", ()))
    fields = [
        Field(
            name=field,
            type=_type(one),
            link=_link(one),
            description=_prose(one.get("description", "")),
            is_required=field in required,
        )
        for field, one in found.get("properties", {}).items()
    ]
    return Schema(name, _prose(found.get("description", "")), fields)


def _type(found: dict[str, Any]) -> str:
    """Return the type of a value in words: `string (uuid) or null`."""
    if "anyOf" in found:
        return " or ".join(_type(one) for one in found["anyOf"])
    if "allOf" in found:
        return " and ".join(_type(one) for one in found["allOf"])
    if "enum" in found:
        return " | ".join(f'"{one}"' for one in found["enum"])
    if "$ref" in found:
        return str(found["$ref"]).rpartition("/")[2]
    if found.get("type") == "array":
        return f"list of {_type(found['items'])}"
    kind = str(found.get("type", "any"))
    bounds = ", ".join(_bounds(found))
    return f"{kind} ({bounds})" if bounds else kind


def _bounds(found: dict[str, Any]) -> Iterator[str]:
    if "format" in found:
        yield found["format"]
    low, high = found.get("minimum"), found.get("maximum")
    if low is not None or high is not None:
        yield f"{low} to {high}"
    if "maxLength" in found:
        yield f"at most {found['maxLength']} characters"


def _link(found: dict[str, Any]) -> str:
    """Return the name of the schema that a value refers to, or an empty text."""
    if "$ref" in found:
        return str(found["$ref"]).rpartition("/")[2]
    if found.get("type") == "array":
        return _link(found["items"])
    return next((name for one in found.get("anyOf", ()) if (name := _link(one))), "")
