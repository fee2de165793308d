"""The syntax of hosts in addresses that staff and operators enter."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult

# Of a DNS name. Names of containers have underscores.
LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def has_valid_host(parts: SplitResult) -> bool:
    """Return whether the host of an address is an IP address or can be a DNS name.

    Clients raise various errors for others, such as names with an empty label, or numbers that are no
    address in the usual form.
    """
    host = parts.hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        labels = host.removesuffix(".").split(".")
        is_name = len(host) <= 253 and all(LABEL.fullmatch(label) for label in labels)
        return is_name and not labels[-1].isdecimal() and "[" not in parts.netloc
    return True
