"""Access to pages: all of them require a signed-in user, except the views named here.

Staff sign in on the same page as all users, with its limits and factors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.contrib.auth.middleware import LoginRequiredMiddleware as DjangoMiddleware
from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache

from accounts import sessions
from accounts.mfa import factors
from chatproject.lib import log_context

# Names of the views that answer without a session. All others require one, even when a library
# marks them as public.
PUBLIC_VIEWS = frozenset(
    {
        "account_login",
        "account_signup",
        "account_sign_in_link",
        "account_logout",
        "account_inactive",
        "account_restore",
        "account_invitation",
        "account_decline_invitation",
        "account_waiting",
        "account_confirm_email",
        "account_email_verification_sent",
        "account_reset_password",
        "account_reset_password_done",
        "account_reset_password_from_key",
        "account_reset_password_from_key_done",
        "mfa_authenticate",
        "mfa_login_webauthn",
        "socialaccount_begin",
        "socialaccount_callback",
        "socialaccount_signup",
        "admin_login",
        "visitor_language",
        "billing:packages_json",
        "billing:webhook",
        "chat:public",
        "chat:public_file",
        "chat:public_statistics",
        "chat:public_thumbnail",
        "chat:report_public",
        "chat:statistics_card",
        "chat:terms",
        "chat:terms_version",
        "chat:privacy",
        "chat:privacy_version",
        "chat:imprint",
        "chat:imprint_version",
        "manifest",
        "offline",
        "service_worker",
    }
)

# Namespaces of addresses whose views authenticate each request themselves: chat/api/rest/auth.py.
PUBLIC_NAMESPACES = frozenset({"rest"})

# The views of passwords and of passkeys in their place, which PASSWORD_SIGN_IN=0 closes; of `account_login` the form.
PASSWORD_VIEWS = frozenset(
    {
        "account_signup",
        "account_change_password",
        "account_set_password",
        "account_reset_password",
        "account_reset_password_done",
        "account_reset_password_from_key",
        "account_reset_password_from_key_done",
        "mfa_login_webauthn",
    }
)

# The views that lead to a second factor, for members of staff who must have one and have none.
FACTOR_VIEWS = frozenset(
    {
        "mfa_index",
        "mfa_activate_totp",
        "mfa_add_webauthn",
        "account_reauthenticate",
        "account_set_password",
        "socialaccount_confirm",
    }
)

NOT_SIGNED_IN = gettext_lazy("You are not signed in. Sign in and try again.")
NO_FACTOR = gettext_lazy("Members of staff need a second factor. Set one up and try again.")


class LoginRequiredMiddleware(DjangoMiddleware):
    """Redirects requests without a session to the sign-in page; API clients get a 401 in JSON.

    Members of staff without the second factor that they must have reach only the page that sets one up.
    """

    def process_view(
        self,
        request: HttpRequest,
        view_func: Callable[..., HttpResponseBase],
        view_args: tuple[Any, ...],
        view_kwargs: dict[str, Any],
    ) -> HttpResponseBase | None:
        match = request.resolver_match
        if not settings.PASSWORD_SIGN_IN and match and _is_of_passwords(request, match.view_name):
            return redirect("account_login")
        if match and (match.view_name in PUBLIC_VIEWS or match.namespace in PUBLIC_NAMESPACES):
            return None
        wants_json = request.accepts("application/json") and not request.accepts("text/html")
        if request.user.is_authenticated:
            log_context.bind(user_id=request.user.pk)
            sessions.note_seen(request)
            view = request.resolver_match.view_name if request.resolver_match else ""
            if view in FACTOR_VIEWS or not factors.is_missing(request.user):
                return None
            if wants_json:
                return JsonResponse({"code": "no_second_factor", "message": NO_FACTOR}, status=403)
            return redirect("mfa_index")
        if wants_json:
            return JsonResponse({"code": "not_signed_in", "message": NOT_SIGNED_IN}, status=401)
        return self.handle_no_permission(request, view_func)


def _is_of_passwords(request: HttpRequest, view: str) -> bool:
    return view in PASSWORD_VIEWS or (view == "account_login" and request.method == "POST")


def admin_shortcut(request: HttpRequest, row: str) -> HttpResponse:
    """Answer 404 in place of the admin's redirect of any member of staff to the page of any row.

    The address of a page may be a secret, such as that of a public link.
    """
    raise Http404


@never_cache
def admin_login(request: HttpRequest) -> HttpResponse:
    """Send visitors of the admin to the site's sign-in page, and others to a page that helps them.

    In place of the admin's own view, which checks passwords without limits: also those that a
    signed-in member of staff posts for another account.
    """
    target = request.GET.get(REDIRECT_FIELD_NAME, "")
    # Without the slash `redirect` would look for a view of this name.
    if not target.startswith("/") or not url_has_allowed_host_and_scheme(
        target, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    ):
        target = reverse("admin:index")
    if not request.user.is_authenticated:
        return redirect_to_login(target)
    if request.user.is_staff and request.user.is_active:
        return redirect(target)
    return render(request, "account/not_staff.html", {"next": target}, status=403)
