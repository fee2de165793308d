from __future__ import annotations

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"

    def ready(self) -> None:
        from allauth.account.signals import password_reset

        # notices, sign_in_limits and signup connect their receivers on import.
        from accounts import notices, receivers, sign_in_limits, signup  # noqa: F401

        password_reset.connect(sign_in_limits.forget_attempts)
        receivers.connect()
