"""The HTTP client for addresses that models, users and other servers name; for workers alone, as aiohttp is large.

Every address on the way is checked: scheme, host, port and list of hosts before a request, the IP addresses of
a name when it is resolved for the connection, and all of it again at each redirect. Time and bytes are bounded,
those of a compressed body after its decompression.
"""

from __future__ import annotations

import asyncio
import ipaddress
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

import aiohttp
from django.utils.translation import gettext_lazy
from yarl import URL

from chat.guarded.addresses import Network, is_permitted
from chat.guarded.hosts import is_listed
from chat.guarded.resolver import GuardedResolver
from chatproject.lib.hosts import has_valid_host

AGENT = "Parley"
MAX_CHARACTERS = 2_000  # of an address
CHUNK = 65_536
REDIRECTS = frozenset((301, 302, 303, 307, 308))
ENCODINGS = frozenset(("gzip", "x-gzip", "deflate"))
ANY_WINDOW = 47  # of zlib: the format, gzip or zlib, is read from the header

SENTENCES = {
    "bad_address": gettext_lazy(
        "This is not a whole address. Write one that begins with https://."
    ),
    "credentials": gettext_lazy("Addresses with a user name or password are not requested."),
    "not_listed": gettext_lazy("The operator of this site does not permit this host."),
    "private": gettext_lazy("The host was not found, or has an address that may not be contacted."),
    "too_many_redirects": gettext_lazy("The server redirects too often."),
    "timeout": gettext_lazy("The server did not answer in time."),
    "unreachable": gettext_lazy("The server could not be reached, or closed the connection."),
    "insecure": gettext_lazy("The certificate of the server is not valid."),
    "bad_answer": gettext_lazy("The server sent no valid answer."),
    "not_text": gettext_lazy("The address has no text, but a file of another type."),
    "too_large": gettext_lazy("The answer of the server is too large."),
}


class FetchError(Exception):
    """A request that was refused or failed; `code` is one of SENTENCES, and the text is for people and models."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(str(SENTENCES[code]))


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits of a request.

    Only hosts of the list `hosts` (chat.guarded.hosts) are contacted, with public addresses or those of the
    `networks`. Those `exempt`, with or without their port, may have any address. Without `types`, prefixes of
    media types, any are accepted. More than `max_bytes` of a body are cut off.
    """

    hosts: Collection[str]
    networks: Collection[Network] = ()
    exempt: Collection[str] = ()
    types: tuple[str, ...] = ()
    seconds: float = 20.0
    max_bytes: int = 2_000_000
    redirects: int = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request. `url` is the last address of its way; `type` and `charset` are the server's."""

    url: str
    status: int
    type: str
    charset: str
    body: bytes
    is_cut: bool
    headers: Mapping[str, str] = field(default_factory=dict)


async def fetch(
    url: str,
    policy: Policy,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """Request an address, following redirects. Raises FetchError.

    The headers of the caller are not sent to another origin, and a request with a body is not redirected.
    """
    try:
        async with asyncio.timeout(policy.seconds):
            return await _fetch(url, policy, method, dict(headers or {}), body)
    except TimeoutError:
        raise FetchError("timeout") from None
    except aiohttp.ClientConnectorCertificateError as error:
        raise FetchError("insecure") from error
    except aiohttp.ClientConnectorSSLError as error:
        raise FetchError("insecure") from error
    except aiohttp.ClientConnectorDNSError as error:
        raise FetchError("private") from error
    except (aiohttp.ClientConnectionError, OSError) as error:
        raise FetchError("unreachable") from error
    except (aiohttp.ClientError, ValueError, zlib.error) as error:
        raise FetchError("bad_answer") from error


async def _fetch(
    url: str, policy: Policy, method: str, headers: dict[str, str], body: bytes | None
) -> Answer:
    async with open_session(policy) as session:
        origin = None
        for _turn in range(policy.redirects + 1):
            target = check(url, policy)
            if origin not in (None, target.origin()):
                headers = {}
            origin = target.origin()
            sent = {"User-Agent": AGENT, "Accept-Encoding": "identity", **headers}
            async with session.request(
                method, target, data=body, headers=sent, allow_redirects=False
            ) as response:
                location = response.headers.get("Location")
                if response.status not in REDIRECTS or not location:
                    return await _answer(response, policy)
                if body is not None:
                    raise FetchError("bad_answer")
                url = urljoin(str(target), location)
    raise FetchError("too_many_redirects")


def open_session(policy: Policy) -> aiohttp.ClientSession:
    """Return a session whose connections go to permitted IP addresses; its caller checks the addresses."""
    resolver = GuardedResolver(hosts=policy.exempt, networks=policy.networks)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=policy.seconds),
        auto_decompress=False,
        trust_env=False,
    )


def check(url: str, policy: Policy) -> URL:
    """Return an address that may be requested, in the form that is sent. Raises FetchError."""
    if len(url) > MAX_CHARACTERS or not url.isprintable():
        raise FetchError("bad_address")
    try:
        found = URL(url.strip()).with_fragment(None)
        parts = urlsplit(str(found))
        port = found.port
    except ValueError:
        raise FetchError("bad_address") from None
    if found.scheme not in ("http", "https") or not port or not has_valid_host(parts):
        raise FetchError("bad_address")
    if "@" in parts.netloc:
        raise FetchError("credentials")
    host = (parts.hostname or "").removesuffix(".")
    if not is_listed(host, port, policy.hosts):
        raise FetchError("not_listed")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return found  # a name is checked when it is resolved for the connection
    is_exempt = host in policy.exempt or f"{host}:{port}" in policy.exempt
    if not is_exempt and not is_permitted(host, policy.networks):
        raise FetchError("private")
    return found


async def _answer(response: aiohttp.ClientResponse, policy: Policy) -> Answer:
    media_type = response.content_type if "Content-Type" in response.headers else ""
    if policy.types and media_type and not media_type.startswith(policy.types):
        raise FetchError("not_text")
    body, is_cut = await read(response, policy.max_bytes)
    return Answer(
        str(response.url),
        response.status,
        media_type,
        response.charset or "",
        body,
        is_cut,
        {name.lower(): value for name, value in response.headers.items()},
    )


async def read(response: aiohttp.ClientResponse, max_bytes: int) -> tuple[bytes, bool]:
    """Return at most so many bytes of a decompressed body, and whether more were cut off."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ENCODINGS and encoding not in ("", "identity"):
        raise FetchError("bad_answer")
    inflate = zlib.decompressobj(ANY_WINDOW) if encoding in ENCODINGS else None
    found = bytearray()
    while len(found) <= max_bytes:
        part = await response.content.read(CHUNK)
        if not part:
            break
        # Never more than is still wanted: a few bytes can stand for gigabytes.
        found += inflate.decompress(part, max_bytes + 1 - len(found)) if inflate else part
    return bytes(found[:max_bytes]), len(found) > max_bytes
