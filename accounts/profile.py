"""The page of a user's profile."""

from __future__ import annotations

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts.forms import ProfileForm
from accounts.models import User
from billing.ledger import plans
from billing.ledger.signup import account_of
from chatproject.lib.http import Request


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def profile(request: Request) -> HttpResponse:
    """Show the profile; store the one that a form posts."""
    form = ProfileForm(
        request.POST if request.method == "POST" else None,
        initial={"display_name": request.user.display_name},
    )
    if form.is_valid():
        # `save` would send `access_changed`, which closes sockets.
        User.objects.filter(pk=request.user.pk).update(**form.cleaned_data)
        messages.success(request, _("Your settings are saved."))
        return redirect("profile")
    context = {
        "form": form,
        "page": "settings",
        "consents": request.user.consents.all(),
        "plan": plans.plan_of(account_of(request.user.pk)) if settings.BILLING else None,
    }
    return render(request, "settings/profile.html", context, status=400 if form.errors else 200)
