"""The accounts at identity providers that a user has connected."""

from __future__ import annotations

from dataclasses import dataclass

from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from django.conf import settings
from django.db import transaction

from accounts.models import User
from accounts.sso import providers
from accounts.sso.providers import IdentityProvider


class LastWay(Exception):
    """A user could no longer sign in without this account."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A connected account; `provider` is None once the settings no longer name it."""

    account: SocialAccount
    provider: IdentityProvider | None
    name: str
    email: str


def listed(user: User) -> list[Connected]:
    """Return the connected accounts of a user, the oldest first."""
    return [
        Connected(
            account=one,
            provider=providers.find(one.provider),
            name=name_of(one),
            email=str(one.extra_data.get("email") or one.extra_data.get("name") or ""),
        )
        for one in SocialAccount.objects.filter(user=user).order_by("pk")
    ]


def name_of(account: SocialAccount) -> str:
    """Return the name of an account's provider."""
    provider = providers.find(account.provider)
    return provider.name if provider else account.provider


@transaction.atomic
def end(user: User, pk: int) -> SocialAccount | None:
    """Remove a connected account; return it, or None if the user has none with this key. Raises LastWay."""
    # Two at the same time must not take each other for the way that is left.
    User.objects.select_for_update(no_key=True).get(pk=user.pk)
    account = SocialAccount.objects.filter(user=user, pk=pk).first()
    if account is None:
        return None
    if not _has_other_way(user, account):
        raise LastWay
    account.delete()
    return account


def _has_other_way(user: User, account: SocialAccount) -> bool:
    keys = [one.key for one in providers.configured()]
    others = SocialAccount.objects.filter(user=user, provider__in=keys).exclude(pk=account.pk)
    if others.exists() or settings.TRUSTED_HEADER:
        return True
    if not settings.PASSWORD_SIGN_IN:
        return False
    passkeys = Authenticator.objects.filter(user=user, type=Authenticator.Type.WEBAUTHN)
    return user.has_usable_password() or passkeys.exists()
