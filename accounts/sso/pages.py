"""The pages of signing in at identity providers, and of the accounts that a user has connected."""

from __future__ import annotations

import time
from typing import Any

from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.login import record_authentication
from allauth.account.internal.flows.reauthentication import raise_if_reauthentication_required
from allauth.account.models import EmailAddress
from allauth.account.utils import get_next_redirect_url
from allauth.socialaccount.helpers import complete_social_login
from allauth.socialaccount.internal import statekit
from allauth.socialaccount.internal.flows.signup import clear_pending_signup, get_pending_signup
from allauth.socialaccount.models import SocialAccount
from django.conf import settings
from django.contrib import messages
from django.db import IntegrityError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.crypto import constant_time_compare
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts.models import User
from accounts.sso import confirmation, connections, github, openid, providers
from accounts.sso.adapter import SocialAdapter
from accounts.sso.answers import failed
from accounts.sso.errors import SignInFailed
from accounts.sso.identity import Identity
from accounts.sso.providers import IdentityProvider
from chatproject.lib import origins
from chatproject.lib.http import Request

# The errors of a provider for a person who did not go on.
CANCELLED = {"access_denied", "consent_required", "interaction_required", "login_required"}
BUSY = {"server_error", "temporarily_unavailable"}


def _provider(key: str) -> IdentityProvider:
    provider = providers.find(key)
    if provider is None:
        raise Http404
    return provider


def redirect_uri(request: HttpRequest, key: str) -> str:
    """Return the address to which a provider sends the browser back; it must be registered there."""
    return origins.public_address(request, reverse("socialaccount_callback", args=[key]))


@require_POST
@never_cache
def begin(request: HttpRequest, key: str) -> HttpResponse:
    """Send the browser to a provider: to sign in, or to connect an account there, or to confirm.

    By a page that goes on immediately, since the CSP has browsers refuse a form's redirect to another site.
    """
    provider = _provider(key)
    process = request.POST.get("process", "login")
    if process not in ("login", "connect", "confirm"):
        process = "login"
    if process != "login" and not request.user.is_authenticated:
        return redirect("account_login")
    if process == "connect":
        if not _has_confirmed_address(request):
            messages.error(request, _("Confirm your e-mail address first."))
            return redirect("socialaccount_connections")
        if refusal := confirmation.refusal(request, reverse("socialaccount_connections")):
            return refusal
        raise_if_reauthentication_required(request, app="allauth.socialaccount")
    kept = openid.new_secrets()
    state: dict[str, Any] = {"process": process, "since": time.time(), **kept}
    if target := get_next_redirect_url(request):
        state["next"] = target
    try:
        state_id = statekit.stash_state(request, provider_id=key, state=state)
        address = redirect_uri(request, key)
        if provider.is_github:
            url = github.authorization_url(
                provider, redirect_uri=address, state=state_id, verifier=kept["verifier"]
            )
        else:
            url = openid.authorization_url(
                provider,
                redirect_uri=address,
                state=state_id,
                is_again=process == "confirm",
                **kept,
            )
    except SignInFailed as error:
        return failed(request, provider, error)
    return render(request, "sso/continue.html", {"provider": provider, "url": url})


def _has_confirmed_address(request: HttpRequest) -> bool:
    """Return whether the user's primary address is confirmed.

    Else another person may have made the account with it, and would keep a way in once its owner has it.
    """
    user = request.user
    assert isinstance(user, User)
    own = EmailAddress.objects.filter(user=user, email__iexact=user.email, verified=True)
    return own.exists()


@require_safe
@never_cache
def callback(request: HttpRequest, key: str) -> HttpResponse:
    """Take the browser back from a provider."""
    provider = _provider(key)
    state = statekit.unstash_state(
        request, state_id=request.GET.get("state", ""), provider_id=provider.key
    )
    if state is None and request.user.is_authenticated:
        return redirect(settings.LOGIN_REDIRECT_URL)  # the page was loaded again
    try:
        if state is None:
            raise SignInFailed("expired")
        identity = _identify(request, provider, state)
        if state["process"] == "confirm":
            return _confirm(request, provider, identity, state)
    except SignInFailed as error:
        return failed(request, provider, error)
    # The same person may have signed up in another tab at the same time: then there is an account now.
    try:
        response = _complete(request, key, identity, state)
    except IntegrityError:
        return _complete(request, key, identity, state)
    taken_page = reverse("socialaccount_signup")
    is_taken = response.status_code == 409 or response.get("Location") == taken_page
    if is_taken and SocialAccount.objects.filter(provider=key, uid=identity.uid).exists():
        return _complete(request, key, identity, state)
    return response


