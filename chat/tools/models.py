"""The tables of tools."""

from __future__ import annotations

from chat.tools.mcp.models import McpConnection, McpServer, McpTool
from chat.tools.run_steps import RunStep

__all__ = ["McpConnection", "McpServer", "McpTool", "RunStep"]
