"""The pages of a bad request, of an unexpected exception, and of a form that failed the CSRF check."""

from __future__ import annotations

import logging
import sys

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.middleware import csrf
from django.template import loader
from django.utils.translation import gettext_lazy

from chat.errors import sentence
from chatproject.lib.origins import report_refusal
from chatproject.lib.outages import UNREACHABLE

RETRY_AFTER = {503: 5}  # seconds

logger = logging.getLogger(__name__)

WRONG_HOST = gettext_lazy(
    "The site does not use this address. Check the address, or contact the site administrator, who finds"
    " the setting in the log."
)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Return the page of a request that Django refused, such as one for a host not in ALLOWED_HOSTS."""
    context = {
        "message": WRONG_HOST if isinstance(exception, DisallowedHost) else "",
        "request": request,  # of its appearance; no context processor runs, which could use the database
    }
    return HttpResponse(loader.render_to_string("400.html", context), status=400)


def server_error(request: HttpRequest) -> HttpResponse:
    """Return the page of an exception that no view caught: 503 for an unreachable service, else 500.

    Django calls it while the exception is being handled.
    """
    status = 503 if isinstance(sys.exc_info()[1], UNREACHABLE) else 500
    if request.accepts("text/html"):
        response = HttpResponse(_page(status, request), status=status)
    else:
        code = "unavailable" if status == 503 else "internal"
        response = JsonResponse({"code": code, "message": sentence(code)}, status=status)
    if status == 503:
        response["Retry-After"] = str(RETRY_AFTER[status])
    return response


def _page(status: int, request: HttpRequest) -> str:
    try:
        return loader.render_to_string(
            f"{status}.html", {"request": request, "retry_after": RETRY_AFTER.get(status, 0)}
        )
    except Exception:
        # Before collectstatic no template of the site can be rendered, so neither can its error page.
        logger.exception("the error page cannot be rendered")
        code = "unavailable" if status == 503 else "internal"
        return f"<!doctype html><title>Error {status}</title><p>{sentence(code)}</p><p>Error {status}</p>"


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Return the page of a form whose origin or token Django refused (CSRF_FAILURE_VIEW).

    A wrong origin is the operator's to mend: the log has the setting.
    """
    name = "403_csrf"
    if reason.startswith((ORIGIN_REFUSED, REFERER_REFUSED)):
        name = "403_origin"
        page = request.META.get("HTTP_ORIGIN") or request.META.get("HTTP_REFERER", "")
        report_refusal(request, page)
    return HttpResponse(loader.render_to_string(f"{name}.html", {"request": request}), status=403)


ORIGIN_REFUSED = csrf.REASON_BAD_ORIGIN.partition("%s")[0]
REFERER_REFUSED = csrf.REASON_BAD_REFERER.partition("%s")[0]
