"""OpenID Connect: the authorization code flow with PKCE, and the checks of the ID token.

allauth's client checks no nonce, no signature of a token that it has fetched itself, and not that the userinfo
belongs to the token. So the protocol is here, on PyJWT; accounts and sign-in stay allauth's.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import jwt
from django.conf import settings
from django.utils.crypto import constant_time_compare

from accounts.sso import http
from accounts.sso.errors import SignInFailed
from accounts.sso.identity import Identity
from accounts.sso.providers import IdentityProvider

WELL_KNOWN = "/.well-known/openid-configuration"
# Of public keys alone: with `none` or an HMAC of the public key everyone could sign.
ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
LEEWAY = 60  # seconds that the clocks may differ
DOCUMENT_SECONDS = 3600.0  # for which a process keeps the addresses of an issuer
KEYS_SECONDS = 600.0  # and its keys
# An unknown key is looked up again, since an issuer replaces its keys; not more often than this.
ROTATION_SECONDS = 10.0
# Asks for a sign-in that is made now; the ID token then has its time.
FRESH = {"prompt": "login", "max_age": "0"}
MAX_SUBJECT = 191  # characters of SocialAccount.uid


@dataclass(slots=True)
class Issuer:
    """The addresses of an issuer and its keys, as this process last read them."""

    document: dict[str, Any]
    read_at: float
    keys: list[dict[str, Any]] = field(default_factory=list)
    keys_read_at: float = float("-inf")


_issuers: dict[str, Issuer] = {}
_lock = threading.Lock()


def forget() -> None:
    """Read all documents again at their next use."""
    with _lock:
        _issuers.clear()


def discover(address: str) -> Issuer:
    """Return the issuer with an address; its document is kept for an hour. Raises SignInFailed."""
    known = _issuers.get(address)
    if known is not None and time.monotonic() - known.read_at < DOCUMENT_SECONDS:
        return known
    try:
        found = Issuer(read(address), time.monotonic())
    except SignInFailed:
        if known is not None:
            return known  # older than an hour, and most likely still right
        raise
    with _lock:
        _issuers[address] = found
    return found


def read(address: str) -> dict[str, Any]:
    """Read the discovery document of an issuer, and check its addresses. Raises SignInFailed."""
    document = http.get(f"{address.rstrip('/')}{WELL_KNOWN}")
    if not isinstance(document, dict):
        raise SignInFailed("invalid", "the discovery document is not an object")
    if str(document.get("issuer", "")).rstrip("/") != address.rstrip("/"):
        named = str(document.get("issuer", ""))[:200]
        raise SignInFailed("invalid", f"the discovery document names another issuer: {named!r}")
    for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
        parts = urlsplit(str(document.get(name, "")))
        is_plain = parts.scheme == "http" and urlsplit(address).scheme == "http"
        if not parts.hostname or not (parts.scheme == "https" or is_plain):
            raise SignInFailed("invalid", f"the discovery document has no usable {name}")
    return document


def challenge_of(verifier: str) -> str:
    """Return the PKCE challenge (S256) of a verifier."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def new_secrets() -> dict[str, str]:
    """Return the verifier and the nonce of a sign-in, which the session keeps."""
    return {"verifier": secrets.token_urlsafe(48), "nonce": secrets.token_urlsafe(24)}


def authorization_url(
    provider: IdentityProvider,
    *,
    redirect_uri: str,
    state: str,
    nonce: str,
    verifier: str,
    is_again: bool = False,
) -> str:
    """Return the address at which a browser begins a sign-in. Raises SignInFailed.

    `is_again` asks the issuer for a new sign-in of a person whom it knows already.
    """
    endpoint = str(discover(provider.address).document["authorization_endpoint"])
    scopes = ["openid", "profile", "email"]
    if provider.key == "oidc":
        scopes += [one for one in settings.OIDC_SCOPES if one not in scopes]
    query = {
        "response_type": "code",
        "client_id": provider.client_id,
        "redirect_uri": redirect_uri,
        "scope": " ".join(scopes),
        "state": state,
        "nonce": nonce,
        "code_challenge": challenge_of(verifier),
        "code_challenge_method": "S256",
    }
    if is_again:
        # Google has no sign-in on request.
        query |= {"prompt": "select_account"} if provider.key == "google" else FRESH
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"


def identify(
    provider: IdentityProvider,
    *,
    code: str,
    redirect_uri: str,
    nonce: str,
    verifier: str,
    since: float | None = None,
) -> Identity:
    """Return the owner of a code. Raises SignInFailed.

    With `since`, a Unix time, the person must have signed in at the issuer after it.
    """
    issuer = discover(provider.address)
    tokens = _exchange(provider, issuer, code, redirect_uri, verifier)
    claims = verify(provider, issuer, str(tokens.get("id_token", "")), nonce)
    if since is not None and provider.key != "google":
        signed_in_at = claims.get("auth_time")
        if not isinstance(signed_in_at, int) or signed_in_at < since - LEEWAY:
            raise SignInFailed("refused", "the issuer did not ask for a new sign-in")
    more: dict[str, Any] = {}
    is_whole = bool(claims.get("email")) and "email_verified" in claims
    has_groups = not _has_groups(provider) or settings.OIDC_GROUPS_CLAIM in claims
    endpoint = str(issuer.document.get("userinfo_endpoint") or "")
    if not (is_whole and has_groups) and endpoint and tokens.get("access_token"):
        answer = http.get(endpoint, token=str(tokens["access_token"]))
        if not isinstance(answer, dict) or answer.get("sub") != claims["sub"]:
            raise SignInFailed("invalid", "the userinfo is of another subject than the ID token")
        more = answer
    # Both from one document: the other one may have verified another address.
    source = more if more.get("email") and not is_whole else claims
    address = {name: source.get(name) for name in ("email", "email_verified")}
    claims = {**more, **claims, **address}
    return _identity_of(provider, claims)


