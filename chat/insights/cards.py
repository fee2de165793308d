"""The data of an insight as a card: its schema says what is a text, a list, a bar or a quote.

Data is kept as it was validated, so cards that were sold are shown by their own schema for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from chat.insights import schemas
from chat.insights.models import Insight

REASONS = {
    "provider_timeout": gettext_lazy("The model did not answer in time."),
    "provider_error": gettext_lazy("The model could not answer."),
    "empty_reply": gettext_lazy("The model returned nothing."),
    "bad_answer": gettext_lazy("The model's answer was not usable, also when it was asked again."),
    "unavailable": gettext_lazy("The work was interrupted on our side."),
    "model_unavailable": gettext_lazy("The model is no longer available."),
    "stopped": gettext_lazy("The document was deleted."),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a card. `kind` is "text", "tag", "bar", "list" (of texts), "parts" or "quote"."""

    kind: str
    title: str = ""
    text: str = ""
    share: int = 0  # percent of a bar
    items: list[Any] = field(default_factory=list)
    line: int | None = None
    sent_at: datetime | None = None


def reason(insight: Insight) -> str:
    """Return why an insight failed, in words."""
    return str(REASONS.get(insight.error, REASONS["unavailable"]))


def parts(schema: dict[str, Any], data: dict[str, Any]) -> list[Part]:
    """Return the parts of a card, in the order of `required`; absent and empty properties have none."""
    found = []
    for name, one in schemas.properties_of(schema):
        if name == "line" or (name == "quote" and "line" in schema["properties"]):
            continue
        if name in data and data[name] not in ("", [], {}):
            title = _(one["title"]) if one.get("title") else name.replace("_", " ").capitalize()
            found.append(_part(one, data[name], title))
    if "quote" in data and "line" in data:
        found.append(_quote(data))
    return found


def _part(schema: dict[str, Any], value: Any, title: str) -> Part:
    match schema["type"]:
        case "object":
            return Part("parts", title, items=[parts(schema, value)])
        case "array":
            items = schema["items"]
            if items["type"] == "object":
                return Part("parts", title, items=[parts(items, one) for one in value])
            return Part("list", title, items=[_text(items, one) for one in value])
        case "number" | "integer" if "minimum" in schema and "maximum" in schema:
            span = schema["maximum"] - schema["minimum"]
            share = round(100 * (value - schema["minimum"]) / span) if span else 100
            return Part("bar", title, str(value), share=max(0, min(100, share)))
        case "string" if "enum" in schema:
            return Part("tag", title, _text(schema, value))
        case _:
            return Part("text", title, _text(schema, value))


def _text(schema: dict[str, Any], value: Any) -> str:
    if isinstance(value, bool):
        return _("Yes") if value else _("No")
    return _(value) if "enum" in schema and value else str(value)


def _quote(data: dict[str, Any]) -> Part:
    sent_at = None
    if data.get("sent_at"):
        try:
            sent_at = datetime.fromisoformat(data["sent_at"])
        except ValueError:
            sent_at = None
    # An example has no document, so nobody sent it.
    line = data["line"] if "sender" in data else None
    return Part("quote", data.get("sender", ""), data["quote"], line=line, sent_at=sent_at)
