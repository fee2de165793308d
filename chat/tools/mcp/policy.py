"""The limits of requests to MCP servers, and to the authorization servers that they name."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings

from chat.guarded.client import Policy

MAX_BYTES = 4_000_000  # of one body


def policy_for(url: str, *, seconds: float) -> Policy:
    """Return the limits of requests on behalf of a server that staff configured, at the address `url`.

    That address is exempt from the check of IP addresses; one that the server names is not.
    """
    return Policy(
        hosts=("*:*",),
        networks=settings.TOOL_NETWORKS,
        exempt=(authority(url),),
        seconds=seconds,
        max_bytes=MAX_BYTES,
    )


def authority(url: str) -> str:
    """Return host and port of an address."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = parts.hostname or ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