def _exchange(
    provider: IdentityProvider, issuer: Issuer, code: str, redirect_uri: str, verifier: str
) -> dict[str, Any]:
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": verifier,
    }
    # Without a word about it an issuer expects client_secret_basic.
    methods = issuer.document.get("token_endpoint_auth_methods_supported") or [
        "client_secret_basic"
    ]
    auth = None
    if provider.client_secret and "client_secret_basic" in methods:
        # Both parts are encoded as in a form (RFC 6749, 2.3.1).
        auth = (quote(provider.client_id, safe=""), quote(provider.client_secret, safe=""))
    else:
        form["client_id"] = provider.client_id
        if provider.client_secret:
            form["client_secret"] = provider.client_secret
    status, tokens = http.post(str(issuer.document["token_endpoint"]), form, auth=auth)
    if status != 200 or "error" in tokens:
        error = str(tokens.get("error", ""))[:40]
        cause = "expired" if error == "invalid_grant" else "refused"
        raise SignInFailed(cause, f"the code was refused: HTTP {status} {error}")
    return tokens


def verify(provider: IdentityProvider, issuer: Issuer, token: str, nonce: str) -> dict[str, Any]:
    """Return the claims of an ID token after all checks. Raises SignInFailed."""
    try:
        header = jwt.get_unverified_header(token)
        algorithm = str(header.get("alg"))
        if algorithm not in ALGORITHMS:
            raise SignInFailed("invalid", f"the ID token is signed by {algorithm[:20]}")
        claims = _decode(provider, issuer, token, header.get("kid"), algorithm)
    except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError) as error:
        raise SignInFailed("clock", f"of the ID token, {error}") from error
    except (jwt.PyJWTError, TypeError, ValueError) as error:
        raise SignInFailed("invalid", f"the ID token is wrong, {type(error).__name__}") from error
    audience, party = claims["aud"], claims.get("azp")
    if party not in (None, provider.client_id) or (
        isinstance(audience, list) and len(audience) > 1 and party is None
    ):
        raise SignInFailed("invalid", "the ID token is for another party")
    if not constant_time_compare(str(claims.get("nonce", "")), nonce):
        raise SignInFailed("invalid", "the ID token has another nonce")
    if not isinstance(claims["sub"], str) or not 0 < len(claims["sub"]) <= MAX_SUBJECT:
        raise SignInFailed("invalid", "the subject of the ID token is empty or too long")
    return claims


def _decode(
    provider: IdentityProvider, issuer: Issuer, token: str, kid: Any, algorithm: str
) -> dict[str, Any]:
    """Return the claims of a token that one of the issuer's keys has signed."""
    for keys in _key_sets(issuer, kid):
        for key in keys:
            if key.get("alg", algorithm) != algorithm:
                continue
            try:
                decoded: dict[str, Any] = jwt.decode(
                    token,
                    key=jwt.PyJWK(key, algorithm=algorithm).key,
                    algorithms=[algorithm],
                    audience=provider.client_id,
                    issuer=str(issuer.document["issuer"]),
                    leeway=LEEWAY,
                    options={"require": ["iss", "sub", "aud", "exp", "iat"]},
                )
            except (jwt.InvalidSignatureError, jwt.InvalidKeyError, jwt.PyJWKError):
                continue  # a key without an id, or of another kind, may be followed by the right one
            return decoded
    raise SignInFailed("invalid", "no key of the issuer has signed the ID token")


def _key_sets(issuer: Issuer, kid: Any) -> Iterator[list[dict[str, Any]]]:
    """Yield the known keys that may have signed, then those read anew, since keys are replaced."""
    age = time.monotonic() - issuer.keys_read_at
    if age < KEYS_SECONDS:
        yield _fitting(issuer.keys, kid)
    if age > ROTATION_SECONDS:
        answer = http.get(str(issuer.document["jwks_uri"]))
        keys = answer.get("keys") if isinstance(answer, dict) else None
        issuer.keys = [one for one in keys or () if isinstance(one, dict)]
        issuer.keys_read_at = time.monotonic()
        yield _fitting(issuer.keys, kid)


def _fitting(keys: list[dict[str, Any]], kid: Any) -> list[dict[str, Any]]:
    signing = [one for one in keys if one.get("use", "sig") == "sig" and one.get("kty") != "oct"]
    return [one for one in signing if kid is None or one.get("kid") in (None, kid)]


def _has_groups(provider: IdentityProvider) -> bool:
    return provider.key == "oidc" and bool(settings.OIDC_GROUPS_CLAIM)


def _identity_of(provider: IdentityProvider, claims: dict[str, Any]) -> Identity:
    found = claims.get(settings.OIDC_GROUPS_CLAIM) if _has_groups(provider) else None
    groups = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    is_trusted = provider.key == "oidc" and settings.OIDC_TRUST_EMAIL
    email = claims.get("email")
    return Identity(
        uid=claims["sub"],
        email=email if isinstance(email, str) else "",
        # Some issuers write it as text.
        is_verified=is_trusted or claims.get("email_verified") in (True, "true"),
        name=str(claims.get("name") or claims.get("preferred_username") or ""),
        groups=[one for one in groups if isinstance(one, str)],
    )
