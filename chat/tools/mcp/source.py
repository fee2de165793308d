"""The tools of MCP servers, as the registry offers them to a run."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from django.utils.translation import gettext_lazy as _

from chat.tools.mcp.models import McpConnection, McpServer, McpTool, usable_servers
from chat.tools.registry import Arguments, BadArguments, Tool, ToolContext, ToolError, ToolResult
from chatproject.lib import db, encryption

MAX_NAME = 64  # characters, of what providers accept
MAX_ARGUMENTS = 100_000  # characters
MAX_ERROR = 2_000

FAILED = _("The tool reported an error.")
NOT_CONNECTED = _("Your account is not connected to %(server)s. Connect it in the settings.")
UNDECRYPTABLE = _("The stored secrets of %(server)s cannot be read.")
UNKNOWN_OUTCOME = "It is unknown whether the call took effect: do not repeat it without asking."


def tools_of(context: ToolContext) -> list[Tool]:
    """Return the tools of all servers that the user of a run may use, and is connected to where that is needed."""
    rows = McpTool.objects.filter(
        server__in=usable_servers(context.user_id), allowed=True, missing_since=None
    )
    found = list(rows.select_related("server").order_by("server__slug", "name"))
    if not found:
        return []
    connected = McpConnection.objects.filter(user=context.user_id).exclude(encrypted_tokens="")
    connected = connected.exclude(step=McpConnection.Step.ENDING)
    of_servers = set(connected.values_list("server_id", flat=True))
    usable = [
        one for one in found if not one.server.needs_connection or one.server_id in of_servers
    ]
    return [_tool(one, name) for one, name in zip(usable, names(usable), strict=True)]


def names(tools: Iterable[McpTool]) -> list[str]:
    """Return a name for each tool that is unique, begins with its server's prefix and suits providers."""
    taken: set[str] = set()
    made = []
    for one in tools:
        name = f"{one.server.slug}_{re.sub(r'[^A-Za-z0-9_-]+', '_', one.name)}"
        if len(name) > MAX_NAME or name in taken:
            mark = hashlib.sha256(one.name.encode()).hexdigest()[:8]
            name = f"{name[: MAX_NAME - 9]}_{mark}"
        taken.add(name)
        made.append(name)
    return made


def _tool(row: McpTool, name: str) -> Tool:
    server = row.server
    return Tool(
        name=name,
        title=f"{server.name}: {row.title or row.name}",
        progress=f"{server.name}: {row.title or row.name}…",
        description=row.description or row.title or row.name,
        schema=row.schema,
        decode=_decode,
        call=_caller(row),
        is_async=True,
        has_effect=not row.read_only,
        needs_approval=row.needs_approval,
        seconds=float(server.seconds) + 5,
        source=server.source,
    )


def _decode(raw: str) -> Arguments:
    """Return the arguments that a model wrote; the server checks them against its schema."""
    if len(raw) > MAX_ARGUMENTS:
        raise BadArguments(f"They have more than {MAX_ARGUMENTS} characters.")
    try:
        found = json.loads(raw.strip() or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadArguments("They are not a JSON object.")
    return found


def _caller(row: McpTool) -> Callable[[ToolContext, Arguments], Awaitable[ToolResult]]:
    async def call(context: ToolContext, arguments: Arguments) -> ToolResult:
        return await _call(row, context, arguments)

    return call


async def _call(row: McpTool, context: ToolContext, arguments: Arguments) -> ToolResult:
    server = row.server
    # The package takes a second to import: in a thread, when the first call needs it.
    client = await asyncio.to_thread(importlib.import_module, "chat.tools.mcp.client")
    try:
        text, is_error = await _send(client, row, context, arguments)
    except client.McpError as error:
        is_lost = error.sentence in (client.TOO_SLOW, client.BAD_ANSWER) and not row.read_only
        detail = f"{error.detail} {UNKNOWN_OUTCOME}".strip() if is_lost else error.detail
        raise ToolError(
            error.sentence, server=server.name, detail=detail, untrusted=True
        ) from error
    except encryption.Undecryptable:
        raise ToolError(UNDECRYPTABLE, server=server.name) from None
    if is_error:
        raise ToolError(FAILED, detail=text[:MAX_ERROR], untrusted=True)
    summary = " ".join(text.split())
    return ToolResult(
        text=text or "(no content)",
        summary=summary if len(summary) <= 80 else f"{summary[:79]}…",
        untrusted=True,
    )


async def _send(
    client: Any, row: McpTool, context: ToolContext, arguments: Arguments
) -> tuple[str, bool]:
    """Call a tool; with a new token once more, if the server has refused the user's."""
    server = row.server
    answer: tuple[str, bool]
    if not server.needs_connection:
        target = _target(client, server, server.headers)
        answer = await client.call_tool(target, row.name, arguments)
        return answer
    from chat.guarded.client import FetchError
    from chat.tools.mcp import tokens

    refused = ""
    for is_last in (False, True):
        connection = await db.run(_connection, server.pk, context.user_id)
        try:
            if connection is None:
                raise tokens.NotConnected
            refused = await tokens.fresh(connection, refused=refused)
        except tokens.NotConnected:
            raise ToolError(NOT_CONNECTED, server=server.name) from None
        except FetchError:
            raise ToolError(client.UNREACHABLE, server=server.name) from None
        headers = {**server.headers, "Authorization": f"Bearer {refused}"}
        target = _target(client, server, headers)
        try:
            answer = await client.call_tool(target, row.name, arguments)
        except client.McpError as error:
            if is_last or not error.is_refusal:
                raise
        else:
            return answer
    raise AssertionError("unreachable")


def _connection(server_id: int, user_id: int) -> McpConnection | None:
    mine = McpConnection.objects.select_related("server")
    return mine.filter(server=server_id, user=user_id).first()


def _target(client: Any, server: McpServer, headers: dict[str, str]) -> Any:
    return client.Target(server.name, server.url, headers, float(server.seconds), server.protocol)
