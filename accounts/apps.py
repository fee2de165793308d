from __future__ import annotations

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"

    def ready(self) -> None:
        # notices and signup connect their receivers on import.
        from accounts import notices, receivers, signup  # noqa: F401

        receivers.connect()
