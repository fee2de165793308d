"""Previews of a reply's HTML and SVG, and its images: documents for a sandboxed frame, without scripts.

The page's own policy stays as strict as it is: it allows no image of another site, and no style within a text.
A frame gets a policy of its own by this address. It is an opaque origin, also when it is opened elsewhere,
runs nothing, and requests nothing; a document for one image may request it from its host alone.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from csp.constants import NONE, SELF
from django.http import HttpResponse, HttpResponseBadRequest
from django.utils.html import format_html
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from chatproject.lib.http import Request

MAX_CHARACTERS = 200_000
MAX_ADDRESS = 2_000

POLICY: dict[str, list[str] | bool] = {
    "default-src": [NONE],
    "style-src": ["'unsafe-inline'"],
    "img-src": ["data:"],
    "font-src": ["data:"],
    "form-action": [NONE],
    "base-uri": [NONE],
    "frame-ancestors": [SELF],
    "sandbox": True,
}

# Elements that let browsers connect to a host whatever the policy says (preconnect, prefetch of names), or
# go to another address; frames, as browsers connect before they apply the policy, and `srcdoc` would contain
# the others. A start tag begins with these characters alone, so that none of them is left.
CONNECTING = re.compile(
    r"<(?=(?:link|meta|base|i?frame|frameset|fencedframe|portal|object|embed|applet)\b)",
    re.IGNORECASE,
)

HOST = re.compile(r"[A-Za-z0-9.-]{1,255}(?::[0-9]{1,5})?")

FRAME = (
    '<!doctype html><meta charset="utf-8"><style>:root{{color-scheme:light;background:#fff}}'
    "body{{margin:12px;font:16px system-ui}}svg,img{{max-width:100%;height:auto}}</style>{}"
)


@require_POST
@never_cache
def preview(request: Request) -> HttpResponse:
    """Return `code` as a document, or a document with the image at the address `image`."""
    image = request.POST.get("image", "")
    if image:
        return image_document(image)
    code = request.POST.get("code", "")
    if len(code) > MAX_CHARACTERS:
        return HttpResponseBadRequest(_("This code is too long for a preview."))
    shown = CONNECTING.sub("&lt;", code)
    return document(format_html(FRAME, mark_safe(shown)), POLICY)  # noqa: S308 # isolated by the policy


def image_document(address: str) -> HttpResponse:
    """Return a document that requests one image, from its host alone."""
    try:
        parts = urlsplit(address)
        host = parts.netloc
    except ValueError:
        parts, host = None, ""
    # The host goes into the policy: nothing else of it may get there.
    if parts is None or parts.scheme != "https" or not HOST.fullmatch(host):
        return HttpResponseBadRequest(_("This address is no image of another site."))
    if len(address) > MAX_ADDRESS:
        return HttpResponseBadRequest(_("This address is too long."))
    body = format_html('<img src="{}" alt="" referrerpolicy="no-referrer">', address)
    return document(format_html(FRAME, body), {**POLICY, "img-src": [f"https://{host}"]})


def document(html: str, policy: dict[str, list[str] | bool]) -> HttpResponse:
    """Return HTML with a policy of its own."""
    response = HttpResponse(html)
    response["X-Frame-Options"] = "SAMEORIGIN"
    response["X-DNS-Prefetch-Control"] = "off"
    response["Referrer-Policy"] = "no-referrer"
    response._csp_config = policy  # type: ignore[attr-defined] # as django-csp's decorator sets it
    return response
