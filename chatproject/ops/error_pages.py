"""The page of an unexpected exception."""

from __future__ import annotations

import sys

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import loader

from chat.errors import ERRORS
from chatproject.lib.outages import UNREACHABLE


def server_error(request: HttpRequest) -> HttpResponse:
    """Return the page of an exception that no view caught: 503 for an unreachable service, else 500.

    Django calls it while the exception is being handled.
    """
    status = 503 if isinstance(sys.exc_info()[1], UNREACHABLE) else 500
    if request.accepts("text/html"):
        response = HttpResponse(loader.render_to_string(f"{status}.html"), status=status)
    else:
        code = "unavailable" if status == 503 else "internal"
        response = JsonResponse({"code": code, "message": ERRORS[code]}, status=status)
    if status == 503:
        response["Retry-After"] = "5"
    return response
