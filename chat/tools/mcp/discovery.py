"""Discovery of a server by a worker: its authorization server, this site as a client there, and its tools.

The addresses that a server names are those of strangers: each request goes through the guarded client.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from mcp.client.auth.utils import (
    build_oauth_authorization_server_metadata_discovery_urls,
    build_protected_resource_metadata_discovery_urls,
    get_client_metadata_scopes,
    issuers_match,
)
from mcp.shared.auth import OAuthMetadata, ProtectedResourceMetadata
from mcp.shared.auth_utils import check_resource_allowed, resource_url_from_server_url
from mcp_types import LATEST_PROTOCOL_VERSION, Tool
from pydantic import ValidationError

from chat.guarded.client import Answer, FetchError, fetch
from chat.tools.mcp import authorization, client, schemas, tokens
from chat.tools.mcp.models import McpConnection, McpServer, McpTool, stored
from chat.tools.mcp.policy import authority, policy_for
from chatproject.lib import db, encryption
from chatproject.lib.log_events import log_event

SECONDS = 20.0  # of one request
GRANTS = ["authorization_code", "refresh_token"]
METHODS = ("client_secret_basic", "client_secret_post", "none")  # the best first

NO_SITE_URL = _("Set SITE_URL: users are sent back to it.")
NO_METADATA = _("The server names no authorization server.")
NO_PKCE = _("The authorization server does not support PKCE (S256).")
NO_CLIENT = _("The authorization server does not register clients. Enter a client ID below.")
WRONG = _("The metadata of the authorization server contradict each other.")
NOT_CONNECTED = _("Connect an account of yours in the settings, so that its tools can be listed.")
UNDECRYPTABLE = _("Its secrets cannot be decrypted: ENCRYPTION_KEYS or SECRET_KEY has changed.")


class Undiscovered(Exception):
    """A server that cannot be used; the text says why."""


async def refresh(server_id: int) -> None:
    """Discover a server's authorization, list its tools, and store both, or the reason why not."""
    server = await db.run(_server, server_id)
    if server is None:
        return
    problem = ""
    try:
        if server.needs_connection:
            await _discover(server)
        await _list(server)
    except client.McpError as error:
        problem = f"{_filled(error.sentence, server.name)} {error.detail}".strip()
    except FetchError as error:
        problem = str(error)
    except Undiscovered as error:
        problem = str(error)
    except tokens.NotConnected:
        problem = str(NOT_CONNECTED)
    except encryption.Undecryptable:
        problem = str(UNDECRYPTABLE)
    await db.run(_note, server_id, problem[:500])
    log_event("mcp_server_listed", server=server.slug, problem=problem[:200])


def _server(server_id: int) -> McpServer | None:
    return McpServer.objects.filter(pk=server_id).first()


def _note(server_id: int, problem: str) -> None:
    """Store the outcome of a refresh."""
    McpServer.objects.filter(pk=server_id).update(problem=problem, checked_at=timezone.now())


def _filled(sentence: Any, name: str) -> str:
    return str(sentence) % {"server": name}


async def _discover(server: McpServer) -> None:
    """Store the endpoints of a server's authorization server, and register there once."""
    redirect_uri = authorization.redirect_uri()
    if not redirect_uri:
        raise Undiscovered(str(NO_SITE_URL))
    challenge = await _challenge(server)
    resource = await _resource(server, _field(challenge, "resource_metadata"))
    issuer = str(resource.authorization_servers[0]) if resource else None
    metadata = await _metadata(server, issuer)
    methods = metadata.code_challenge_methods_supported or []
    if "S256" not in methods:
        raise Undiscovered(str(NO_PKCE))
    endpoints = {
        "issuer": str(metadata.issuer),
        "authorization_endpoint": _address(server, metadata.authorization_endpoint),
        "token_endpoint": _address(server, metadata.token_endpoint),
        "revocation_endpoint": _address(server, metadata.revocation_endpoint),
        "scope": get_client_metadata_scopes(_field(challenge, "scope"), resource, metadata, GRANTS),
        "resource": str(resource.resource)
        if resource
        else resource_url_from_server_url(server.url),
        "sends_issuer": bool(metadata.authorization_response_iss_parameter_supported),
    }
    known = server.client
    is_known = known.get("source") == "staff" or (
        known.get("issuer") == endpoints["issuer"] and known.get("redirect_uri") == redirect_uri
    )
    if not is_known:
        known = await _register(server, metadata, redirect_uri)
    server.oauth, server.client = endpoints, known
    await db.run(_store_client, server)


