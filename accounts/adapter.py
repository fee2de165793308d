"""Our answers to allauth's questions about signing in and up."""

from __future__ import annotations

from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.core.exceptions import ImmediateHttpResponse
from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext, gettext_lazy

from accounts import joining, known_browsers, sessions, sign_in_limits
from accounts.leaving_pages import RESTORABLE
from accounts.privacy import leaving
from accounts.sso import trusted_header
from chatproject.lib import languages, origins
from chatproject.lib.http import client_address


class AccountAdapter(DefaultAccountAdapter):
    """Counts attempts to sign in by RATE_LIMITS, in place of allauth's own limits; closes sign-up."""

    error_messages = DefaultAccountAdapter.error_messages | {
        "duplicate_email": gettext_lazy("This e-mail address already belongs to your account."),
        "email_password_mismatch": gettext_lazy(
            "The e-mail address or the password is not correct."
        ),
        "email_taken": gettext_lazy("There is already an account with this e-mail address."),
        "max_email_addresses": gettext_lazy("You cannot add more than %d e-mail addresses."),
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """Return True, or answer with the page of a closed sign-up."""
        if not joining.is_open(request):
            raise ImmediateHttpResponse(joining.closed_page(request))
        return True

    def get_logout_redirect_url(self, request: HttpRequest) -> str:
        """Return the sign-out of the proxy for a session that it has signed in."""
        if request.session.get(trusted_header.SESSION_KEY) and settings.TRUSTED_HEADER_SIGN_OUT_URL:
            return settings.TRUSTED_HEADER_SIGN_OUT_URL
        url: str = super().get_logout_redirect_url(request)
        return url

    def new_user(self, request: HttpRequest) -> AbstractBaseUser:
        """Return a user who may have to wait for approval, however the account is made."""
        user: AbstractBaseUser = super().new_user(request)
        joining.begin(request, user)
        return user

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Send a mail in the language of its recipient; of the page, to an address without a user.

        allauth makes the links by the Host of the request; they get the site's own address.
        """
        links = {
            name: origins.public_address(self.request, value)
            for name, value in context.items()
            if name.endswith("_url") and self.request is not None
        }
        context = context | links
        user = context.get("user")
        code = getattr(user, "language", "") or languages.active()
        with languages.use(code):
            super().send_mail(template_prefix, email, context)

    def send_notification_mail(
        self,
        template_prefix: str,
        user: AbstractBaseUser,
        context: dict[str, Any] | None = None,
        email: str | None = None,
    ) -> None:
        """Send a mail about a change of an account, in the language of its user."""
        context = {"user": user, **(context or {})}
        super().send_notification_mail(template_prefix, user, context, email)

    def get_http_user_agent(self, request: HttpRequest) -> str:
        """Return browser and system for a mail, as the list of sessions names them."""
        agent: str = super().get_http_user_agent(request)
        return sessions.device(" ".join(agent.split())) or gettext("Unknown browser")

    def get_client_ip(self, request: HttpRequest) -> str:
        return client_address(request) or gettext("unknown")

    def respond_user_inactive(self, request: HttpRequest, user: AbstractBaseUser) -> HttpResponse:
        """Lead the owner of an account that is being deleted, or that waits for approval, to its page."""
        if getattr(user, "awaits_approval", False):
            return redirect("account_waiting")
        if leaving.restorable(user.pk) is None:
            response: HttpResponse = super().respond_user_inactive(request, user)
            return response
        request.session[RESTORABLE] = user.pk
        return redirect("account_restore")

    def clean_password(self, password: str, user: AbstractBaseUser | None = None) -> str:
        """Return an acceptable password. Raises ValidationError with the first rule that it breaks."""
        try:
            cleaned: str = super().clean_password(password, user)
        except ValidationError as error:
            raise ValidationError(error.error_list[:1]) from None
        return cleaned

    def pre_authenticate(self, request: HttpRequest, **credentials: Any) -> None:
        sign_in_limits.count_attempt(request, credentials.get("email", ""))

    def authenticate(self, request: HttpRequest, **credentials: Any) -> AbstractBaseUser | None:
        user: AbstractBaseUser | None = super().authenticate(request, **credentials)
        if user is not None:
            sign_in_limits.count_success(request, credentials.get("email", ""))
        return user

    def authentication_failed(self, request: HttpRequest, **credentials: Any) -> None:
        sign_in_limits.count_failure(request)

    def login(self, request: HttpRequest, user: AbstractBaseUser) -> None:
        # Before the sign-in is stored in the user's row, and in the request of `post_login`: a second
        # factor or a confirmation comes in a request after that of the password.
        request.is_first_sign_in = user.last_login is None  # type: ignore[attr-defined]
        super().login(request, user)

    def post_login(
        self, request: HttpRequest, user: AbstractBaseUser, **options: Any
    ) -> HttpResponse:
        response: HttpResponse = super().post_login(request, user, **options)
        is_new = known_browsers.token_of(request, user.pk) is None
        if is_new and not options["signup"] and not request.is_first_sign_in:  # type: ignore[attr-defined]
            self.send_notification_mail(
                "account/email/new_sign_in",
                user,
                {"sessions_url": reverse("usersessions_list")},
            )
        known_browsers.remember(request, response, user.pk)
        return response
