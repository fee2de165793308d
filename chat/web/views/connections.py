"""The settings page of the accounts that a user has connected as sources of tools (MCP servers with OAuth)."""

from __future__ import annotations

from urllib.parse import urlsplit

import redis
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from chat.errors import ChatError
from chat.runs import queue
from chat.tools.mcp import authorization
from chat.tools.models import McpConnection
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors
from chatproject.lib.http import Request

BUSY = (McpConnection.Step.EXCHANGING, McpConnection.Step.ENDING)


@require_safe
@never_cache
def connections(request: Request) -> HttpResponse:
    """Show the servers at which the user can connect an account."""
    found = authorization.connections(request.user)
    steps = [row["connection"].step for row in found if row["connection"]]
    context = {
        "page": "settings",
        "rows": found,
        "is_busy": any(step in BUSY for step in steps),
    }
    return render(request, "chat/connections.html", page_context(request) | context)


@require_POST
@never_cache
@handles_chat_errors
def connect(request: Request, server_id: int) -> HttpResponse:
    """Show the link to the page at which the user permits the access.

    A link, since a form that leads to another site is forbidden by the policy of this one.
    """
    server = authorization.server_of(request.user, server_id)
    try:
        address = authorization.begin(request.user, server)
    except ChatError as error:
        if error.code != "unavailable":
            raise
        messages.error(request, error.message)
        return redirect("chat:connections")
    context = {
        "page": "settings",
        "server": server,
        "address": address,
        "host": urlsplit(address).hostname,
    }
    return render(request, "chat/connect.html", page_context(request) | context)


@require_safe
@never_cache
def connected(request: Request) -> HttpResponse:
    """Receive a user who comes back from an authorization server."""
    answer = {
        name: request.GET[name] for name in ("state", "code", "error", "iss") if name in request.GET
    }
    try:
        found = authorization.receive(request.user, answer)
    except ChatError as error:
        messages.error(request, error.message)
        return redirect("chat:connections")
    if found.problem:
        messages.error(request, _(found.problem))
    else:
        _enqueue("exchange", found)
    return redirect("chat:connections")


@require_POST
def disconnect(request: Request, server_id: int) -> HttpResponse:
    """End a connection of the user: its tokens are revoked by a job."""
    found = authorization.end(request.user, server_id)
    if found is not None:
        _enqueue("revoke", found)
    messages.success(request, _("The account is disconnected."))
    return redirect("chat:connections")


def _enqueue(name: str, found: McpConnection) -> None:
    try:
        queue.enqueue_mcp(name, connection_id=str(found.pk))
    except redis.RedisError:
        return  # the clock enqueues it: recovery.mcp_sweep
