"""Refusal of input that no view can use: characters that Postgres cannot store, foreign charsets.

Postgres refuses NUL in every text, and UTF-8 has no lone surrogates. Either would be an exception deep
inside a query, wherever a value ends up in one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db import DataError, ProgrammingError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.template import loader
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from chatproject.lib import log_context

logger = logging.getLogger(__name__)

ODD = re.compile("[\x00\ud800-\udfff]")
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")

# The admin adds a condition on all searched fields for each word of a search; Postgres 15 plans the query
# of 3,000 words for minutes.
SEARCH_MAX_WORDS = 20

UNSTORABLE = gettext_lazy(
    "%(name)s contains a character that cannot be stored. Remove it and try again."
)
UNUSABLE = gettext_lazy(
    "A value of the request cannot be used. Nothing was changed. Check it and try again."
)


class OddInputMiddleware:
    """Answers 400 with the reason. Webhooks and other views without CSRF check their bodies themselves."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        # Django would decode queries and forms by it: unicode_escape makes surrogates of plain text.
        charset = (request.content_params or {}).get("charset", "utf-8")
        if charset.lower().replace("_", "-") not in ("utf-8", "utf8"):
            return refuse(request, "odd_charset", _("Send the request in UTF-8."))
        if ODD.search(request.path_info):
            return refuse(
                request,
                "odd_character",
                UNSTORABLE % {"name": _("The address")},
            )
        if name := odd_name(request.GET.lists()):
            return refuse(request, "odd_character", UNSTORABLE % {"name": f"“{name}”"})
        cookies = [name for name, value in request.COOKIES.items() if ODD.search(f"{name}{value}")]
        if cookies:
            # Kept, they would close the site to this browser.
            response = refuse(
                request,
                "odd_character",
                UNSTORABLE % {"name": _("A cookie")},
            )
            for cookie in cookies:
                if not ODD.search(cookie):
                    response.delete_cookie(cookie)
            return response
        return self._get_response(request)

    def process_view(
        self,
        request: HttpRequest,
        view_func: Callable[..., HttpResponseBase],
        view_args: tuple[Any, ...],
        view_kwargs: Mapping[str, Any],
    ) -> HttpResponse | None:
        view = view_of(request)
        search = request.GET.get("term" if view == "admin:autocomplete" else "q", "")
        if view.startswith("admin:") and len(search.split()) > SEARCH_MAX_WORDS:
            return refuse(
                request,
                "odd_value",
                (
                    _("Search for at most %(search_max_words)s words.")
                    % {"search_max_words": SEARCH_MAX_WORDS}
                ),
            )
        # Of all lookups only this one counts its values on the way into SQL; no page links to it.
        if view.endswith("_changelist") and any(name.endswith("__range") for name in request.GET):
            return refuse(request, "odd_value", str(UNUSABLE))
        if request.content_type not in FORMS or getattr(view_func, "csrf_exempt", False):
            return None
        if name := odd_name(request.POST.lists()) or odd_file(request):
            return refuse(request, "odd_character", UNSTORABLE % {"name": f"“{name}”"})
        return None

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Answer values that only Postgres, or a query of the admin, recognises as wrong.

        The admin passes parameters to queries as they are, so that conversions raise inside them.
        """
        view = view_of(request)
        refused: tuple[type[Exception], ...] = (DataError,)
        if view.endswith("_changelist"):
            refused += (ValueError, OverflowError, ValidationError)
        elif view == "admin:view_on_site":
            refused += (ProgrammingError,)  # a library registers models without a table
        if view.startswith("admin:"):
            refused += (FieldDoesNotExist,)
        if not isinstance(exception, refused):
            return None
        logger.warning("%s refused a value", view, exc_info=exception)
        return refuse(request, "odd_value", str(UNUSABLE))


def view_of(request: HttpRequest) -> str:
    """Return the name of a request's view, or ""."""
    return request.resolver_match.view_name if request.resolver_match else ""


def odd_name(lists: Iterable[tuple[str, Sequence[object]]]) -> str:
    """Return the name of the first parameter with a character that cannot be stored, or ""."""
    for name, values in lists:
        if any(ODD.search(text) for text in (name, *values) if isinstance(text, str)):
            return ODD.sub("\N{REPLACEMENT CHARACTER}", name) or _("A parameter")
    return ""


def odd_file(request: HttpRequest) -> str:
    """Return the field of the first file whose name cannot be stored, or ""."""
    return odd_name((name, [file.name for file in files]) for name, files in request.FILES.lists())


def refuse(request: HttpRequest, code: str, message: str) -> HttpResponse:
    """Return 400: JSON for programs, a page for people."""
    if request.accepts("text/html") and not request.path_info.startswith("/api/"):
        html = loader.render_to_string("400.html", {"message": message})
        return HttpResponse(html, status=400)
    request_id = log_context.ids().get("request_id", "")
    body = {"code": code, "message": message, "request_id": request_id}
    return JsonResponse(body, status=400)
