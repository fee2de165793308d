"""Chats out and in: a conversation as a file or as a page for printing."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.template.loader import render_to_string
from django.utils import timezone, translation
from django.utils.http import content_disposition_header
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from chat import access
from chat.errors import ChatError
from chat.transfer import documents
from chat.web.responses import handles_chat_errors
from chatproject.lib.db import streamed_response
from chatproject.lib.http import Request

# Of the parameter `format`: the maker of the document, its type and its ending.
FORMATS = {
    "markdown": (documents.markdown, "text/markdown; charset=utf-8", "md"),
    "json": (documents.json, "application/json", "json"),
}


@require_safe
@never_cache
@handles_chat_errors
def export(request: Request, conversation_id: UUID) -> HttpResponseBase:
    """Return a conversation as a file: ?format= is one of FORMATS."""
    found = access.conversation(request.user, conversation_id)
    if request.GET.get("format") not in FORMATS:
        raise ChatError("not_found")
    make, content_type, ending = FORMATS[request.GET["format"]]
    response = _streamed(request, make(found), content_type)
    name = documents.file_name(found.name, timezone.now(), ending)
    response["Content-Disposition"] = content_disposition_header(True, name)
    return response


@require_safe
@never_cache
@handles_chat_errors
def print_page(request: Request, conversation_id: UUID) -> HttpResponseBase:
    """Show the whole shown branch of a conversation on one page, for printing."""
    found = access.conversation(request.user, conversation_id)
    context = {"conversation": found, "now": timezone.now()}
    page = render_to_string("chat/print.html", context, request)
    return _streamed(request, documents.html(found, page), "text/html; charset=utf-8")


def _streamed(
    request: Request, make: Callable[[int], documents.Part], content_type: str
) -> StreamingHttpResponse:
    language = translation.get_language()

    def part(at: int) -> documents.Part:
        with translation.override(language):  # it runs in another thread
            return make(at)

    return StreamingHttpResponse(
        streamed_response.no_part()
        if request.method == "HEAD"
        else streamed_response.in_parts(part, 0),
        content_type=content_type,
    )
