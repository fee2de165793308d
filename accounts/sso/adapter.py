"""Our answers to allauth's questions about accounts at identity providers."""

from __future__ import annotations

from typing import Any

from allauth.account.adapter import get_adapter as get_account_adapter
from allauth.account.models import EmailAddress
from allauth.account.utils import filter_users_by_email
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialApp, SocialLogin
from allauth.socialaccount.providers.base.provider import Provider, ProviderAccount
from django.contrib.auth.base_user import AbstractBaseUser
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest

from accounts import joining, signup
from accounts.models import User
from accounts.sso import groups, providers
from accounts.sso.answers import failed
from accounts.sso.errors import SignInFailed
from chatproject.lib import rate_limits
from chatproject.lib.http import client_network

NAME_LENGTH = 60  # of User.display_name


class SiteProvider(Provider):
    """allauth's view of an identity provider of the settings; the protocols are in openid and github."""

    id = "sso"
    account_class = ProviderAccount

    def __init__(self, request: HttpRequest, app: SocialApp) -> None:
        super().__init__(request, app)
        self.id, self.name = app.provider, app.name

    def extract_uid(self, data: dict[str, Any]) -> str:
        uid: str = data["uid"]
        return uid

    def extract_extra_data(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the data to store: those that the list of connected accounts shows."""
        return {"email": data["email"], "name": data["name"]}

    def extract_common_fields(self, data: dict[str, Any]) -> dict[str, Any]:
        return {
            "email": data["email"],
            "email_verified": data["is_verified"],
            "name": data["name"],
        }


class SocialAdapter(DefaultSocialAccountAdapter):
    """Finds the providers in the settings, links accounts by verified addresses alone, and signs up."""

    def list_apps(
        self, request: HttpRequest, provider: str | None = None, client_id: str | None = None
    ) -> list[SocialApp]:
        """Return the providers of the settings; allauth's own also asks the database, at each page."""
        return [
            SocialApp(provider=one.key, provider_id=one.key, name=one.name, client_id=one.client_id)
            for one in providers.configured()
            if provider in (None, one.key) and client_id in (None, one.client_id)
        ]

    def list_providers(self, request: HttpRequest) -> list[Provider]:
        return [SiteProvider(request, app) for app in self.list_apps(request)]

    def get_provider(
        self, request: HttpRequest, provider: str, client_id: str | None = None
    ) -> Provider:
        """Return a provider. Raises SocialApp.DoesNotExist once the settings no longer name it."""
        return SiteProvider(request, self.get_app(request, provider, client_id))

    def authenticate_by_email(self, sociallogin: SocialLogin) -> tuple[User, str] | None:
        """Return the user whose account gets connected: both sides have verified the same address.

        Never a member of staff: the provider would decide over all rights of the site.
        """
        for address in sociallogin.email_addresses:
            rows = EmailAddress.objects.filter(email__iexact=address.email, verified=True)
            found = rows.select_related("user").first() if address.verified else None
            if found is None or found.user.is_staff:
                continue
            own = EmailAddress.objects.filter(user=found.user, email__iexact=found.user.email)
            # An account with a primary address of another person may not be its maker's.
            if own.filter(verified=True).exists():
                return found.user, address.email
        return None

    def pre_social_login(self, request: HttpRequest, sociallogin: SocialLogin) -> None:
        """Refuse persons without a permitted group or without an address; follow the groups of users."""
        identity_groups: list[str] = getattr(sociallogin, "groups", [])
        provider = providers.find(sociallogin.account.provider)
        if provider is None:
            return
        try:
            groups.require(provider, identity_groups)
            if sociallogin.is_existing:
                assert isinstance(sociallogin.user, User)
                groups.follow(provider, sociallogin.user, identity_groups)
            elif sociallogin.state.get("process") == "login":
                _require_new_address(sociallogin)
        except SignInFailed as error:
            raise ImmediateHttpResponse(failed(request, provider, error)) from error

    def populate_user(
        self, request: HttpRequest, sociallogin: SocialLogin, data: dict[str, Any]
    ) -> AbstractBaseUser:
        user = sociallogin.user
        assert isinstance(user, User)
        user.email = str(data.get("email") or "").lower()
        user.display_name = " ".join(str(data.get("name") or "").split())[:NAME_LENGTH]
        return user

    def save_user(
        self, request: HttpRequest, sociallogin: SocialLogin, form: Any = None
    ) -> AbstractBaseUser:
        """Store a new user, by the rules of all sign-ups. Raises RateLimited."""
        rate_limits.hit("sign_up", client_network(request))
        user = sociallogin.user
        assert isinstance(user, User)
        user.set_unusable_password()
        with transaction.atomic():
            sociallogin.save(request)
            joining.finish(request, user)
            verified = EmailAddress.objects.filter(
                user=user, email__iexact=user.email, verified=True
            )
            # Of a user who waits, the approval does it.
            if not user.awaits_approval and verified.exists():
                signup.entitle(user, user.email)
            if provider := providers.find(sociallogin.account.provider):
                groups.follow(provider, user, getattr(sociallogin, "groups", []))
        return user


def _require_new_address(sociallogin: SocialLogin) -> None:
    """Raise SignInFailed unless a new account can have the address."""
    address = next(iter(sociallogin.email_addresses), None)
    if address is None:
        raise SignInFailed("no_email")
    try:
        get_account_adapter().clean_email(address.email)
    except ValidationError as error:
        raise SignInFailed("refused", "the address is not permitted") from error
    # Whether an address has an account is answered to its owner alone; allauth answers all others as
    # it does at sign-up.
    if address.verified and filter_users_by_email(address.email):
        raise SignInFailed("exists")
