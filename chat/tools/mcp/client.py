"""Requests to an MCP server: its tools, and calls of them. For workers alone, as the package `mcp` is large.

A session lasts for one operation. Nothing of it outlives that, so that one user's session is never another's.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import (
    CallToolResult,
    EmbeddedResource,
    Implementation,
    ResourceLink,
    TextContent,
    Tool,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from chat.tools.mcp.policy import policy_for
from chat.tools.mcp.transport import GuardedTransport

logger = logging.getLogger(__name__)

MAX_TOOLS = 200  # of one server
MAX_PAGES = 20
MAX_RESULT = 60_000  # characters

UNREACHABLE = _("The server %(server)s could not be reached.")
TOO_SLOW = _("The server %(server)s did not answer in time.")
REFUSED = _("The server %(server)s refused the request.")
NOT_AUTHORISED = _(
    "The server %(server)s does not accept your connection. Connect it again in the settings."
)
BAD_ANSWER = _("The server %(server)s sent no valid answer.")


class McpError(Exception):
    """A failed operation: `sentence` is for people, `detail` has the server's own words."""

    def __init__(
        self, sentence: str | Promise, detail: str = "", *, is_refusal: bool = False
    ) -> None:
        super().__init__(f"{sentence} {detail}".strip())
        self.sentence = sentence
        self.detail = detail[:1_000]
        self.is_refusal = is_refusal  # of the authorisation


@dataclass(frozen=True, slots=True)
class Target:
    """A server as one operation reaches it; `protocol` is the version that it spoke last, if it is known."""

    name: str
    url: str
    headers: Mapping[str, str]
    seconds: float
    protocol: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The tools that a server offers, and the protocol's version."""

    tools: list[Tool]
    protocol: str


async def list_tools(target: Target) -> Listing:
    """Return the tools of a server, at most MAX_TOOLS. Raises McpError."""
    async with _session(target) as session:
        found: list[Tool] = []
        cursor: str | None = None
        for _page in range(MAX_PAGES):
            listed = await session.list_tools(cursor=cursor)
            found += listed.tools
            cursor = listed.next_cursor
            if cursor is None or len(found) >= MAX_TOOLS:
                break
        return Listing(found[:MAX_TOOLS], session.protocol_version)


async def call_tool(target: Target, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the text of a call's result, and whether it is an error. Raises McpError."""
    async with _session(target) as session:
        result = await session.call_tool(name, dict(arguments))
        return text_of(result), bool(result.is_error)


@asynccontextmanager
async def _session(target: Target) -> AsyncIterator[Client]:
    """Open a session, and translate all that can fail in it to McpError."""
    transport = GuardedTransport(policy_for(target.url, seconds=target.seconds))
    timeout = httpx2.Timeout(target.seconds)
    # The version that is known saves the request that asks for it.
    mode = target.protocol if target.protocol in MODERN_PROTOCOL_VERSIONS else "auto"
    if target.protocol and target.protocol not in MODERN_PROTOCOL_VERSIONS:
        mode = "legacy"
    try:
        async with (
            asyncio.timeout(target.seconds),
            httpx2.AsyncClient(
                transport=transport, headers=dict(target.headers), timeout=timeout, trust_env=False
            ) as http,
            Client(
                streamable_http_client(target.url, http_client=http),
                mode=mode,
                cache=None,
                client_info=Implementation(name="parley", version="1"),
                read_timeout_seconds=target.seconds,
            ) as session,
        ):
            yield session
    except BaseExceptionGroup as group:
        raise _translated(_first(group), transport) from group
    except (MCPError, TimeoutError, httpx2.HTTPError, ValidationError, ValueError) as error:
        raise _translated(error, transport) from error


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of a group of tasks; a cancellation of them all comes before others."""
    others = group.split(asyncio.CancelledError)[1]
    found: BaseException = others if others is not None else group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _translated(error: BaseException, transport: GuardedTransport) -> McpError:
    if isinstance(error, McpError):
        return error
    if transport.refused is not None:
        return McpError(NOT_AUTHORISED, is_refusal=True)
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return McpError(TOO_SLOW)
    if isinstance(error, httpx2.ConnectError):
        return McpError(UNREACHABLE, str(error))
    if isinstance(error, MCPError):
        if "timed out" in str(error).lower():
            return McpError(TOO_SLOW)
        return McpError(REFUSED, str(error))
    return McpError(BAD_ANSWER, type(error).__name__)


def text_of(result: CallToolResult) -> str:
    """Return the content of a result as a text for a model, cut to MAX_RESULT."""
    parts: list[str] = []
    for block in result.content:
        if isinstance(block, TextContent):
            parts.append(block.text)
        elif isinstance(block, ResourceLink):
            parts.append(f"{block.title or block.name}: {block.uri}")
        elif isinstance(block, EmbeddedResource):
            text = getattr(block.resource, "text", None)
            parts.append(text if text is not None else f"(a file: {block.resource.uri})")
        else:
            parts.append(f"({block.type}: {block.mime_type})")
    if not any(part.strip() for part in parts) and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    text = "\n\n".join(part for part in parts if part)
    return text if len(text) <= MAX_RESULT else f"{text[:MAX_RESULT]}\n(The rest is left out.)"
