"""The strict content security policy, with its one exception."""

from __future__ import annotations

from csp.constants import SELF, UNSAFE_INLINE
from csp.middleware import CSPMiddleware as StrictMiddleware
from django.http import HttpRequest, HttpResponseBase

# django-rq's admin pages carry inline scripts and styles that are not ours to change.
INLINE_PATHS = ("/admin/django_rq/",)


class CSPMiddleware(StrictMiddleware):
    """Sends CONTENT_SECURITY_POLICY with every page; INLINE_PATHS alone may run inline scripts."""

    def process_response(
        self, request: HttpRequest, response: HttpResponseBase
    ) -> HttpResponseBase:
        if request.path.startswith(INLINE_PATHS):
            response._csp_update = {  # type: ignore[attr-defined] # how django-csp's decorator says it
                "script-src": [SELF, UNSAFE_INLINE],
                "style-src": [SELF, UNSAFE_INLINE],
            }
        return super().process_response(request, response)
