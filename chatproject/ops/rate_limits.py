"""The limits of pages, and the answer to a request that exceeds one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.template import loader
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.cache import never_cache

from accounts import sign_in_limits
from accounts.models import User
from billing.metering import plan_limits
from chatproject.lib import rate_limits
from chatproject.lib.http import client_network
from chatproject.lib.mail import outbox
from chatproject.lib.rate_limits import RateLimited, Standing

# Limits by the name of the view. They count by user, and for visitors by address.
LIMITS = {
    "billing:receipt": "receipts",
    "billing:order": "orders",
    "billing:order_return": "orders",
    "billing:history_csv": "exports",
    "billing:usage_csv": "exports",
    "account_invitation": "invitations",
    "socialaccount_callback": "provider_sign_ins",
    "chat:estimate": "estimates",
    "chat:export": "exports",
    "chat:export_file": "exports",
    "chat:print": "exports",
    "chat:public": "public_pages",
    "chat:public_statistics": "public_pages",
    "chat:public_file": "public_files",
    "chat:public_thumbnail": "public_files",
    "chat:statistics_card": "public_files",
    "chat:report_public": "public_pages",
    "chat:search": "searches",
    "chat:search_results": "searches",
    "chat:chart_picture": "pictures",
}
# The same for requests that change something. `messages` is counted by chat.runs.admission, which
# sockets use, too; `promo_codes` by the view, which shows the refusal beside the code.
LIMITS_OF_POSTS = {
    "account_signup": "sign_up",
    "socialaccount_begin": "provider_sign_ins",
    "api_keys": "api_keys",
    "account_email": "email_changes",
    "account_reauthenticate": "password_checks",
    "account_change_password": "password_checks",
    "account_set_password": "password_checks",
    "billing:buy": "checkouts",
    "billing:pay": "checkouts",
    "billing:refund": "checkouts",
    "chat:export_all": "full_exports",
    "chat:data": "full_exports",
    "chat:attach": "uploads",
    "chat:import": "imports",
    "chat:documents": "documents",
    "chat:retry_document": "documents",
    "chat:insight_category": "insights",
    "chat:retry_insight": "insights",
    "chat:report": "reports",
    "chat:report_public": "link_reports",
    "chat:new_assistant": "assistants",
    "chat:edit_assistant": "assistants",
    "chat:add_device": "devices",
    "chat:notes": "notes",
    "chat:note": "notes",
    "chat:projects": "projects",
    "chat:webhooks": "webhooks",
    "chat:webhook": "webhooks",
    "chat:webhook_secret": "webhooks",
    "chat:test_webhook": "webhooks",
    "chat:resend_delivery": "webhooks",
    "chat:share": "shares",
    "chat:share_statistics": "shares",
    "chat:shared_by_me": "shares",
    "chat:copy_shared": "copies",
    "chat:copy_public": "copies",
}

SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}

# The reason of a refusal, by limit; all others have the first sentence.
TOO_OFTEN = gettext_lazy("You sent too many requests.")
REASONS = {
    "sign_in": gettext_lazy("There were too many attempts to sign in to this account from here."),
    "sign_in_address": gettext_lazy("There were too many attempts to sign in from here."),
    "admin_sign_in": gettext_lazy("There were too many attempts to sign in from here."),
    "sign_in_account": gettext_lazy("There were too many attempts to sign in to this account."),
    "password_reset": gettext_lazy(
        "Several mails with a link are on their way. Use the newest one."
    ),
    "password_reset_account": gettext_lazy(
        "Several mails with a link are on their way. Use the newest one."
    ),
    "password_checks": gettext_lazy("The password was checked too often."),
    "codes": gettext_lazy("The code was checked too often."),
    "passkeys": gettext_lazy("There were too many attempts to sign in from here."),
    "provider_sign_ins": gettext_lazy("There were too many attempts to sign in from here."),
}
# Limits past which a new password leads, since a link in a mail signs its owner in.
RESET_HELPS = {"sign_in", "sign_in_address", "admin_sign_in", "sign_in_account"}


class RateLimitMiddleware:
    """Counts requests by LIMITS and LIMITS_OF_POSTS; answers RateLimited of any view with 429.

    The answer to a request that counts for a limit, here or in its view, has the headers RateLimit-Limit,
    RateLimit-Remaining and RateLimit-Reset.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        with rate_limits.reporting() as standings:
            response = self._get_response(request)
        if standings and "RateLimit-Limit" not in response:
            # Of several limits, the one that refuses the next request first.
            tightest = min(standings, key=lambda one: (one.remaining, -one.reset))
            for header, value in tightest.headers().items():
                response[header] = value
        return response

    def process_view(
        self,
        request: HttpRequest,
        view_func: Callable[..., HttpResponseBase],
        view_args: tuple[Any, ...],
        view_kwargs: dict[str, Any],
    ) -> HttpResponse | None:
        match = request.resolver_match
        view = match.view_name if match else ""
        is_post = request.method not in SAFE_METHODS
        name = (LIMITS_OF_POSTS.get(view) if is_post else None) or LIMITS.get(view)
        try:
            if name is not None:
                user = request.user
                if isinstance(user, User):
                    limit = plan_limits.limit_of(name, user.plan_id)
                    rate_limits.hit(name, user.pk, limit=limit)
                else:
                    rate_limits.hit(name, client_network(request))
            if view == "account_reset_password" and is_post:
                sign_in_limits.count_reset(request, request.POST.get("email", ""))
        except RateLimited as error:
            return too_many_requests(request, error)
        return None

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if isinstance(exception, RateLimited):
            return too_many_requests(request, exception)
        return None


@never_cache
def too_many_requests(request: HttpRequest, error: RateLimited) -> HttpResponse:
    """Return 429 with Retry-After: JSON for programs, a page for people."""
    reason = REASONS.get(error.name, TOO_OFTEN)
    message = f"{reason} {advice(error.retry_after)}"
    response: HttpResponse
    if request.accepts("text/html"):
        context = {
            "message": message,
            "reset_helps": error.name in RESET_HELPS,
            "has_mail": outbox.is_configured(),
            "retry_after": error.retry_after,
            "request": request,
        }
        response = HttpResponse(loader.render_to_string("429.html", context), status=429)
    else:
        body = {"code": "rate_limited", "message": message, "retry_after": error.retry_after}
        response = JsonResponse(body, status=429)
    response["Retry-After"] = str(error.retry_after)
    for header, value in Standing(error.amount, 0, error.retry_after).headers().items():
        response[header] = value
    return response


def advice(seconds: int) -> str:
    """Return when to try again, in words and rounded up: "Try again in 5 minutes."."""
    if seconds > 3600:
        count = math.ceil(seconds / 3600)
        text = ngettext("Try again in %(count)s hour.", "Try again in %(count)s hours.", count)
    elif seconds > 60:
        count = math.ceil(seconds / 60)
        text = ngettext("Try again in %(count)s minute.", "Try again in %(count)s minutes.", count)
    else:
        count = seconds
        text = ngettext("Try again in %(count)s second.", "Try again in %(count)s seconds.", count)
    return text % {"count": count}
