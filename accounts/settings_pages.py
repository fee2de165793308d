"""The pages of a user's settings, in the order of the navigation beside each of them.

A page that extends templates/settings/page.html is marked as the current one by the name of its view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from django.apps import apps
from django.conf import settings
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy

from accounts.sso import providers


@dataclass(frozen=True, slots=True)
class SettingsPage:
    """An entry of the navigation: `view` is its link, `views` are further pages that belong to it."""

    label: Promise
    icon: str  # of templates/_sprite.html
    view: str
    views: tuple[str, ...] = ()
    is_shown: Callable[[], bool] = lambda: True  # by the settings of the site


def has_tools() -> bool:
    """Return whether there are servers at which users connect an account as a source of tools."""
    servers = apps.get_model("tools", "McpServer")._base_manager
    return servers.filter(enabled=True, auth="oauth").exists()


PAGES = [
    SettingsPage(gettext_lazy("General"), "settings", "chat:settings"),
    SettingsPage(gettext_lazy("Profile"), "person", "profile"),
    SettingsPage(gettext_lazy("Plan"), "usage", "plan"),
    SettingsPage(
        gettext_lazy("E-mail address"), "mail", "account_email", ("account_reauthenticate",)
    ),
    SettingsPage(
        gettext_lazy("Password"),
        "key",
        "account_change_password",
        ("account_set_password",),
        is_shown=lambda: settings.PASSWORD_SIGN_IN,
    ),
    SettingsPage(gettext_lazy("Security"), "shield", "mfa_index"),
    SettingsPage(
        gettext_lazy("Connections"),
        "connect",
        "socialaccount_connections",
        is_shown=lambda: bool(providers.configured()),
    ),
    SettingsPage(gettext_lazy("Sessions"), "device", "usersessions_list"),
    SettingsPage(gettext_lazy("Notifications"), "info", "chat:notifications"),
    SettingsPage(
        gettext_lazy("Memory"),
        "pin",
        "chat:notes",
        ("chat:note",),
        is_shown=lambda: settings.USER_NOTES,
    ),
    SettingsPage(gettext_lazy("Tools"), "bolt", "chat:connections", ("chat:connect",), has_tools),
    SettingsPage(
        gettext_lazy("Data"), "file", "chat:data", ("account_delete", "chat:shared_by_me")
    ),
    SettingsPage(gettext_lazy("API keys"), "link", "api_keys"),
    SettingsPage(
        gettext_lazy("Webhooks"), "bolt", "chat:webhooks", ("chat:webhook", "chat:delivery")
    ),
]
