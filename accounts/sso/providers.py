"""The identity providers that the settings name: any issuer of OpenID Connect, Google (one, too) and GitHub.

They are never rows of the database, so that a page with their buttons makes no statement.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings


@dataclass(frozen=True, slots=True)
class IdentityProvider:
    """A system at which users sign in; addresses and SocialAccount.provider contain its `key`.

    `address` is the issuer; of GitHub, which has no OpenID Connect, its web address.
    """

    key: str
    name: str
    address: str
    client_id: str
    client_secret: str

    @property
    def is_github(self) -> bool:
        """Whether this is GitHub, with an API of its own in place of ID tokens."""
        return self.key == "github"

    @property
    def icon(self) -> str:
        """The name of its icon in templates/_sprite.html."""
        return self.key if self.key in ("google", "github") else "shield"


def configured() -> list[IdentityProvider]:
    """Return the identity providers, in the order of their buttons."""
    named = (
        ("oidc", settings.OIDC_NAME, settings.OIDC_ISSUER, "OIDC"),
        ("google", "Google", settings.GOOGLE_ISSUER, "GOOGLE"),
        ("github", "GitHub", settings.GITHUB_URL, "GITHUB"),
    )
    return [
        IdentityProvider(
            key, name, address, client_id, getattr(settings, f"{prefix}_CLIENT_SECRET")
        )
        for key, name, address, prefix in named
        if (client_id := getattr(settings, f"{prefix}_CLIENT_ID"))
    ]


def find(key: str) -> IdentityProvider | None:
    """Return the identity provider with a key; None if the settings do not name it."""
    return next((one for one in configured() if one.key == key), None)
