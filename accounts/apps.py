from __future__ import annotations

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"

    def ready(self) -> None:
        from allauth.account.signals import password_reset

        from accounts import notices, sign_in_limits, signup  # noqa: F401 # they connect receivers

        password_reset.connect(sign_in_limits.forget_attempts)
