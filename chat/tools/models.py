"""The tables of tools."""

from __future__ import annotations

from chat.tools.mcp.models import McpConnection, McpServer, McpTool

__all__ = ["McpConnection", "McpServer", "McpTool"]
