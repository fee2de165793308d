"""The strict content security policy, with its one exception."""

from __future__ import annotations

from csp.constants import SELF, UNSAFE_INLINE
from csp.middleware import CSPMiddleware as StrictMiddleware
from django.http import HttpRequest, HttpResponseBase

# Django-RQ's admin pages contain inline scripts and styles, which a setting cannot turn off.
INLINE_PATHS = ("/admin/django_rq/",)


class CSPMiddleware(StrictMiddleware):
    """Sends CONTENT_SECURITY_POLICY with every page; only INLINE_PATHS may run inline scripts."""

    def process_response(
        self, request: HttpRequest, response: HttpResponseBase
    ) -> HttpResponseBase:
        if request.path.startswith(INLINE_PATHS):
            response._csp_update = {  # type: ignore[attr-defined] # as django-csp's decorator sets it
                "script-src": [SELF, UNSAFE_INLINE],
                "style-src": [SELF, UNSAFE_INLINE],
            }
        return super().process_response(request, response)
