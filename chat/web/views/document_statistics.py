"""The page of a chat's statistics, for its owner."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from chat import access
from chat.documents.figures import names, page
from chat.documents.models import Document
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors
from chatproject.lib.http import Request


@require_safe
@never_cache
@handles_chat_errors
def document_statistics(request: Request, document_id: UUID) -> HttpResponse:
    """Show the statistics of a chat, with names, initials or letters."""
    document = access.owned(request.user, Document, document_id)
    mode = request.GET.get("names", "")
    mode = mode if mode in names.MODES else names.MODES[0]
    context = {
        "page": "documents",
        "document": document,
        "figures": page.of_chat(document.statistics, mode=mode) if document.statistics else None,
        "mode": mode,
    }
    return render(request, "chat/document_statistics.html", page_context(request) | context)
