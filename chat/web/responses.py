"""Responses of the views: ChatError as JSON or a page, and runs as JSON.

A program asks for JSON alone (`Accept`); every other client gets a page.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import msgspec
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.template.loader import render_to_string

from chat.errors import ChatError
from chat.models import Run
from chatproject.lib.http import Request

P = ParamSpec("P")
View = Callable[Concatenate[Request, P], HttpResponseBase]

STATUS = {
    "not_signed_in": 401,
    "insufficient_credits": 402,
    "not_allowed": 403,
    "not_found": 404,
    "file_missing": 409,
    "model_unavailable": 409,
    "no_vision": 409,
    "price_changed": 409,
    "run_active": 409,
    "already_decided": 409,
    "file_too_large": 413,
    "storage_full": 413,
    "text_too_long": 413,
    "bad_file": 415,
    "moderated": 422,
    "limit_reached": 429,
    "rate_limited": 429,
    "busy": 503,
    "unavailable": 503,
    "internal": 500,
}


def handles_chat_errors(view: View[P]) -> View[P]:
    """Turn a view's ChatError into JSON for programs, and into an error page for people."""

    @wraps(view)
    def respond(request: Request, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        try:
            return view(request, *args, **kwargs)
        except ChatError as error:
            if wants_json(request):
                return error_json(error)
            if error.code == "not_found":
                raise Http404(error.message) from error
            if error.code == "not_allowed":
                raise PermissionDenied(error.message) from error
            if error.code == "internal":
                raise
            return _error_page(request, error)

    return respond


def _error_page(request: HttpRequest, error: ChatError) -> HttpResponse:
    """Return a page with the sentence of an error that no form of the view shows."""
    status = STATUS.get(error.code, 400)
    context = {"message": error.message, "status": status, "request": request}
    return with_status(HttpResponse(render_to_string("400.html", context)), error)


def wants_json(request: HttpRequest) -> bool:
    """Whether a program sent the request."""
    return request.accepts("application/json") and not request.accepts("text/html")


def error_json(error: ChatError) -> HttpResponse:
    """Return an error as JSON."""
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.credits is not None:
        body["credits"] = msgspec.structs.asdict(error.credits)
    if error.retry_after is not None:
        body["retry_after"] = error.retry_after
    return with_status(JsonResponse(body), error)


def with_status(response: HttpResponse, error: ChatError) -> HttpResponse:
    """Set an error's HTTP status and, where trying again may help, the header Retry-After."""
    response.status_code = STATUS.get(error.code, 400)
    if error.retry_after is not None:
        response["Retry-After"] = str(math.ceil(error.retry_after))
    return response


def raise_unless_page(request: Request, error: ChatError) -> None:
    """Raise an error that the present page cannot show, for `handles_chat_errors`."""
    if wants_json(request) or error.code in {"not_found", "not_allowed"}:
        raise error


def run_json(run: Run) -> dict[str, Any]:
    """Return the state of a run for programs."""
    return {
        "id": run.id,
        "conversation": run.conversation_id,
        "message": run.message_id,
        "status": run.status,
        "attempt": run.attempt,
        "text": run.message.text,
        "error": {"code": run.error_code, "message": run.error_message} if run.error_code else None,
    }
