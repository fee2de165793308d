from __future__ import annotations

from allauth.account.apps import AccountConfig
from django.apps import AppConfig
from django.utils.translation import gettext_lazy


class AccountsConfig(AppConfig):
    name = "accounts"
    verbose_name = gettext_lazy("Users")
    default = True

    def ready(self) -> None:
        # language, notices and signup connect their receivers on import.
        from accounts import language, notices, receivers, signup  # noqa: F401
        from accounts.privacy import registry

        receivers.connect()
        registry.register()


class AddressesConfig(AccountConfig):
    """allauth's app, under a name that the admin has once."""

    verbose_name = gettext_lazy("E-mail addresses")
    default = False