def _store_client(server: McpServer) -> None:
    server.save(update_fields=["oauth", "encrypted_client"])


async def _challenge(server: McpServer) -> str:
    """Return the header in which a server says how it is authorised; "" without one."""
    hello = {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "parley", "version": "1"},
        },
    }
    headers = {
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
        **server.headers,
    }
    body = json.dumps(hello).encode()
    answer = await fetch(
        server.url,
        policy_for(server.url, seconds=SECONDS),
        method="POST",
        headers=headers,
        body=body,
    )
    return answer.headers.get("www-authenticate", "") if answer.status == 401 else ""


def _field(challenge: str, name: str) -> str | None:
    found = re.search(rf'{name}=(?:"([^"]+)"|([^\s,]+))', challenge)
    return (found[1] or found[2]) if found else None


async def _resource(server: McpServer, hint: str | None) -> ProtectedResourceMetadata | None:
    """Return the metadata of the resource (RFC 9728); None of a server without."""
    for url in build_protected_resource_metadata_discovery_urls(hint, server.url):
        answer = await _get(server, url)
        if answer is None:
            continue
        try:
            found = ProtectedResourceMetadata.model_validate_json(answer.body)
        except ValidationError:
            continue
        mine = resource_url_from_server_url(server.url)
        if not check_resource_allowed(
            requested_resource=mine, configured_resource=str(found.resource)
        ):
            raise Undiscovered(str(WRONG))
        return found
    return None


async def _metadata(server: McpServer, issuer: str | None) -> OAuthMetadata:
    """Return the metadata of the authorization server (RFC 8414, or OpenID Connect)."""
    for url in build_oauth_authorization_server_metadata_discovery_urls(issuer, server.url):
        answer = await _get(server, url)
        if answer is None:
            continue
        try:
            found = OAuthMetadata.model_validate_json(answer.body)
        except ValidationError:
            continue
        parts = urlsplit(server.url)
        expected = issuer or f"{parts.scheme}://{parts.netloc}"
        if not issuers_match(str(found.issuer), expected):
            raise Undiscovered(str(WRONG))
        return found
    raise Undiscovered(str(NO_METADATA))


async def _get(server: McpServer, url: str) -> Answer | None:
    """Return the answer to a request for metadata; None if there are none at the address."""
    headers = {"Accept": "application/json", "MCP-Protocol-Version": LATEST_PROTOCOL_VERSION}
    answer = await fetch(url, policy_for(server.url, seconds=SECONDS), headers=headers)
    if answer.status >= 500 or answer.status == 429:
        raise FetchError("bad_answer")
    return answer if answer.status == 200 and not answer.is_cut else None


def _address(server: McpServer, value: object) -> str:
    """Return an endpoint: by TLS, or at the host that staff configured. Raises Undiscovered."""
    url = str(value) if value else ""
    parts = urlsplit(url)
    is_safe = parts.scheme == "https" or (
        parts.scheme == "http" and authority(url) == authority(server.url)
    )
    if url and (not is_safe or "@" in parts.netloc):
        raise Undiscovered(str(WRONG))
    return url


