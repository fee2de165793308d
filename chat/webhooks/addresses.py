"""The addresses that webhooks may have. Names are checked once more when they are resolved (chat.guarded)."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

from django.conf import settings
from django.utils.translation import gettext as _

from chat.guarded.addresses import is_permitted
from chatproject.lib.hosts import has_valid_host

MAX_CHARACTERS = 1_000


class Refused(ValueError):
    """An address that a webhook may not have; the text is for its user."""


def check(url: str) -> SplitResult:
    """Return the parts of an address to which a message may be sent. Raises Refused."""
    try:
        parts = urlsplit(url)
        _port = parts.port
    except ValueError:
        raise Refused(_("Enter a whole address, such as https://example.org/hook.")) from None
    is_plain = url.isascii() and url.isprintable() and not {*' \\"<>'} & {*url}
    if not is_plain or len(url) > MAX_CHARACTERS or not has_valid_host(parts) or _port == 0:
        raise Refused(_("Enter a whole address, such as https://example.org/hook."))
    if "@" in parts.netloc:
        raise Refused(_("Leave out the user name and password: messages are signed instead."))
    # Without TLS only in the networks that the operator permits.
    is_private_permitted = bool(settings.WEBHOOK_NETWORKS)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_private_permitted):
        raise Refused(_("The address must begin with https://."))
    host = (parts.hostname or "").removesuffix(".")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if "." not in host and not is_private_permitted:
            raise Refused(_("Enter the address of a server that is on the internet.")) from None
    else:
        if not is_permitted(host, settings.WEBHOOK_NETWORKS, public=False):
            raise Refused(_("Enter a host name in place of an IP address."))
    return parts


def host_of(parts: SplitResult) -> str:
    """Return the host of an address, by which its deliveries are counted."""
    return (parts.hostname or "").removesuffix(".").lower()
