"""Confirmation before a change, for users without a password and without a second factor."""

from __future__ import annotations

import time
from urllib.parse import urlencode

from allauth.account import app_settings
from allauth.account.internal.flows.login import get_authentication_records
from allauth.account.internal.flows.reauthentication import get_reauthentication_flows
from allauth.socialaccount.models import SocialAccount
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from accounts.models import User
from accounts.sso import providers
from accounts.sso.trusted_header import SESSION_KEY as BY_HEADER


def refusal(request: HttpRequest, target: str) -> HttpResponse | None:
    """Return the page that such a user must visit before a change, and then goes on to `target`; else None.

    allauth asks these users for nothing. They sign in at the provider again, or set a password by a mailed link. A
    user with a password or a factor is asked for it by `raise_if_reauthentication_required`.
    """
    user = request.user
    assert isinstance(user, User)  # accounts.access refuses visitors
    if get_reauthentication_flows(user) or request.session.get(BY_HEADER):
        return None
    keys = [one.key for one in providers.configured()]
    if not SocialAccount.objects.filter(user=user, provider__in=keys).exists():
        return redirect("account_set_password")
    records = get_authentication_records(request, user)
    newest = max((one["at"] for one in records if one.get("provider") in keys), default=0.0)
    if time.time() - newest < app_settings.REAUTHENTICATION_TIMEOUT:
        return None
    return redirect(f"{reverse('socialaccount_confirm')}?{urlencode({'next': target})}")
