"""/metrics: the figures of the whole site in Prometheus' text format, for one that may read them.

It answers on any host name, without a session and without a redirect to https: Prometheus asks each
web process by its address.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterator
from itertools import chain
from secrets import compare_digest

import redis
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseNotFound
from django.http.response import HttpResponseBase
from django.utils import timezone
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from chatproject.lib import db
from chatproject.lib.http import client_address
from chatproject.lib.metrics import shared
from chatproject.ops import site_metrics

logger = logging.getLogger(__name__)

PATH = "/metrics"

# A request with one of them came through a proxy, whose address is not that of its client.
PROXY_HEADERS = ("HTTP_X_FORWARDED_FOR", "HTTP_X_REAL_IP", "HTTP_FORWARDED", "HTTP_VIA")


class MetricsMiddleware:
    """Answers PATH before all other middleware."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path_info != PATH:
            return self._get_response(request)
        if not is_allowed(request):
            return HttpResponseNotFound("Not Found\n", content_type="text/plain")
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        return HttpResponse(
            generate_latest(SiteCollector()),
            content_type=CONTENT_TYPE_PLAIN_0_0_4,
            headers={"Cache-Control": "no-store"},
        )


def is_allowed(request: HttpRequest) -> bool:
    """Return whether a request has METRICS_TOKEN, or comes from one of METRICS_NETWORKS itself."""
    scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    expected = settings.METRICS_TOKEN.encode()
    if expected and scheme.lower() == "bearer" and compare_digest(token.strip().encode(), expected):
        return True
    is_forwarded = any(header in request.META for header in PROXY_HEADERS)
    if is_forwarded and not settings.TRUST_PROXY:
        return False
    try:
        address = ipaddress.ip_address(client_address(request))
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return any(address in network for network in settings.METRICS_NETWORKS)


class SiteCollector:
    """The metrics of all processes, and of the site as it is now."""

    def collect(self) -> Iterator[Metric]:
        """Yield them; while Postgres or Redis is unreachable those from there are missing."""
        now = timezone.now()
        sources: dict[str, Callable[[], Iterator[Metric]]] = {
            "redis": lambda: chain(shared.collect(), site_metrics.of_redis(now)),
            "database": lambda: site_metrics.of_database(now),
        }
        for name, measure in sources.items():
            try:
                found = [*measure()]
            except (redis.RedisError, *db.UNREACHABLE) as error:
                logger.warning("the metrics of %s are missing: %s", name, error)
                found = []
            is_up = GaugeMetricFamily(f"parley_{name}_up", f"1 if the {name} answers, else 0.")
            is_up.add_metric([], float(bool(found)))
            yield is_up
            yield from found
