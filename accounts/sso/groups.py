"""Groups of an issuer: the permission to use the site, and their groups of the site."""

from __future__ import annotations

from collections.abc import Collection

from django.conf import settings
from django.contrib.auth.models import Group

from accounts.models import User
from accounts.sso.errors import SignInFailed
from accounts.sso.providers import IdentityProvider


def require(provider: IdentityProvider, groups: Collection[str]) -> None:
    """Raise SignInFailed if OIDC_ALLOWED_GROUPS names groups, and a person is in none of them."""
    allowed = settings.OIDC_ALLOWED_GROUPS
    if provider.key == "oidc" and allowed and not set(allowed) & set(groups):
        raise SignInFailed("not_allowed", "in no group of OIDC_ALLOWED_GROUPS")


def follow(provider: IdentityProvider, user: User, groups: Collection[str]) -> None:
    """Put a user into the site's groups by OIDC_GROUP_MAP, and take the user out of the others of it."""
    mapped: dict[str, str] = settings.OIDC_GROUP_MAP
    if provider.key != "oidc" or not mapped:
        return
    wanted = {name for theirs, name in mapped.items() if theirs in groups}
    present = set(user.groups.filter(name__in=mapped.values()).values_list("name", flat=True))
    if wanted - present:
        user.groups.add(*Group.objects.filter(name__in=wanted - present))
    if present - wanted:
        user.groups.remove(*Group.objects.filter(name__in=present - wanted))
