"""The page of a user's API keys: list, new, revoke."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.reauthentication import raise_if_reauthentication_required
from django import forms
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from accounts import api_keys
from accounts.models import ApiKey, Scope
from accounts.sso import confirmation
from billing.credits import CreditsFormField
from chatproject.lib import encryption, origins
from chatproject.lib.http import Request

# Where the session keeps a new key, encrypted, from the form to the page that shows it once.
NEW_KEY = "new_api_key"
KEYS = 200  # on the page, revoked and expired ones included

DAYS = {
    "30": gettext_lazy("In 30 days"),
    "90": gettext_lazy("In 90 days"),
    "365": gettext_lazy("In a year"),
    "": gettext_lazy("Never"),
}
CREDITS = forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"})


class KeyForm(forms.Form):
    """The terms of a new key."""

    name = forms.CharField(
        max_length=60,
        label=gettext_lazy("Name"),
        help_text=gettext_lazy("Such as the program that will use it."),
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    days = forms.ChoiceField(
        required=False,
        initial="90",
        label=gettext_lazy("Expires"),
        choices=list(DAYS.items()),
        widget=forms.Select(attrs={"class": "input"}),
    )
    scopes = forms.MultipleChoiceField(
        label=gettext_lazy("It may"),
        choices=Scope.choices,
        initial=[Scope.MODELS.value],
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": gettext_lazy("Choose at least one.")},
    )
    limit_month = CreditsFormField(
        required=False, label=gettext_lazy("Credits per month"), widget=CREDITS
    )
    limit_total = CreditsFormField(
        required=False, label=gettext_lazy("Credits in all"), widget=CREDITS
    )
    rate = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=100_000,
        label=gettext_lazy("Requests per minute"),
        widget=forms.TextInput(attrs={"inputmode": "numeric", "autocomplete": "off"}),
    )

    @property
    def terms(self) -> api_keys.Terms:
        """The terms that the form's valid values make."""
        given: dict[str, Any] = self.cleaned_data
        days = given["days"]
        return api_keys.Terms(
            name=given["name"],
            scopes=given["scopes"],
            expires_at=timezone.now() + timedelta(days=int(days)) if days else None,
            rate=given["rate"],
            limit_month=given["limit_month"],
            limit_total=given["limit_total"],
        )


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def keys(request: Request) -> HttpResponse:
    """Show the user's keys; make the one that a form asks for, after the password."""
    if request.method != "POST":
        new = request.session.pop(NEW_KEY, None)
        return _page(request, KeyForm(), new=_opened(new) if new else None)
    form = KeyForm(request.POST)
    if not form.is_valid():
        return _page(request, form, status=400)
    # A session may be borrowed, and a key outlives it.
    if refusal := confirmation.refusal(request, request.path):
        return refusal
    raise_if_reauthentication_required(request, app="allauth.account")
    try:
        key, secret = api_keys.create(request.user, form.terms)
    except api_keys.TooManyKeys:
        form.add_error(
            None,
            _("You have %(most)s keys, the most that are possible. Revoke one first.")
            % {"most": api_keys.MOST},
        )
        return _page(request, form, status=400)
    request.session[NEW_KEY] = encryption.encrypt(json.dumps({"id": key.pk, "secret": secret}))
    get_adapter(request).send_notification_mail(
        "account/email/api_key_created", request.user, {"name": key.name}
    )
    return redirect("api_keys")


def _opened(token: str) -> dict[str, Any] | None:
    """Return the new key of a session; None if the site's encryption key has changed meanwhile."""
    try:
        found: dict[str, Any] = json.loads(encryption.decrypt(token))
    except encryption.Undecryptable:
        return None
    return found


@require_POST
def revoke(request: Request, key_id: int) -> HttpResponse:
    """Revoke a key of the user."""
    key = get_object_or_404(ApiKey, pk=key_id, user=request.user)
    api_keys.revoke(key, by=request.user)
    messages.success(request, _("The key “%(name)s” is revoked.") % {"name": key.name})
    return redirect("api_keys")


def _page(
    request: Request, form: KeyForm, *, new: dict[str, Any] | None = None, status: int = 200
) -> HttpResponse:
    usable = list(api_keys.usable(request.user))
    ended = ApiKey.objects.filter(user=request.user).exclude(pk__in=[key.pk for key in usable])
    this_month = api_keys.month_of(timezone.now())
    for key in usable:
        if key.month != this_month:
            key.spent_in_month = 0
    context = {
        "form": form,
        "usable": usable,
        "ended": ended[: KEYS - len(usable)],
        "new": new,
        "address": origins.public_address(request, "/v1"),
        "page": "settings",
    }
    return render(request, "account/api_keys.html", context, status=status)