async def _register(
    server: McpServer, metadata: OAuthMetadata, redirect_uri: str
) -> dict[str, str]:
    """Register this site as a client (RFC 7591). Raises Undiscovered."""
    url = _address(server, metadata.registration_endpoint)
    if not url:
        raise Undiscovered(str(NO_CLIENT))
    offered = metadata.token_endpoint_auth_methods_supported or ["client_secret_basic"]
    wanted = next((one for one in METHODS if one in offered), "none")
    request = {
        "client_name": settings.SITE_NAME,
        "redirect_uris": [redirect_uri],
        "grant_types": GRANTS,
        "response_types": ["code"],
        "token_endpoint_auth_method": wanted,
    }
    answer = await fetch(
        url,
        policy_for(server.url, seconds=SECONDS),
        method="POST",
        headers={"Content-Type": "application/json", "Accept": "application/json"},
        body=json.dumps(request).encode(),
    )
    try:
        made = json.loads(answer.body) if answer.status in (200, 201) else None
    except ValueError:
        made = None
    if not isinstance(made, dict) or not isinstance(made.get("client_id"), str):
        raise Undiscovered(f"{NO_CLIENT} ({answer.status})")
    method = made.get("token_endpoint_auth_method") or wanted
    if method not in METHODS or (method != "none" and not made.get("client_secret")):
        raise Undiscovered(f"{NO_CLIENT} ({str(method)[:40]})")
    return stored(
        {
            "client_id": made["client_id"],
            "client_secret": made.get("client_secret"),
            "method": method,
            "issuer": str(metadata.issuer),
            "redirect_uri": redirect_uri,
        }
    )


async def _list(server: McpServer) -> None:
    """List the tools of a server, and store them."""
    headers = server.headers
    if server.needs_connection:
        connection = await db.run(_listing_connection, server.pk)
        if connection is None:
            raise Undiscovered(str(NOT_CONNECTED))
        headers["Authorization"] = f"Bearer {await tokens.fresh(connection)}"
    target = client.Target(server.name, server.url, headers, float(server.seconds))
    listing = await client.list_tools(target)
    await db.run(store_tools, server.pk, listing.tools, listing.protocol, timezone.now())


def _listing_connection(server_id: int) -> McpConnection | None:
    """Return the connection with which tools are listed: of staff first."""
    connected = McpConnection.objects.select_related("server").filter(
        server=server_id, user__is_active=True
    )
    connected = connected.exclude(encrypted_tokens="").exclude(step=McpConnection.Step.ENDING)
    return connected.order_by("-user__is_staff", "id").first()


def store_tools(server_id: int, listed: list[Tool], protocol: str, now: datetime) -> None:
    """Store the tools of a server as listed; those that it no longer has are kept, with the decisions of staff.

    A tool that joins a known list is allowed only if the server's row says so, and a tool that staff have seen as
    one with effects does not become one that only reads.
    """
    with transaction.atomic():
        server = McpServer.objects.select_for_update().get(pk=server_id)
        known = {one.name: one for one in server.tools.all()}
        is_first = server.listed_at is None
        for found in listed:
            try:
                schema = schemas.bounded(found.input_schema)
            except schemas.BadSchema as error:
                log_event(
                    "mcp_tool_refused", server=server.slug, tool=found.name[:128], reason=str(error)
                )
                continue
            hints = found.annotations
            reads = bool(hints and hints.read_only_hint)
            row = known.pop(found.name, None)
            if row is None:
                allowed = is_first or server.allows_new_tools
                row = McpTool(
                    server=server, name=found.name[:128], read_only=reads, allowed=allowed
                )
            row.read_only = reads and (row.read_only or server.allows_new_tools)
            row.title = _line(found.title or (hints.title if hints else "") or "", 128)
            row.description = (found.description or "").replace("\x00", "")[:4_000]
            row.schema, row.missing_since = schema, None
            row.save()
        gone = [one.pk for one in known.values() if one.missing_since is None]
        McpTool.objects.filter(pk__in=gone).update(missing_since=now)
        server.listed_at, server.protocol = now, protocol[:20]
        server.save(update_fields=["listed_at", "protocol"])


def _line(text: str, most: int) -> str:
    return " ".join(text.replace("\x00", "").split())[:most]


async def refresh_unlisted(connection_id: UUID) -> None:
    """Refresh the server of a connection, if its tools were never listed."""
    for server_id in await db.run(_unlisted, connection_id):
        await refresh(server_id)


def _unlisted(connection_id: UUID) -> list[int]:
    unlisted = McpServer.objects.filter(connections=connection_id, listed_at=None)
    return list(unlisted.values_list("pk", flat=True))
