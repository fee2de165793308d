"""The pages on which a user deletes the account, and restores it while that is possible."""

from __future__ import annotations

from allauth.account.internal.flows.reauthentication import raise_if_reauthentication_required
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import logout
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts.privacy import leaving
from accounts.sso import confirmation
from chatproject.lib import languages
from chatproject.lib.http import Request

# Where a session stores the user who has signed in to an account that is being deleted.
RESTORABLE = "restorable_user"


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def delete(request: Request) -> HttpResponse:
    """Show the consequences of deleting the account; request it, after the password."""
    status = 200
    problem = ""
    if request.method == "POST":
        if "understood" in request.POST:
            # A session may be borrowed.
            if refusal := confirmation.refusal(request, request.path):
                return refusal
            raise_if_reauthentication_required(request, app="allauth.account")
            try:
                made = leaving.request(request.user)
            except leaving.LastSuperuser:
                problem = _("You are the only superuser. Make another one first.")
                status = 409
            else:
                logout(request)
                day = languages.day(made.due_at, "j F Y")
                messages.success(
                    request,
                    _("Your account will be deleted on %(day)s. Until then, sign in to restore it.")
                    % {"day": day},
                )
                return redirect("account_login")
        else:
            problem = _("Confirm that you want to delete your account.")
            status = 400
    context = {"days": settings.ACCOUNT_DELETION_DAYS, "problem": problem, "page": "settings"}
    return render(request, "account/delete.html", context, status=status)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def restore(request: HttpRequest) -> HttpResponse:
    """Show how many days are left to restore the account; restore it.

    Only a session that has just proven the account's password gets here. A second factor is asked for by the
    sign-in that follows.
    """
    deletion = leaving.restorable(request.session.get(RESTORABLE, 0))
    if deletion is None:
        return redirect("account_login")
    if request.method == "POST":
        del request.session[RESTORABLE]
        if "keep_deletion" in request.POST:
            return redirect("account_login")
        try:
            leaving.restore(deletion.user)
        except leaving.NotRestorable:
            messages.error(request, _("Your account can no longer be restored."))
        else:
            messages.success(request, _("Your account is restored. Sign in to continue."))
        return redirect("account_login")
    context = {
        "days": leaving.days_left(deletion),
        "day": languages.day(deletion.due_at, "j F Y"),
        "email": deletion.user.email,
    }
    return render(request, "account/restore.html", context)
