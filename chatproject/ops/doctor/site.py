"""The way from a visitor to this site: name, certificate, proxies and their headers, sockets."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from django.conf import settings
from django.http.request import split_domain_port, validate_host
from django.templatetags.static import static

from chatproject.ops import health
from chatproject.ops.doctor.finding import Finding, ok, one_line, problem, warning

PART = "site"
SECONDS = 3.0  # for each answer
MAX_REDIRECTS = 5
EXPIRES_SOON = 14  # days

# An address that no visitor has (RFC 5737). Where the site takes it for the client's, any client can
# choose its address, and with it escape the limits.
FORGED = "198.51.100.77"

TLS_ENDS_AT_PROXY = (
    "Set TRUST_PROXY=1 (or the number of proxies): the proxy ends TLS, so the site takes each request"
    " for http."
)
NO_PROTO = "Have the proxy send X-Forwarded-Proto: https (nginx: proxy_set_header X-Forwarded-Proto $scheme;)."
NO_HOST = "Have the proxy pass the visitor's Host (nginx: proxy_set_header Host $host;)."
NO_FOR = (
    "Have the proxy append the client's address to X-Forwarded-For (nginx: proxy_set_header"
    " X-Forwarded-For $proxy_add_x_forwarded_for;)."
)
NO_UPGRADE = (
    "Have the proxy pass the upgrade (nginx: proxy_http_version 1.1; proxy_set_header Upgrade"
    ' $http_upgrade; proxy_set_header Connection "upgrade";).'
)
UNREACHED = "Start the web process, and compare its HOST and PORT with the proxy's target."


@dataclass(slots=True)
class Site:
    """The address under which visitors reach this site, and a client of it."""

    parts: SplitResult
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def connect(self) -> http.client.HTTPConnection:
        host, port = self.parts.hostname or "", self.parts.port
        if self.parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=SECONDS, context=self.context)
        return http.client.HTTPConnection(host, port, timeout=SECONDS)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        connection = self.connect()
        try:
            connection.request("GET", path, headers=dict(headers or {}))
            response = connection.getresponse()
            body = b"" if response.status == 101 else response.read(1_000_000)
            return Answer(response.status, response.headers.get("Location", ""), body)
        finally:
            connection.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, as far as the checks use it."""

    status: int
    location: str
    body: bytes


def check() -> Iterator[Finding]:
    """Yield the findings about the address in SITE_URL; requests are made as a visitor makes them."""
    if not settings.SITE_URL:
        yield warning(
            PART,
            "SITE_URL is not set: proxy and certificate are not checked, and some mails lack links",
            "Set SITE_URL to the address that visitors type, for example https://chat.example.org.",
        )
        return
    site = Site(urlsplit(settings.SITE_URL))
    yield from _settings(site.parts)
    try:
        yield from _certificate(site)
        seen = yield from _seen(site)
        yield from _headers(site.parts, seen)
        yield from _page(site, seen)
        yield from _static(site)
        yield from _socket(site)
    except socket.gaierror:
        yield problem(
            PART,
            f"the name {site.parts.hostname} is not found from this machine",
            "Create its DNS record, or correct SITE_URL.",
        )
    except TimeoutError:
        yield problem(
            PART,
            f"{settings.SITE_URL} does not answer within {SECONDS:g} s",
            "Start the proxy and the web process; open the port in the firewall.",
        )
    except (OSError, http.client.HTTPException) as error:
        yield problem(
            PART,
            f"{settings.SITE_URL}: {type(error).__name__}: {one_line(error)}",
            "Start the proxy and the web process, or correct SITE_URL.",
        )


def _settings(parts: SplitResult) -> Iterator[Finding]:
    if not validate_host(parts.hostname or "", settings.ALLOWED_HOSTS):
        yield problem(
            PART,
            f"ALLOWED_HOSTS lacks {parts.hostname}, the host of SITE_URL",
            f"Add {parts.hostname} to ALLOWED_HOSTS.",
        )
    if parts.scheme == "http" and settings.HTTPS:
        yield problem(
            PART,
            "HTTPS is 1, and SITE_URL begins with http://",
            "Write https:// in SITE_URL; or set HTTPS=0 for a site without TLS.",
        )
    if parts.scheme == "https" and not settings.HTTPS:
        yield warning(
            PART,
            "SITE_URL begins with https://, and HTTPS is 0: cookies are sent without TLS, too",
            "Set HTTPS=1.",
        )


def _certificate(site: Site) -> Iterator[Finding]:
    """Check the certificate, and go on without it, so that further findings are not lost."""
    if site.parts.scheme != "https":
        return
    connection = site.connect()
    try:
        connection.connect()
        connected: Any = connection.sock
        certificate = connected.getpeercert()
    except ssl.SSLCertVerificationError as error:
        site.context.check_hostname = False
        site.context.verify_mode = ssl.CERT_NONE
        yield problem(
            "certificate",
            f"browsers refuse it: {one_line(error.verify_message)}",
            "Have the proxy send a valid certificate for this name with its intermediates.",
        )
        return
    finally:
        connection.close()
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / 86_400
    found = f"valid for {days:.0f} more days"
    if days < EXPIRES_SOON:
        yield warning("certificate", found, "Renew it, and check why it was not renewed by itself.")
    else:
        yield ok("certificate", found)


