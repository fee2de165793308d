"""Access to pages: all of them require a signed-in user, except the views named here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.auth.middleware import LoginRequiredMiddleware as DjangoMiddleware
from django.http import HttpRequest, HttpResponseBase, JsonResponse

# Names of the views that answer without a session. All others require one, even when a library
# marks them as public.
PUBLIC_VIEWS = frozenset(
    {
        "account_login",
        "account_signup",
        "account_logout",
        "account_inactive",
        "account_confirm_email",
        "account_email_verification_sent",
        "account_reset_password",
        "account_reset_password_done",
        "account_reset_password_from_key",
        "account_reset_password_from_key_done",
        "admin:login",
        "billing:packages_json",
        "billing:webhook",
        "health",
        "health_ready",
    }
)

NOT_SIGNED_IN = "You are not signed in. Sign in and try again."


class LoginRequiredMiddleware(DjangoMiddleware):
    """Redirects requests without a session to the sign-in page; API clients get a 401 in JSON."""

    def process_view(
        self,
        request: HttpRequest,
        view_func: Callable[..., HttpResponseBase],
        view_args: tuple[Any, ...],
        view_kwargs: dict[str, Any],
    ) -> HttpResponseBase | None:
        if request.resolver_match and request.resolver_match.view_name in PUBLIC_VIEWS:
            return None
        if request.user.is_authenticated:
            return None
        if request.accepts("application/json") and not request.accepts("text/html"):
            return JsonResponse({"code": "not_signed_in", "message": NOT_SIGNED_IN}, status=401)
        return self.handle_no_permission(request, view_func)
