"""The addresses of the REST API below /api/, its OpenAPI document and its reference page.

Each request authenticates itself (auth.py). Each answer is JSON, also for faults: errors.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from ninja import NinjaAPI
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.parser import Parser

from chat.api.rest import (
    account,
    conversations,
    documents,
    insights,
    reference,
    runs,
    webhooks,
)
from chat.api.rest.answers import answer, answer_exception
from chat.api.rest.errors import Problem

app_name = "rest"

BASE = "v1/"

DESCRIPTION = """
Conversations, messages, runs, documents, search, credits and webhooks of a user. Send an API key as `Authorization: Bearer KEY`; keys are
made in the settings. Amounts of credits are exact decimal numbers in texts. Errors are `{code, message, request_id}`.
"""


class StrictParser(Parser):
    """Reads bodies in JSON. Raises Problem for all others."""

    def parse_body(self, request: HttpRequest) -> Any:
        try:
            return json.loads(request.body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise Problem("invalid_json") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


api = NinjaAPI(
    title="Parley",
    version="1",
    description=DESCRIPTION.strip(),
    openapi_url=None,
    docs_url=None,
    urls_namespace="rest",
    parser=StrictParser(),
)


def with_known_parameters(operate: Callable[..., Any]) -> Callable[..., Any]:
    """Let an operation refuse a query parameter that it does not declare: a misspelt one would have no effect."""
    models = operate._ninja_operation.models  # type: ignore[attr-defined]
    known = {
        name
        for model in models
        if model.__ninja_param_source__ == "query"
        for name in model.__ninja_flatten_map__
    }

    @wraps(operate)
    def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        if unknown := sorted(set(request.GET) - known):
            message = f"The parameters are: {', '.join(sorted(known)) or 'none'}."
            fields = [{"field": name[:100], "message": message} for name in unknown[:10]]
            raise Problem("unknown_parameter", fields=fields)
        return operate(request, *args, **kwargs)

    return checked


api.add_decorator(with_known_parameters)  # after authentication and validation
api.add_router("", conversations.router)
api.add_router("", runs.router)
api.add_router("", documents.router)
api.add_router("", insights.router)
api.add_router("", account.router)
api.add_router("", webhooks.router)


# Ninja looks a handler up by the class of the exception and its bases, the nearest first.
for kind in (Exception, HttpError, AuthenticationError, ValidationError):
    api.add_exception_handler(kind, answer_exception)


def answered(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Let Ninja's views check the CSRF token, and answer 405 in JSON.

    HEAD is answered as GET is: the server sends no body for it.
    """

    @csrf_exempt
    @wraps(view)
    def respond(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        method = request.method
        request.method = "GET" if method == "HEAD" else method
        response = view(request, *args, **kwargs)
        request.method = method
        if response.status_code == 405:
            allowed = response["Allow"]
            response = answer(Problem("method_not_allowed"))
            response["Allow"] = allowed
        return response

    return respond


def unknown(request: HttpRequest) -> HttpResponse:
    """Answer all other addresses below /api/."""
    return answer(Problem("unknown_url"))


@require_safe
def openapi(request: HttpRequest) -> HttpResponse:
    """Return the OpenAPI document."""
    return JsonResponse(reference.document(api))


@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """Show the OpenAPI document as a page."""
    return reference.page(request, api)


operations: list[URLPattern] = [
    path(f"{BASE}{one.pattern}", answered(one.callback), name=one.name)
    for one in api.urls[0]
    if isinstance(one, URLPattern) and one.name != "api-root"
]

urlpatterns = [
    path(f"{BASE}openapi.json", openapi, name="openapi"),
    path(f"{BASE}docs/", docs, name="docs"),
    *operations,
    re_path("", csrf_exempt(unknown), name="unknown"),
]
