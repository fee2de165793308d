"""GitHub: OAuth 2 with PKCE, and its API in place of an ID token."""

from __future__ import annotations

from urllib.parse import urlencode

from accounts.sso import http
from accounts.sso.errors import SignInFailed
from accounts.sso.identity import Identity
from accounts.sso.openid import challenge_of
from accounts.sso.providers import IdentityProvider

ACCEPT = "application/vnd.github+json"


def authorization_url(
    provider: IdentityProvider, *, redirect_uri: str, state: str, verifier: str
) -> str:
    """Return the address at which a browser begins a sign-in."""
    query = {
        "client_id": provider.client_id,
        "redirect_uri": redirect_uri,
        "scope": "read:user user:email",
        "state": state,
        "code_challenge": challenge_of(verifier),
        "code_challenge_method": "S256",
    }
    return f"{provider.address}/login/oauth/authorize?{urlencode(query)}"


def identify(
    provider: IdentityProvider, *, code: str, redirect_uri: str, verifier: str
) -> Identity:
    """Return the owner of a code, with the primary address. Raises SignInFailed."""
    form = {
        "client_id": provider.client_id,
        "client_secret": provider.client_secret,
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": verifier,
    }
    status, answer = http.post(f"{provider.address}/login/oauth/access_token", form)
    token = answer.get("access_token")
    if status != 200 or not isinstance(token, str) or not token:
        error = str(answer.get("error", ""))[:40]
        cause = "expired" if error == "bad_verification_code" else "refused"
        raise SignInFailed(cause, f"the code was refused: HTTP {status} {error}")
    api = "https://api.github.com" if provider.address == "https://github.com" else ""
    api = api or f"{provider.address}/api/v3"  # GitHub Enterprise Server
    person = http.get(f"{api}/user", token=token, accept=ACCEPT)
    addresses = http.get(f"{api}/user/emails", token=token, accept=ACCEPT)
    if not isinstance(person, dict) or not isinstance(person.get("id"), int):
        raise SignInFailed("invalid", "the API names no user")
    rows = (
        [one for one in addresses if isinstance(one, dict)] if isinstance(addresses, list) else []
    )
    primary = next((one for one in rows if one.get("primary") is True), {})
    return Identity(
        uid=str(person["id"]),
        email=str(primary.get("email") or ""),
        is_verified=primary.get("verified") is True,
        name=str(person.get("name") or person.get("login") or ""),
    )
