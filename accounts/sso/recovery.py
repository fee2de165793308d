"""Sign-in of a superuser by a link of `manage.py sign_in_link`, while no identity provider works."""

from __future__ import annotations

from allauth.account.internal.flows.login import record_authentication
from allauth.account.utils import perform_login
from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import base36_to_int, int_to_base36
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts.models import User


class LinkTokens(PasswordResetTokenGenerator):
    """Tokens that end with the next sign-in, a new password, or PASSWORD_RESET_TIMEOUT."""

    key_salt = "accounts.sso.recovery"


tokens = LinkTokens()


def new_token(user: User) -> str:
    """Return the part of a link that signs a superuser in once."""
    return f"{int_to_base36(user.pk)}-{tokens.make_token(user)}"


def _user_of(text: str) -> User | None:
    key, _dash, token = text.partition("-")
    try:
        user = User.objects.filter(pk=base36_to_int(key), is_superuser=True).first()
    except (ValueError, OverflowError):
        return None
    return user if user is not None and tokens.check_token(user, token) else None


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def sign_in(request: HttpRequest, token: str) -> HttpResponse:
    """Ask before the sign-in, since programs that look at links must not use it up; then make it."""
    user = _user_of(token)
    if user is None:
        return render(request, "sso/link_ended.html", status=404)
    if request.method != "POST":
        return render(request, "sso/link.html", {"email": user.email})
    if request.user.is_authenticated:
        return redirect("chat:new")
    record_authentication(request, user, "link")
    response: HttpResponse = perform_login(request, user, email_verification="none")
    return response
