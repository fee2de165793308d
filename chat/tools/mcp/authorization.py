"""A user connects an account at an MCP server: OAuth 2.1 with PKCE, as far as the pages go.

A worker has discovered the authorization server before (discovery.py), and exchanges the code afterwards
(tokens.py): no page waits for another server.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.db import transaction
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from chat.errors import ChatError
from chat.tools.mcp.models import McpConnection, McpServer, usable_servers
from chatproject.lib import encryption
from chatproject.lib.log_events import log_event

if TYPE_CHECKING:
    from accounts.models import User

MAX_AGE = timedelta(minutes=15)  # of the way there and back
MAX_CODE = 4_000  # characters

# Stored as they are, and translated when they are shown.
DENIED = gettext_noop("You did not permit the access.")
REFUSED = gettext_noop("The server refused the connection.")

Step = McpConnection.Step


def redirect_uri() -> str:
    """Return the address to which authorization servers send users back; "" while the site has no SITE_URL."""
    return f"{settings.SITE_URL}{reverse('chat:connected')}" if settings.SITE_URL else ""


def connections(user: User) -> list[dict[str, Any]]:
    """Return the servers at which a user can connect an account, each with its `connection` or None."""
    servers = usable_servers(user.pk).filter(auth=McpServer.Auth.OAUTH)
    mine = {one.server_id: one for one in McpConnection.objects.filter(user=user)}
    return [
        {"server": one, "connection": mine.get(one.pk), "is_ready": is_ready(one)}
        for one in servers.order_by("name")
    ]


def is_ready(server: McpServer) -> bool:
    """Return whether users can connect: its authorization server is known."""
    return bool(server.oauth.get("authorization_endpoint") and server.encrypted_client)


def server_of(user: User, server_id: int) -> McpServer:
    """Return a server at which a user can connect an account. Raises ChatError `not_found`."""
    found = usable_servers(user.pk).filter(pk=server_id, auth=McpServer.Auth.OAUTH).first()
    if found is None:
        raise ChatError("not_found")
    return found


def begin(user: User, server: McpServer) -> str:
    """Return the address at which the user permits the access. Raises ChatError `unavailable`."""
    if not is_ready(server) or not redirect_uri():
        raise ChatError("unavailable", _("This server cannot be connected right now."))
    verifier, state = secrets.token_urlsafe(64), secrets.token_urlsafe(32)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
    McpConnection.objects.update_or_create(
        server=server,
        user=user,
        defaults={
            "step": Step.ASKED,
            "state_hash": _hash(state),
            "encrypted_verifier": encryption.encrypt(verifier),
            "encrypted_code": "",
            "asked_at": timezone.now(),
            "problem": "",
        },
    )
    query = {
        "response_type": "code",
        "client_id": server.client["client_id"],
        "redirect_uri": redirect_uri(),
        "state": state,
        "code_challenge": challenge.decode(),
        "code_challenge_method": "S256",
        "resource": server.oauth["resource"],
    }
    if server.oauth.get("scope"):
        query["scope"] = server.oauth["scope"]
    endpoint: str = server.oauth["authorization_endpoint"]
    return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(query)}"


def receive(user: User, answer: dict[str, str]) -> McpConnection:
    """Store the code with which the user came back; the caller enqueues its exchange.

    Returns the connection, with a `problem` in words if there is no code. Raises ChatError `not_found` for an
    answer that this user did not ask for, or that has been used.
    """
    state = answer.get("state", "")
    with transaction.atomic():
        asked = McpConnection.objects.select_for_update(of=("self",)).select_related("server")
        found = asked.filter(
            state_hash=_hash(state),
            user=user,
            step=Step.ASKED,
            asked_at__gt=timezone.now() - MAX_AGE,
        ).first()
        if not state or found is None:
            raise ChatError("not_found", _("This answer has expired. Connect again."))
        found.state_hash, found.step = "", Step.NONE
        issuer, expected = answer.get("iss"), found.server.oauth.get("issuer")
        is_wrong = issuer != expected if issuer else bool(found.server.oauth.get("sends_issuer"))
        code = answer.get("code", "")
        if answer.get("error") or not 0 < len(code) <= MAX_CODE or is_wrong:
            is_denied = answer.get("error") == "access_denied"
            found.problem = DENIED if is_denied else REFUSED
        else:
            found.step, found.encrypted_code = Step.EXCHANGING, encryption.encrypt(code)
        found.save()
    log_event("mcp_code_received", user_id=user.pk, server=found.server.slug)
    return found


def end(user: User, server_id: int) -> McpConnection | None:
    """Mark a connection of the user to be ended; the caller enqueues its revocation. None without one."""
    mine = McpConnection.objects.filter(user=user, server=server_id)
    mine.filter(encrypted_tokens="").delete()
    mine.update(
        step=Step.ENDING,
        state_hash="",
        encrypted_code="",
        encrypted_verifier="",
        asked_at=timezone.now(),
    )
    return mine.first()


def _hash(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()
