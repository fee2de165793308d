"""Entry points of the jobs about MCP servers. Redis stores their paths; they import what is large themselves."""

from __future__ import annotations

from uuid import UUID


async def refresh(server_id: int) -> None:
    """Discover a server, and list its tools."""
    from chat.tools.mcp import discovery

    await discovery.refresh(server_id)


async def exchange(connection_id: str) -> None:
    """Fetch the tokens of a user who came back from a server; the first one also makes its list of tools."""
    from chat.tools.mcp import discovery, tokens

    if await tokens.exchange(UUID(connection_id)):
        await discovery.refresh_unlisted(UUID(connection_id))


async def revoke(connection_id: str) -> None:
    """Revoke the tokens of a connection that its user ended."""
    from chat.tools.mcp import tokens

    await tokens.revoke(UUID(connection_id))
