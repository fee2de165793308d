"""An issuer of OpenID Connect, and GitHub's API: a local server with real keys, which can also be hostile."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

CLIENT_ID, CLIENT_SECRET = "parley", "the secret: of ä"


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass
class IdentityProvider:
    """Answers as `person` says; the other fields are faults that it has."""

    address: str
    person: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)  # replace those of the ID token
    userinfo: dict[str, Any] = field(default_factory=dict)
    issuer: str = ""  # another one in the discovery document
    signs_by: str = "RS256"  # or `none`, or `HS256` with the public key
    kid: str = "first"
    key: rsa.RSAPrivateKey = field(default_factory=new_key)
    published: rsa.RSAPrivateKey | None = None  # another key than the one that signs
    is_silent: bool = False
    token_error: str = ""
    requests: list[str] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)

    def authorize(self, url: str) -> dict[str, str]:
        """Sign the person in at the address to which the site has sent the browser; return the answer's query."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        code = f"code-{len(self.codes)}"
        self.codes[code] = query
        return {"code": code, "state": query["state"]}

    def id_token(self, query: dict[str, str]) -> str:
        now = int(time.time())
        claims = {
            "iss": self.address,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "auth_time": now,
            "nonce": query.get("nonce"),
            **self.person,
            **self.claims,
        }
        headers = {"kid": self.kid}
        if self.signs_by == "none":
            return jwt.encode(claims, "", algorithm="none", headers=headers)
        if self.signs_by == "HS256":
            public = self.key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            parts = [
                base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=")
                for one in ({"alg": "HS256", "kid": self.kid}, claims)
            ]
            signed = b".".join(parts)
            digest = hmac.new(public, signed, "sha256").digest()
            return (signed + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")).decode()
        return jwt.encode(claims, self.key, algorithm=self.signs_by, headers=headers)

    def keys(self) -> dict[str, Any]:
        shown = jwt.algorithms.RSAAlgorithm.to_jwk(
            (self.published or self.key).public_key(), as_dict=True
        )
        return {"keys": [{**shown, "kid": self.kid, "use": "sig", "alg": "RS256"}]}

    def document(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer or self.address,
            "authorization_endpoint": f"{self.address}/authorize",
            "token_endpoint": f"{self.address}/token",
            "userinfo_endpoint": f"{self.address}/userinfo",
            "jwks_uri": f"{self.address}/keys",
        }

    def exchange(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        """Answer the token endpoint, as strictly as the standards permit."""
        if self.token_error:
            return 400, {"error": self.token_error}
        query = self.codes.pop(form.get("code", ""), None)
        if authorization:
            user, _colon, password = (
                base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
            )
            client = (unquote(user), unquote(password))
        else:
            client = (form.get("client_id", ""), form.get("client_secret", ""))
        if client != (CLIENT_ID, CLIENT_SECRET):
            return 401, {"error": "invalid_client"}
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if query is None or (challenge, form["redirect_uri"], "S256") != (
            query["code_challenge"],
            query["redirect_uri"],
            query["code_challenge_method"],
        ):
            return 400, {"error": "invalid_grant"}
        answer = {"access_token": "access", "token_type": "Bearer"}
        if "nonce" in query:
            answer["id_token"] = self.id_token(query)
        return 200, answer


@contextmanager
def running() -> Iterator[IdentityProvider]:
    """Run an identity provider on this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.serve({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            self.serve({name: values[0] for name, values in parse_qs(body).items()})

        def serve(self, form: dict[str, str]) -> None:
            provider.requests.append(self.path)
            if provider.is_silent:
                provider.released.wait(30)
                return
            status: int = 200
            answer: Any = None
            authorization = self.headers.get("Authorization", "")
            if self.path.endswith("/openid-configuration"):
                answer = provider.document()
            elif self.path.startswith("/authorize?"):  # of a browser: signed in at once
                back = parse_qs(urlsplit(self.path).query)["redirect_uri"][0]
                self.send_response(303)
                self.send_header("Location", f"{back}?{urlencode(provider.authorize(self.path))}")
                self.end_headers()
                return
            elif self.path == "/keys":
                answer = provider.keys()
            elif self.path in ("/token", "/login/oauth/access_token"):
                status, answer = provider.exchange(form, authorization)
            elif authorization != "Bearer access":
                status = 401
            elif self.path == "/userinfo":
                answer = {**provider.person, **provider.userinfo}
            elif self.path == "/api/v3/user":
                answer = {"id": 583231, "login": "octocat", "name": None}
            elif self.path == "/api/v3/user/emails":
                person = provider.person
                answer = [
                    {"email": "other@example.org", "primary": False, "verified": True},
                    {
                        "email": person["email"],
                        "primary": True,
                        "verified": person["email_verified"],
                    },
                ]
            else:
                status = 404
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    provider = IdentityProvider(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        provider.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
