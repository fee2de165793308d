"""Identity providers: whether this machine reaches them, and the addresses that they must know."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from django.conf import settings
from django.urls import reverse

from accounts.sso import http, openid, providers
from accounts.sso.errors import SignInFailed
from accounts.sso.providers import IdentityProvider
from chatproject.ops.doctor.checkup import Check, examine
from chatproject.ops.doctor.finding import Finding, ok, problem, warning

PART = "sign-in"

ADVICE = {
    "unreachable": "Start it, allow the connection in the firewall, or correct {address}.",
    "refused": "Correct {address}: the document is at {address}/.well-known/openid-configuration.",
    "invalid": "Write {address} as the discovery document names its issuer.",
}


def check() -> Iterator[Finding]:
    """Ask all identity providers of the settings at the same time; without one yield nothing."""
    found = providers.configured()
    seconds = 2 * http.SECONDS + 1
    yield from examine([Check(PART, partial(_ask, one), seconds=seconds) for one in found])
    if settings.TRUSTED_HEADER:
        yield ok(
            PART,
            f"{settings.TRUSTED_HEADER} of {', '.join(map(str, settings.TRUSTED_HEADER_PROXIES))}"
            " signs users in; those addresses must drop the header of their own clients",
        )


def _ask(provider: IdentityProvider) -> Iterator[Finding]:
    path = reverse("socialaccount_callback", args=[provider.key])
    redirect = f"its redirect URI is {settings.SITE_URL}{path}"
    variable = {"oidc": "OIDC_ISSUER", "github": "GITHUB_URL"}.get(provider.key, "the network")
    if not settings.SITE_URL:
        yield warning(
            PART,
            f"{provider.name}: SITE_URL is not set, so its redirect URI is not known",
            f"Set SITE_URL; the redirect URI is that address and {path}.",
        )
        redirect = "it answers"
    try:
        if provider.is_github:
            http.reach(f"{provider.address}/login/oauth/authorize")
        else:
            openid.read(provider.address)
    except SignInFailed as error:
        advice = ADVICE.get(error.code, ADVICE["invalid"]).format(address=variable)
        yield problem(PART, f"{provider.name}: {error.reason}", advice)
        return
    yield ok(PART, f"{provider.name}: {redirect}")
