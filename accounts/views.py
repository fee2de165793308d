"""allauth's pages that change an account, where a session alone must not suffice.

A session may be borrowed: an unlocked computer, a stolen cookie. Adding, removing, confirming an
address and making it primary ask for the password, and a session of an account without a password
sets none: a link in a mail does.
"""

from __future__ import annotations

from typing import Any

from allauth.account import views
from allauth.account.internal.flows.password_reset import request_password_reset
from allauth.account.internal.flows.reauthentication import raise_if_reauthentication_required
from allauth.account.models import EmailAddress
from django.contrib.auth.views import redirect_to_login
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.generic import View

from accounts import sign_in_limits
from accounts.models import User
from accounts.sso import confirmation


class EmailView(views.EmailView):
    """The addresses of an account. allauth asks for the password before each change."""

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        user = request.user
        assert isinstance(user, User)
        if refusal := confirmation.refusal(request, request.path):
            return refusal
        # Without a primary address a change of it would be announced to none.
        addresses = EmailAddress.objects.filter(user=user)
        if not addresses.filter(primary=True).exists():
            addresses.filter(email__iexact=user.email).update(primary=True)
        return super().post(request, *args, **kwargs)


class ConfirmEmailView(views.ConfirmEmailView):
    """Confirmation by the link of a mail.

    An address besides the primary one also needs its owner's session and password: once confirmed, it
    may become the primary one.
    """

    def post(self, *args: Any, **kwargs: Any) -> HttpResponse:
        request = self.request
        address = self.get_object().email_address  # type: ignore[no-untyped-call] # allauth's
        if address.email.lower() != address.user.email.lower():
            if request.user.pk != address.user_id:
                return redirect_to_login(request.get_full_path())
            if refusal := confirmation.refusal(request, request.path):
                return refusal
            raise_if_reauthentication_required(request, app="allauth.account")
        with transaction.atomic():
            return super().post(*args, **kwargs)


class SetPasswordView(View):
    """The page of an account without a password, which mails a link to set one."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.user.has_usable_password():  # type: ignore[union-attr] # signed in: accounts.access
            return redirect("account_change_password")
        return super().dispatch(request, *args, **kwargs)

    def get(self, request: HttpRequest) -> HttpResponseBase:
        return render(request, "account/password_set.html")

    def post(self, request: HttpRequest) -> HttpResponseBase:
        assert isinstance(request.user, User)
        sign_in_limits.count_reset(request, request.user.email)
        request_password_reset(request, request.user.email, [request.user], None)
        return redirect("account_reset_password_done")
