from __future__ import annotations

from django.apps import AppConfig


class ToolsConfig(AppConfig):
    name = "chat.tools"
    label = "tools"

    def ready(self) -> None:
        from chat.tools import checks  # noqa: F401 # registers them
        from chat.tools.mcp import source
        from chat.tools.registry import add_source

        add_source(source.tools_of)
