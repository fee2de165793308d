from __future__ import annotations

from django.apps import AppConfig


class ChatprojectConfig(AppConfig):
    """The project as an app, for its commands and system checks."""

    name = "chatproject"

    def ready(self) -> None:
        from chatproject import checks  # noqa: F401 # registers the checks
        from chatproject.lib.db import pool

        pool.set_up()
