"""One request of a webhook: within a time limit, without redirects, with a bounded answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
from django.conf import settings
from django.utils.translation import gettext_noop as _

from chat.guarded.resolver import GuardedResolver
from chat.webhooks import addresses

SECONDS = 10.0  # of one attempt, with the lookup of the name
ANSWER_BYTES = 1_024  # of the answer's body that are read, for the log
AGENT = "Parley-Webhooks"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to an attempt. `status` is None without one; then `error` is the reason, for the log."""

    status: int | None
    body: str = ""
    error: str = ""
    retry_after: str = ""

    @property
    def is_accepted(self) -> bool:
        """Whether the receiver has the message."""
        return self.status is not None and 200 <= self.status < 300


async def post(url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    """Send a message, and return its answer; a failure is an answer without a status."""
    try:
        addresses.check(url)
    except addresses.Refused as error:
        return Answer(None, error=str(error))
    resolver = GuardedResolver(
        networks=settings.WEBHOOK_NETWORKS, public=urlsplit(url).scheme == "https"
    )
    connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, limit=1)
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    sent = {
        **headers,
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": AGENT,
    }
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector, timeout=timeout, auto_decompress=False
            ) as session,
            session.post(url, data=body, headers=sent, allow_redirects=False) as response,
        ):
            try:
                answer = await _beginning(response)
            except (aiohttp.ClientError, OSError, TimeoutError):
                answer = b""  # the status has decided
            return Answer(
                response.status,
                answer.decode(errors="replace").replace("\x00", "\N{REPLACEMENT CHARACTER}"),
                retry_after=response.headers.get("Retry-After", ""),
            )
    except TimeoutError:
        return Answer(None, error=_("The server did not answer within ten seconds."))
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Answer(None, error=_reason(error))


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    found = b""
    while len(found) < ANSWER_BYTES and (part := await response.content.read(ANSWER_BYTES)):
        found += part
    return found[:ANSWER_BYTES]


def _reason(error: Exception) -> str:
    """Return the reason of a failure in the words of the log.

    The addresses that a name has in this network are not named.
    """
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return _("The connection is not secure: the certificate or TLS version was not accepted.")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return _("The host was not found, or has an address that may not be contacted.")
    if isinstance(error, aiohttp.ClientConnectorError):
        return _("The server refused the connection, or could not be reached.")
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
        return _("The server closed the connection without an answer.")
    return _("The server sent no valid answer (HTTP).")
