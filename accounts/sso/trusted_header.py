"""Sign-in by the header of an authenticating proxy (TRUSTED_HEADER).

The server has moved the header of a trusted proxy into the request's scope (lib.server.identity_header), and has
dropped all others. A page signs its visitor in; sockets and the API need the session that this makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.login import record_authentication
from allauth.account.internal.flows.signup import complete_signup
from allauth.account.models import EmailAddress
from allauth.account.utils import perform_login
from allauth.core.exceptions import ImmediateHttpResponse
from django.conf import settings
from django.contrib.auth import logout
from django.core.exceptions import MiddlewareNotUsed, ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from accounts import claims, joining, sessions, signup
from accounts.access import PUBLIC_NAMESPACES, PUBLIC_VIEWS
from accounts.models import User
from chatproject.lib.server.identity_header import SCOPE_KEY

SESSION_KEY = "trusted_header"  # of the address by which the session was signed in
METHOD = "trusted_header"  # in the session's record of its sign-in


class TrustedHeaderMiddleware:
    """Signs in the person that the proxy names, and ends the session of another one."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        if not settings.TRUSTED_HEADER:
            raise MiddlewareNotUsed
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self._get_response(request)

    def process_view(
        self,
        request: HttpRequest,
        view_func: Callable[..., HttpResponseBase],
        view_args: tuple[Any, ...],
        view_kwargs: dict[str, Any],
    ) -> HttpResponseBase | None:
        match = request.resolver_match
        if match is None or match.namespace in PUBLIC_NAMESPACES:
            return None
        email = identity_of(request)
        signed_in_by = request.session.get(SESSION_KEY)
        if request.user.is_authenticated and signed_in_by is not None and signed_in_by != email:
            logout(request)
        if request.user.is_authenticated or match.view_name in PUBLIC_VIEWS or not email:
            return None
        if request.method not in ("GET", "HEAD") or not request.accepts("text/html"):
            return None
        try:
            return _sign_in(request, email)
        except ImmediateHttpResponse as error:
            response: HttpResponse = error.response
            return response


def identity_of(request: HttpRequest) -> str:
    """Return the e-mail address that the proxy names, in lower case; empty without a valid one."""
    email = str(getattr(request, "scope", {}).get(SCOPE_KEY, "")).lower()
    try:
        validate_email(email)
    except ValidationError:
        return ""
    return email


def _sign_in(request: HttpRequest, email: str) -> HttpResponse:
    target = request.get_full_path()
    user = User.objects.filter(email=email).first()
    if user is None:
        try:
            user = _new_user(request, email)
        except ValidationError:
            return joining.closed_page(request)
        except IntegrityError:  # by a request at the same time
            user = User.objects.get(email=email)
        else:
            _note(request, user, email)
            response: HttpResponse = complete_signup(request, user=user, redirect_url=target)
            return response
    _claim(user)
    _note(request, user, email)
    answer: HttpResponse = perform_login(request, user, redirect_url=target)
    return answer


def _note(request: HttpRequest, user: User, email: str) -> None:
    request.session[SESSION_KEY] = email
    record_authentication(request, user, METHOD)


def _new_user(request: HttpRequest, email: str) -> User:
    """Store a user with a confirmed address, by the rules of all sign-ups. Raises ValidationError."""
    adapter = get_adapter(request)
    adapter.is_open_for_signup(request)
    user = adapter.new_user(request)
    assert isinstance(user, User)
    user.email = str(adapter.clean_email(email))
    user.set_unusable_password()
    with transaction.atomic():
        user.save()
        EmailAddress.objects.create(user=user, email=user.email, verified=True, primary=True)
        joining.finish(request, user)
        if not user.awaits_approval:  # else the approval does it
            signup.entitle(user, user.email)
    return user


def _claim(user: User) -> None:
    """Make an account with an unconfirmed address its owner's alone: another person may have made it."""
    address = EmailAddress.objects.filter(user=user, email__iexact=user.email).first()
    if address is not None and address.verified:
        return
    claims.end_access_of_maker(user)
    with transaction.atomic():
        user.set_unusable_password()
        user.save(update_fields=["password"])
        EmailAddress.objects.filter(user=user).exclude(email__iexact=user.email).delete()
        sessions.end_all(user)
        signup.approve(user)
