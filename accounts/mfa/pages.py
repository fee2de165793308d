"""The pages of second factors: allauth's views, with the rules and the words of this site."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.reauthentication import raise_if_reauthentication_required
from allauth.account.models import EmailAddress
from allauth.mfa.base import views as base
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes import views as recovery_codes
from allauth.mfa.totp import views as totp
from allauth.mfa.totp.internal import flows as totp_flows
from allauth.mfa.webauthn import views as webauthn
from allauth.mfa.webauthn.internal import flows as webauthn_flows
from django.contrib import messages
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts.mfa import factors
from accounts.mfa.forms import forget_secret
from accounts.models import User
from accounts.sso import confirmation
from chatproject.lib import rate_limits
from chatproject.lib.http import Request, client_network


@never_cache
def security(request: Request) -> HttpResponse:
    """Show the factors of the user, and the ways to more."""
    user = request.user
    found = list(Authenticator.objects.filter(user=user).order_by("pk"))
    by_type = {factor.type: factor for factor in found}
    codes = by_type.get(Authenticator.Type.RECOVERY_CODES)
    context = {
        "totp": by_type.get(Authenticator.Type.TOTP),
        "passkeys": [
            {"factor": factor, "name": factor.wrap().name}
            for factor in found
            if factor.type == Authenticator.Type.WEBAUTHN
        ],
        "codes": codes,
        "codes_left": len(codes.wrap().get_unused_codes()) if codes else 0,
        "must_have": factors.must_have(user),
        "page": "settings",
    }
    if factors.is_missing(user):
        return render(request, "mfa/required.html", context)
    return render(request, "mfa/index.html", context)


def _refusal(request: HttpRequest) -> HttpResponse | None:
    """Return the page that a user must visit before a factor can be added; None if there is none.

    The primary address must be confirmed: another person may have made the account with it, and a factor of that person
    would lock out the owner of the address, also after a reset of the password.
    """
    user = request.user
    assert isinstance(user, User)  # accounts.access refuses visitors
    if refusal := confirmation.refusal(request, request.path):
        return refusal
    confirmed = EmailAddress.objects.filter(user=user, verified=True)
    if not confirmed.filter(email__iexact=user.email).exists():
        messages.error(request, _("Confirm your e-mail address first."))
        return redirect("mfa_index")
    return None


class ActivateView(totp.ActivateTOTPView):
    """An authenticator app is set up."""

    template_name = "mfa/activate.html"

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return _refusal(request) or super().dispatch(request, *args, **kwargs)

    def get_form_kwargs(self) -> dict[str, Any]:
        kwargs: dict[str, Any] = super().get_form_kwargs()
        return kwargs | {"session": self.request.session}

    def form_valid(self, form: Any) -> HttpResponse:
        response: HttpResponse = super().form_valid(form)
        forget_secret(self.request)
        return response


class AddPasskeyView(webauthn.AddWebAuthnView):
    """A passkey is added: as second factor and, if the device can verify its user, in place of the password."""

    template_name = "mfa/add_passkey.html"

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return _refusal(request) or super().dispatch(request, *args, **kwargs)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context: dict[str, Any] = super().get_context_data(**kwargs)
        options = json.loads(json.dumps(context["js_data"]["creation_options"], default=dict))
        options["publicKey"]["authenticatorSelection"] |= {
            "residentKey": "preferred",
            "requireResidentKey": False,
            "userVerification": "preferred",
        }
        return context | {"options": json.dumps(options)}


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def remove(request: Request, factor_id: int) -> HttpResponse:
    """Remove a factor, after a question and the password."""
    factor = get_object_or_404(factors.own_factors(request.user), pk=factor_id)
    factor.user = request.user
    raise_if_reauthentication_required(request, app="allauth.mfa")
    is_last = not factors.own_factors(request.user).exclude(pk=factor.pk).exists()
    is_allowed = factors.FactorAdapter().can_delete_authenticator(factor)
    if request.method == "POST" and is_allowed:
        if factor.type == Authenticator.Type.TOTP:
            totp_flows.deactivate_totp(request, factor)
        else:
            webauthn_flows.remove_authenticator(request, factor)
        return redirect("mfa_index")
    refusal = (
        "" if is_allowed else factors.FactorAdapter.error_messages["cannot_delete_authenticator"]
    )
    context = {
        "factor": factor,
        "is_app": factor.type == Authenticator.Type.TOTP,
        "name": str(factor),
        "is_last": is_last,
        "refusal": refusal,
    }
    return render(
        request, "mfa/remove.html", context, status=409 if request.method == "POST" else 200
    )


class RecoveryCodesView(recovery_codes.ViewRecoveryCodesView):
    """The recovery codes, shown once; the file to download is part of the page, so it needs no second request."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context: dict[str, Any] = super().get_context_data(**kwargs)
        text = "\n".join(context["unused_codes"]) + "\n"
        return context | {"file": f"data:text/plain;charset=utf-8,{quote(text)}"}


class AuthenticateView(base.AuthenticateView):
    """The second step of signing in."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context: dict[str, Any] = super().get_context_data(**kwargs)
        return context | _passkey(context, self.stage.login.user)


class ConfirmPasskeyView(webauthn.ReauthenticateWebAuthnView):
    """The passkey of a signed-in user, before a change."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context: dict[str, Any] = super().get_context_data(**kwargs)
        return context | _passkey(context, self.request.user)

    def form_invalid(self, form: Any) -> HttpResponse:
        for error in form.errors.get("credential", []):
            get_adapter().add_message(self.request, messages.ERROR, message=error)
        return redirect(self.request.get_full_path())


def _passkey(context: dict[str, Any], user: User | AnonymousUser) -> dict[str, Any]:
    """Return the options for the passkeys of a user, as the browser's interface takes them; none without a passkey."""
    factors_of_user = Authenticator.objects.filter(user_id=user.pk)
    types = set(factors_of_user.values_list("type", flat=True))
    options = context.get("js_data", {}).get("request_options")
    has_passkey = Authenticator.Type.WEBAUTHN in types and options is not None
    return {
        "options": json.dumps(options, default=dict) if has_passkey else "",
        "has_app": Authenticator.Type.TOTP in types,
    }


class PasskeySignInView(webauthn.LoginWebAuthnView):
    """Signing in by a passkey alone: a GET returns the options as JSON, a POST has the passkey's answer."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.method == "POST":
            rate_limits.hit("passkeys", client_network(request))
        response: HttpResponseBase = super().dispatch(request, *args, **kwargs)
        return response
