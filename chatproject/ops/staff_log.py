"""Changes by staff in the admin, as events of the log."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from chatproject.lib.log_events import log_event

ADMIN = "/admin/"
LISTED = 20  # ids of selected rows


class StaffLogMiddleware:
    """Logs `staff_action` for each form of the admin that was carried out.

    Django answers such a form with a redirect, and one with errors, or one that is still to be
    confirmed, with a page.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self._get_response(request)
        match = request.resolver_match
        if (
            request.method == "POST"
            and match is not None
            and request.path_info.startswith(ADMIN)
            and response.status_code in (302, 303)
            and request.user.is_authenticated
            and request.user.is_staff
        ):
            log_event(
                "staff_action",
                user_id=request.user.pk,
                view=match.view_name,
                action=request.POST.get("action", ""),
                object=match.kwargs.get("object_id", ""),
                objects=",".join(request.POST.getlist("_selected_action")[:LISTED]),
            )
        return response
