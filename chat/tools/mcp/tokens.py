"""The tokens of users at MCP servers, in workers: fetched by a code, refreshed when they expire, revoked."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_noop as _

from chat.guarded.client import Answer, FetchError, fetch
from chat.tools.mcp.models import McpConnection, McpServer, stored
from chat.tools.mcp.policy import policy_for
from chatproject.lib import db, encryption
from chatproject.lib.log_events import log_event

logger = logging.getLogger(__name__)

SECONDS = 20.0  # of one request
EARLY = timedelta(seconds=60)  # before its end a token is refreshed
CLAIM = timedelta(seconds=30)  # in which one worker alone refreshes
WAITS = (0.1, 0.2, 0.4, 0.8, 1.5, 3.0)  # seconds for the tokens that another worker fetches

Step = McpConnection.Step


class NotConnected(Exception):
    """A connection that has ended: its user has to connect again."""


async def exchange(connection_id: UUID) -> bool:
    """Fetch the tokens for the code of a connection; store them, or the problem. Returns whether it is connected."""
    found = await db.run(_at_step, connection_id, Step.EXCHANGING)
    if found is None:
        return False
    problem, tokens = "", None
    try:
        code = encryption.decrypt(found.encrypted_code)
        verifier = encryption.decrypt(found.encrypted_verifier)
        client = found.server.client
        tokens = await _request(
            found.server,
            {
                "grant_type": "authorization_code",
                "code": code,
                "code_verifier": verifier,
                "redirect_uri": client.get("redirect_uri", ""),
                "resource": found.server.oauth["resource"],
            },
        )
        if tokens is None:
            problem = _("The server refused the connection.")
    except FetchError as error:
        logger.warning("the tokens of %s were not fetched: %s", found, error.code)
        problem = _("The server could not be reached. Connect again.")
    except encryption.Undecryptable:
        problem = _("The connection took too long. Connect again.")
    await db.run(_store, found, tokens, problem)
    log_event(
        "mcp_connected", user_id=found.user_id, server=found.server.slug, ok=tokens is not None
    )
    return tokens is not None


def _at_step(connection_id: UUID, step: str) -> McpConnection | None:
    rows = McpConnection.objects.select_related("server")
    return rows.filter(pk=connection_id, step=step).first()


def _store(found: McpConnection, tokens: Mapping[str, Any] | None, problem: str) -> None:
    """Store the outcome of an exchange, unless the user has begun anew meanwhile."""
    now = timezone.now()
    changes: dict[str, Any] = {
        "step": Step.NONE,
        "encrypted_code": "",
        "encrypted_verifier": "",
        "problem": problem,
    }
    if tokens is not None:
        _take(found, tokens)
        changes |= {
            "encrypted_tokens": found.encrypted_tokens,
            "expires_at": found.expires_at,
            "scope": str(tokens.get("scope") or "")[:1_000],
            "connected_at": now,
            "refreshed_until": None,
        }
    McpConnection.objects.filter(pk=found.pk, step=Step.EXCHANGING).update(**changes)


def _take(found: McpConnection, tokens: Mapping[str, Any]) -> None:
    lifetime = tokens.get("expires_in")
    expires_at = None
    if isinstance(lifetime, int | float) and 0 < lifetime < 10**9:
        expires_at = timezone.now() + timedelta(seconds=lifetime)
    found.store_tokens(stored({**tokens, "expires_in": None}), expires_at=expires_at)


async def fresh(connection: McpConnection, *, refused: str = "") -> str:
    """Return an access token of a connection, a new one if it expires, or was `refused` by the server.

    Raises NotConnected and FetchError.
    """
    for wait in (*WAITS, None):
        if not connection.is_connected:
            raise NotConnected
        tokens = connection.tokens
        expires_at = connection.expires_at
        is_old = expires_at is not None and expires_at < timezone.now() + EARLY
        if not is_old and tokens["access_token"] != refused:
            return tokens["access_token"]
        if not tokens.get("refresh_token"):
            await db.run(_close, connection)
            raise NotConnected
        if await db.run(_claim, connection):
            return await _refresh(connection, tokens["refresh_token"])
        if wait is not None:
            await asyncio.sleep(wait)
            found = await db.run(_again, connection)
            if found is None:
                raise NotConnected
            connection = found
    raise FetchError("timeout")


def _again(connection: McpConnection) -> McpConnection | None:
    return McpConnection.objects.select_related("server").filter(pk=connection.pk).first()


def _release(connection: McpConnection) -> None:
    """Let another worker refresh the tokens, which stay."""
    McpConnection.objects.filter(pk=connection.pk).update(refreshed_until=None)


def _claim(connection: McpConnection) -> bool:
    """Claim the refreshing of tokens (compare-and-set); False while another worker does it."""
    now = timezone.now()
    same = McpConnection.objects.filter(
        Q(refreshed_until=None) | Q(refreshed_until__lt=now),
        pk=connection.pk,
        encrypted_tokens=connection.encrypted_tokens,
    )
    return bool(same.update(refreshed_until=now + CLAIM))


async def _refresh(connection: McpConnection, refresh_token: str) -> str:
    server = connection.server
    values = {
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "resource": server.oauth["resource"],
    }
    try:
        tokens = await _request(server, values)
    except FetchError:
        await db.run(_release, connection)
        raise
    if tokens is None:
        await db.run(_close, connection)
        raise NotConnected
    before = connection.encrypted_tokens
    _take(connection, {"refresh_token": refresh_token} | tokens)
    await db.run(_replace, connection, before)
    return connection.tokens["access_token"]


def _replace(connection: McpConnection, before: str) -> None:
    """Store the tokens of a connection in place of those `before`."""
    same = McpConnection.objects.filter(pk=connection.pk, encrypted_tokens=before)
    same.update(
        encrypted_tokens=connection.encrypted_tokens,
        expires_at=connection.expires_at,
        refreshed_until=None,
    )


def _close(connection: McpConnection) -> None:
    """Remove tokens that the server no longer accepts."""
    same = McpConnection.objects.filter(
        pk=connection.pk, encrypted_tokens=connection.encrypted_tokens
    )
    problem = _("The server has ended the connection. Connect again.")
    same.update(encrypted_tokens="", expires_at=None, refreshed_until=None, problem=problem)


async def revoke(connection_id: UUID) -> None:
    """Revoke the tokens of a connection that its user ended (RFC 7009), and delete it."""
    found = await db.run(_at_step, connection_id, Step.ENDING)
    if found is None:
        return
    endpoint = found.server.oauth.get("revocation_endpoint")
    try:
        tokens = found.tokens
        for kind in ("refresh_token", "access_token"):
            if endpoint and tokens.get(kind):
                values = {"token": tokens[kind], "token_type_hint": kind}
                await _post(found.server, endpoint, values)
    except (FetchError, encryption.Undecryptable) as error:
        # They expire by themselves; the user's wish counts.
        logger.warning("the tokens of %s are not revoked: %s", found, error)
    await db.run(_delete, found)
    log_event("mcp_disconnected", user_id=found.user_id, server=found.server.slug)


def _delete(connection: McpConnection) -> None:
    McpConnection.objects.filter(pk=connection.pk, step=Step.ENDING).delete()


async def _request(server: McpServer, values: dict[str, str]) -> dict[str, Any] | None:
    """Return the tokens of a request to the token endpoint; None if it is refused. Raises FetchError."""
    answer = await _post(server, server.oauth["token_endpoint"], values)
    if answer.status >= 500 or answer.status == 429:
        raise FetchError("bad_answer")
    try:
        tokens = json.loads(answer.body) if answer.status == 200 else None
    except (ValueError, RecursionError):
        raise FetchError("bad_answer") from None
    if not isinstance(tokens, dict) or not isinstance(tokens.get("access_token"), str):
        return None
    kind = str(tokens.get("token_type", "bearer")).lower()
    return tokens if kind == "bearer" and tokens["access_token"].isprintable() else None


async def _post(server: McpServer, url: str, values: dict[str, str]) -> Answer:
    """Post a form to the authorization server as this site's client."""
    client = server.client
    headers = {
        "Accept": "application/json",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    form = {**values, "client_id": client["client_id"]}
    secret = client.get("client_secret", "")
    if secret and client.get("method") == "client_secret_basic":
        pair = f"{quote(client['client_id'], safe='')}:{quote(secret, safe='')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        del form["client_id"]
    elif secret:
        form["client_secret"] = secret
    return await fetch(
        url,
        policy_for(server.url, seconds=SECONDS),
        method="POST",
        headers=headers,
        body=urlencode(form).encode(),
    )