def _seen(site: Site) -> Generator[Finding, None, dict[str, Any]]:
    """Return how the web process sees a request of a visitor; {} if it does not answer."""
    headers = health.doctor_header() | {"X-Forwarded-For": FORGED}
    answer = site.get("/health/seen", headers)
    if answer.status == 200:
        seen: dict[str, Any] = json.loads(answer.body)
        return seen
    if answer.status in (502, 503, 504):
        yield problem(PART, f"the proxy answers {answer.status}", UNREACHED)
    elif answer.status == 404:
        yield problem(
            PART,
            f"another program answers at {settings.SITE_URL}, or a Parley with another SECRET_KEY",
            "Pass all paths to Parley's web process, and give all processes the same SECRET_KEY.",
        )
    else:
        yield problem(
            PART,
            f"/health/seen is answered with {answer.status}",
            "Have the proxy pass all paths, and all headers of requests.",
        )
    return {}


def _headers(parts: SplitResult, seen: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare how the web process sees a request with how it was sent."""
    if not seen:
        return
    host, _ = split_domain_port(str(seen["host"]))
    if host != parts.hostname:
        yield problem("proxy", f"the site receives the Host “{seen['host']}”", NO_HOST)
    elif not seen["is_allowed"]:
        yield problem(
            "proxy",
            f"the web process refuses the host {host}",
            "Add it to ALLOWED_HOSTS of all processes.",
        )
    if seen["scheme"] != parts.scheme:
        yield problem(
            "proxy",
            f"the site takes requests to {parts.scheme}:// for {seen['scheme']}://, so forms and"
            " sockets are refused",
            _scheme_advice(seen),
        )
    hops = [entry.strip() for entry in str(seen["forwarded_for"]).split(",") if entry.strip()]
    if FORGED in hops:
        hops = hops[hops.index(FORGED) + 1 :]
    if seen["client"] == FORGED:
        advice = (
            f"Set TRUST_PROXY={len(hops)}, the number of proxies that append to X-Forwarded-For."
        )
        yield problem(
            "proxy",
            "any client can choose its address, and escape the limits by it",
            advice if hops or not settings.TRUST_PROXY else f"{NO_FOR} Or set TRUST_PROXY=0.",
        )
    elif len(hops) > settings.TRUST_PROXY:
        yield warning(
            "proxy",
            f"all visitors share the address {seen['client']} of a proxy, and its limits",
            f"Set TRUST_PROXY={len(hops)}, the number of proxies in front.",
        )
    elif settings.TRUST_PROXY and not hops:
        yield warning("proxy", "all visitors seem to have the address of the proxy", NO_FOR)
    else:
        yield ok("proxy", f"the site sees {seen['scheme']}://{seen['host']}, from {seen['client']}")


def _scheme_advice(seen: Mapping[str, Any]) -> str:
    if not settings.TRUST_PROXY:
        return TLS_ENDS_AT_PROXY
    sent = seen.get("forwarded_proto", "")
    return f"{NO_PROTO} It sends “{sent}”." if sent else NO_PROTO


def _page(site: Site, seen: Mapping[str, Any]) -> Iterator[Finding]:
    """Open the start page as a visitor does, up to the form to sign in."""
    url, visited = f"{settings.SITE_URL}/", list[str]()
    while url not in visited and len(visited) <= MAX_REDIRECTS:
        visited.append(url)
        answer = site.get(urlsplit(url).path or "/", {"Accept": "text/html"})
        if answer.status not in (301, 302, 303, 307, 308):
            break
        url = urljoin(url, answer.location)
        target = urlsplit(url)
        if (target.scheme, target.netloc) != (site.parts.scheme, site.parts.netloc):
            yield problem(
                PART,
                f"{visited[-1]} redirects to {target.scheme}://{target.netloc}",
                "Set SITE_URL to the address that visitors end at, or correct the proxy.",
            )
            return
    else:
        yield problem(
            PART, f"an endless redirect: {visited[-1]} leads to {url}", _loop_advice(seen)
        )
        return
    if answer.status == 200:
        yield ok(PART, f"{url} answers")
    elif answer.status in (502, 504):
        yield problem(PART, f"the proxy answers {answer.status}", UNREACHED)
    elif answer.status == 400:
        yield problem(PART, f"{url} is refused with 400", f"Correct ALLOWED_HOSTS. {NO_HOST}")
    else:
        yield problem(
            PART, f"{url} is answered with {answer.status}", "See the log of the web process."
        )


def _loop_advice(seen: Mapping[str, Any]) -> str:
    if not seen or seen["scheme"] != "https":
        return f"{_scheme_advice(seen)} Or set HTTPS=0 for a site without TLS."
    return "Remove the redirect to https or to another name from the proxy: Parley does it."


def _static(site: Site) -> Iterator[Finding]:
    path = static("css/base.css")
    answer = site.get(path)
    if answer.status not in (200, 301):  # a redirect of all paths has its own line
        yield problem(
            "static files",
            f"{path} is answered with {answer.status}",
            "Run manage.py collectstatic --noinput and restart the web processes; or correct the"
            " proxy's rule for /static/, which Parley serves without one.",
        )


def _socket(site: Site) -> Iterator[Finding]:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Origin": settings.SITE_URL,
    }
    answer = site.get("/ws/v1/", headers)
    if answer.status == 101:
        yield ok("socket", "the WebSocket upgrade passes")
    elif answer.status == 403:
        yield problem(
            "socket",
            "sockets are refused: for the site their Origin is another site",
            "Correct Host and X-Forwarded-Proto of the proxy, or see the lines above.",
        )
    else:
        yield problem(
            "socket", f"the WebSocket upgrade is answered with {answer.status}", NO_UPGRADE
        )
