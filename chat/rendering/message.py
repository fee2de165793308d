"""The one template of a message: for pages, events and exports alike."""

from __future__ import annotations

from typing import Any

from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from chat.models import Message

TEMPLATE = "chat/_message.html"


def message_html(message: Message, **context: Any) -> SafeString:
    """Render a message. It needs no request, so that a worker's event carries the same HTML.

    For a reply set `message.run` beforehand, or it costs a query; `message.run.model_snapshot`
    names the model.
    """
    return render_to_string(TEMPLATE, {**context, "message": message})
