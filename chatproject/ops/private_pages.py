"""No cache keeps a page: neither a proxy's nor the browser's, for the next person at the computer."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase

# Names of the views whose answers are the same for all and may be cached as they say.
PUBLIC_VIEWS = frozenset({"billing:packages_json", "manifest"})


class PrivatePagesMiddleware:
    """Marks all answers as private, except those of PUBLIC_VIEWS. Static files are served before it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self._get_response(request)
        match = request.resolver_match
        if match is None or match.view_name not in PUBLIC_VIEWS or response.status_code != 200:
            response.headers["Cache-Control"] = "private, no-store"
        return response
