"""Limits on signing in and on mails with a link to a new password.

Wrong passwords from elsewhere must not lock an owner out. So a narrow limit counts by address and
account together, a wide one by address, and a wide one by account, against guesses from many
addresses. A known browser of the account passes all three on a small limit of its own, and a link in
a mail signs its owner in past all of them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from allauth.account.models import EmailAddress
from allauth.account.utils import filter_users_by_email
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.http import HttpRequest
from django.urls import reverse

from accounts import known_browsers
from chatproject.lib import rate_limits
from chatproject.lib.http import client_network
from chatproject.lib.rate_limits import RateLimited

if TYPE_CHECKING:
    from accounts.models import User


def count_attempt(request: HttpRequest, email: str) -> None:
    """Count an attempt to sign in, before the password is checked. Raises RateLimited.

    The account need not exist: the answers are the same. A page that asks a signed-in user for the
    password has the limit `password_checks` of the user, which others cannot use up.
    """
    if request.user.is_authenticated:
        return
    email = _normal(email)
    for browser in _known_browsers(request, email):
        with suppress(RateLimited):
            rate_limits.hit("sign_in_known", *browser, reported=False)
            return
    address = client_network(request)
    for name in _limits_by_address(request):
        rate_limits.check(name, address)
    rate_limits.hit("sign_in", address, email)
    rate_limits.hit("sign_in_account", email, reported=False)


def count_failure(request: HttpRequest) -> None:
    """Count a wrong password against the address.

    Only wrong ones, as many people may sign in from one address. Attempts that arrive at the same
    time may exceed the limit by their number.
    """
    for name in _limits_by_address(request):
        with suppress(RateLimited):
            rate_limits.hit(name, client_network(request))


def count_success(request: HttpRequest, email: str) -> None:
    """Forget the attempts of an owner who gave the right password.

    Those by account stay: others may have made them.
    """
    email = _normal(email)
    rate_limits.clear("sign_in", client_network(request), email)
    for browser in _known_browsers(request, email):
        rate_limits.clear("sign_in_known", *browser)


def forget_attempts(request: HttpRequest, user: User, **kwargs: Any) -> None:
    """Forget all attempts at an account whose owner has chosen a new password with a link."""
    confirmed = EmailAddress.objects.filter(user=user).values_list("email", flat=True)
    for email in {user.email, *confirmed}:
        count_success(request, email)
        rate_limits.clear("sign_in_account", _normal(email))
    rate_limits.clear("password_checks", user.pk)  # used up by a borrowed session


def count_reset(request: HttpRequest, email: str) -> None:
    """Count a request for a mail with a link to a new password. Raises RateLimited."""
    email, address = _normal(email), client_network(request)
    for browser in _known_browsers(request, email):
        rate_limits.hit("password_reset", *browser)
        return
    rate_limits.hit("password_reset_address", address)
    rate_limits.hit("password_reset", address, email)
    rate_limits.hit("password_reset_account", email, reported=False)


def _normal(email: str) -> str:
    return email.strip().lower()  # as the account is looked up


def _limits_by_address(request: HttpRequest) -> list[str]:
    names = ["sign_in_address"]
    target = request.POST.get(REDIRECT_FIELD_NAME) or request.GET.get(REDIRECT_FIELD_NAME) or ""
    if urlsplit(target).path.startswith(reverse("admin:index")):
        names.append("admin_sign_in")
    return names


def _known_browsers(request: HttpRequest, email: str) -> list[tuple[int, str]]:
    if not known_browsers.is_known(request):
        return []  # without a query, so the time does not depend on the account
    users = filter_users_by_email(email)
    tokens = ((user.pk, known_browsers.token_of(request, user.pk)) for user in users)
    return [(user_id, token) for user_id, token in tokens if token is not None]
