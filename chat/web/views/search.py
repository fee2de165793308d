"""The search over a user's conversations: a page, and its results alone while the user types."""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from chat.conversations.search import search
from chat.web.pages import page_context
from chatproject.lib.http import Request


@require_safe
@never_cache
def search_page(request: Request) -> HttpResponse:
    """Show the results of ?q=."""
    query = request.GET.get("q", "")
    context = page_context(request) | {"page": "search", "query": query}
    return render(request, "chat/search.html", context | {"found": search(request.user, query)})


@require_safe
@never_cache
def results(request: Request) -> HttpResponse:
    """Return the results of ?q= as a part of a page."""
    query = request.GET.get("q", "")
    context = {"query": query, "found": search(request.user, query)}
    return render(request, "chat/_search_results.html", context)
