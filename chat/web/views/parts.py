"""Downloads of what tools added to a reply: the data of a table or a chart as CSV, a chart as PNG."""

from __future__ import annotations

import gzip
import logging

from django.http import HttpResponse
from django.utils.http import content_disposition_header
from django.utils.text import slugify
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from chat import access
from chat.documents.datasets.csv_text import to_csv
from chat.documents.models import TableResult
from chat.errors import ChatError
from chat.models import MessagePart
from chat.tools.charts import pictures
from chat.web.responses import handles_chat_errors
from chatproject.lib.http import Request
from chatproject.lib.sandbox import SandboxError

logger = logging.getLogger(__name__)

BOM = "\ufeff"  # by which Excel recognises UTF-8


@require_safe
@never_cache
@handles_chat_errors
def data(request: Request, part_id: int) -> HttpResponse:
    """Return the data of a table or a chart as CSV: all rows of the query, as long as its result is stored."""
    part = _part(request, part_id, "table", "chart")
    text = ""
    if id := part.data.get("csv"):
        rows = TableResult.objects.filter(pk=id, conversation=part.message.conversation_id)
        if (found := rows.first()) is not None:
            text = gzip.decompress(found.content).decode()
    text = text or to_csv(part.data["columns"], part.data["rows"])
    return _file(part, (BOM + text).encode(), "text/csv; charset=utf-8", "csv")


@require_safe
@never_cache
@handles_chat_errors
def picture(request: Request, part_id: int) -> HttpResponse:
    """Return a chart as PNG, in the colours of light pages, or of dark ones with ?dark."""
    part = _part(request, part_id, "chart")
    try:
        content = pictures.png(part.data["svg"], part.data["title"], dark="dark" in request.GET)
    except SandboxError as error:
        logger.warning("the picture of a chart could not be drawn: %s", error)
        raise ChatError("unavailable") from error
    return _file(part, content, "image/png", "png")


def _part(request: Request, part_id: int, *kinds: str) -> MessagePart:
    """Return a part of a message that the user may read. Raises ChatError `not_found`."""
    found = MessagePart.objects.filter(pk=part_id, kind__in=kinds).first()
    if found is None:
        raise ChatError("not_found")
    found.message = access.message(request.user, found.message_id)
    return found


def _file(part: MessagePart, content: bytes, type: str, ending: str) -> HttpResponse:
    response = HttpResponse(content, content_type=type)
    name = slugify(part.data.get("title", ""), allow_unicode=True)[:60] or part.kind
    response["Content-Disposition"] = content_disposition_header(True, f"{name}.{ending}") or ""
    response["Content-Security-Policy"] = "default-src 'none'; sandbox"
    response["X-Content-Type-Options"] = "nosniff"
    return response