def _complete(
    request: HttpRequest, key: str, identity: Identity, state: dict[str, Any]
) -> HttpResponse:
    provider = SocialAdapter(request).get_provider(request, key)
    login = provider.sociallogin_from_response(request, identity.as_dict())
    login.state = state
    login.groups = identity.groups
    response: HttpResponse = complete_social_login(request, login)
    return response


def _identify(request: HttpRequest, provider: IdentityProvider, state: dict[str, Any]) -> Identity:
    given = request.GET
    if provider.address and "iss" in given and not provider.is_github:
        # The answer of another issuer (mix-up attack, RFC 9207).
        issuer = str(openid.discover(provider.address).document["issuer"])
        if not constant_time_compare(given["iss"], issuer):
            raise SignInFailed("invalid", "the answer names another issuer")
    if error := given.get("error"):
        code = "cancelled" if error in CANCELLED else "unreachable" if error in BUSY else "refused"
        raise SignInFailed(code, "" if code == "cancelled" else f"error={error[:40]!r}")
    code = given.get("code", "")
    if not code:
        raise SignInFailed("refused", "the answer has no code")
    address = redirect_uri(request, provider.key)
    if provider.is_github:
        return github.identify(
            provider, code=code, redirect_uri=address, verifier=state["verifier"]
        )
    return openid.identify(
        provider,
        code=code,
        redirect_uri=address,
        nonce=state["nonce"],
        verifier=state["verifier"],
        since=state["since"] if state["process"] == "confirm" else None,
    )


def _confirm(
    request: HttpRequest, provider: IdentityProvider, identity: Identity, state: dict[str, Any]
) -> HttpResponse:
    """Store that the user has signed in at the provider again; for another person's account there, do not."""
    user = request.user
    own = SocialAccount.objects.filter(provider=provider.key, uid=identity.uid)
    if not isinstance(user, User) or not own.filter(user=user).exists():
        raise SignInFailed("refused", "confirmed by another account")
    record_authentication(
        request, user, "socialaccount", provider=provider.key, reauthenticated=True
    )
    return redirect(state.get("next") or "socialaccount_connections")


@require_safe
@never_cache
def taken(request: HttpRequest) -> HttpResponse:
    """Explain that the address of a new person has an account; allauth leads here."""
    pending = get_pending_signup(request)
    clear_pending_signup(request)
    provider = providers.find(pending.account.provider) if pending else None
    if provider is None:
        return redirect("account_login")
    return failed(request, provider, SignInFailed("exists"))


@require_safe
@never_cache
def confirm(request: Request) -> HttpResponse:
    """Ask a user without a password to sign in at a connected provider again."""
    connected = [one.provider for one in connections.listed(request.user) if one.provider]
    target = get_next_redirect_url(request) or reverse("socialaccount_connections")
    if not connected:
        return redirect("account_set_password")
    return render(request, "sso/confirm.html", {"providers": connected, "next": target})


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def connected(request: Request) -> HttpResponse:
    """List the connected accounts, and the providers to connect; end a connection."""
    status, problem = 200, ""
    given = request.POST.get("account", "")
    if request.method == "POST" and given.isascii() and given.isdigit() and len(given) < 10:
        if refusal := confirmation.refusal(request, request.path):
            return refusal
        raise_if_reauthentication_required(request, app="allauth.socialaccount")
        try:
            ended = connections.end(request.user, int(given))
        except connections.LastWay:
            status, problem = 409, _("This is your only way to sign in. Set a password first.")
            if not settings.PASSWORD_SIGN_IN:
                problem = _("This is your only way to sign in. Connect another account first.")
        else:
            if ended is not None:
                get_adapter(request).send_notification_mail(
                    "socialaccount/email/account_disconnected",
                    request.user,
                    {"provider_name": connections.name_of(ended)},
                )
                messages.success(
                    request,
                    _("%(name)s is no longer connected.") % {"name": connections.name_of(ended)},
                )
            return redirect("socialaccount_connections")
    listed = connections.listed(request.user)
    keys = {one.account.provider for one in listed}
    context = {
        "listed": listed,
        "others": [one for one in providers.configured() if one.key not in keys],
        "problem": problem,
        "page": "settings",
    }
    return render(request, "sso/connections.html", context, status=status)
