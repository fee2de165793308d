"""Requests that a page of another site seems to send: the setting that would accept them."""

from __future__ import annotations

import logging
import re
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest

logger = logging.getLogger(__name__)

MAX_REPORTED = 100  # origins, as clients can make up any number

# At the beginning of an address: scheme, without user and password, host and port.
ORIGIN = re.compile(r"(\w+://)(?:[^/?#\s,]*@)?([^/?#\s,@]*)")

_reported: set[str] = set()


def report_refusal(request: HttpRequest, page: str) -> None:
    """Log once for each origin that a form or socket from it was refused, with the setting to change.

    `page` is an Origin or a Referer, of which the path is left out; it may be anything else.
    """
    found = ORIGIN.match(page)
    origin = f"{found[1]}{found[2]}".lower() if found else "no origin"
    if origin in _reported or len(_reported) >= MAX_REPORTED:
        return
    _reported.add(origin)
    logger.warning(
        "refused a request from a page of %.200r, which arrived for %.200r: %s",
        origin,
        own_origin(request),
        advice(request, origin),
    )


def own_origin(request: HttpRequest) -> str:
    """Return the origin under which a request reached this site, also for a host that is not allowed."""
    try:
        host = request.get_host()
    except DisallowedHost:
        host = request.META.get("HTTP_HOST", "")
    return f"{request.scheme}://{host}"


def public_address(request: HttpRequest, address: str) -> str:
    """Return an address of this site for another person or service: with SITE_URL, if that is set, in place of the request's Host.

    Django checks the host of a request, and accepts any port.
    """
    parts = urlsplit(address)
    if not settings.SITE_URL or (parts.netloc and parts.netloc != request.get_host()):
        return request.build_absolute_uri(address)
    return settings.SITE_URL + parts._replace(scheme="", netloc="").geturl()


def advice(request: HttpRequest, origin: str) -> str:
    """Return what to change if the page belongs to the site."""
    try:
        page, own = urlsplit(origin), urlsplit(own_origin(request))
        is_same_host = page.hostname == own.hostname
    except ValueError:
        return "one of the two is malformed."
    if not page.hostname:
        return "the browser sent none. Sandboxed pages have none, and programs may leave it out."
    if is_same_host and (page.scheme, own.scheme) == ("https", "http"):
        return (
            "behind a proxy that serves https set TRUST_PROXY=1 (or the number of proxies), and let it"
            " set X-Forwarded-Proto."
        )
    if is_same_host and page.scheme != own.scheme:
        return "let the proxy redirect http to https."
    try:
        request.get_host()
    except DisallowedHost:
        return f"add {own.hostname} to ALLOWED_HOSTS, if it is the site's."
    return (
        "if it is the site's own page, let the proxy pass on the Host header with its port (nginx:"
        " proxy_set_header Host $http_host). For a page of another host add it to"
        " CSRF_TRUSTED_ORIGINS."
    )
