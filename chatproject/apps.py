from __future__ import annotations

from django.apps import AppConfig


class ChatprojectConfig(AppConfig):
    """The project itself as an app: its commands and its checks at start."""

    name = "chatproject"

    def ready(self) -> None:
        from chatproject import checks  # noqa: F401 # registers them
        from chatproject.lib.db import pool

        pool.set_up()
