from __future__ import annotations

from allauth.account.apps import AccountConfig
from allauth.mfa.apps import MFAConfig
from allauth.socialaccount.apps import SocialAccountConfig
from allauth.usersessions.apps import UserSessionsConfig
from django.apps import AppConfig
from django.utils.translation import gettext_lazy


class AccountsConfig(AppConfig):
    name = "accounts"
    verbose_name = gettext_lazy("Users")
    default = True

    def ready(self) -> None:
        # language, notices, sessions and signup connect their receivers on import.
        from accounts import language, notices, receivers, sessions, signup  # noqa: F401
        from accounts.mfa import notices as factor_notices  # noqa: F401
        from accounts.privacy import registry

        receivers.connect()
        registry.register()


class AddressesConfig(AccountConfig):
    """allauth's app, under a name that the admin has once."""

    verbose_name = gettext_lazy("E-mail addresses")
    default = False


class FactorsConfig(MFAConfig):
    """allauth's app of second factors."""

    verbose_name = gettext_lazy("Second factors")
    default = False


class SessionsConfig(UserSessionsConfig):
    """allauth's app of sessions: the table alone, which accounts.sessions writes."""

    verbose_name = gettext_lazy("Sessions of users")
    default = False

    def ready(self) -> None:
        """Connect none of allauth's receivers, which read each session of a user by a statement of its own."""


class ConnectionsConfig(SocialAccountConfig):
    """allauth's app of accounts at identity providers, which accounts.sso finds in the settings."""

    verbose_name = gettext_lazy("Connected accounts")
    default = False

    def ready(self) -> None:
        """Load none of allauth's providers."""
