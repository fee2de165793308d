"""Sign-in by the header of an authenticating proxy, as the server has moved it into the request's scope."""

from __future__ import annotations

from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.test.client import ClientHandler
from django.test.utils import CaptureQueriesContext

from accounts import api_keys
from accounts.models import SignupGrant, User
from chatproject.lib.server.identity_header import SCOPE_KEY
from tests.accounts.test_sso import EMAIL, PASSWORD, text_of, user_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


class Handler(ClientHandler):
    """Gives each request the scope of a server."""

    def get_response(self, request: Any) -> Any:
        request.scope = request.environ.get("scope", {})
        return super().get_response(request)


class Browser:
    """A browser behind the proxy."""

    def __init__(self) -> None:
        self.client = Client()
        self.client.handler = Handler(enforce_csrf_checks=False)

    def get(self, path: str, identity: str | None = EMAIL, **options: Any) -> Any:
        return self.client.get(path, scope=self.scope(identity), **options)

    def post(self, path: str, form: Any = None, identity: str | None = EMAIL) -> Any:
        return self.client.post(path, form or {}, scope=self.scope(identity))

    @staticmethod
    def scope(identity: str | None) -> dict[str, Any]:
        return {} if identity is None else {SCOPE_KEY: identity}

    @property
    def email(self) -> str:
        found = self.client.session.get("_auth_user_id")
        return User.objects.get(pk=found).email if found else ""


@pytest.fixture(autouse=True)
def _proxy(settings: Any) -> None:
    settings.TRUSTED_HEADER, settings.TRUSTED_HEADER_PROXIES = "X-Forwarded-Email", ["10.0.0.7"]


def test_proxy_signs_in_the_person_it_names(settings):
    browser = Browser()
    settings.SIGNUP = "closed"
    page = browser.get("/chats/", "Ada@Example.org")
    assert (page.status_code, browser.email) == (403, "")
    settings.SIGNUP = "open"
    assert browser.get("/chats/", "Ada@Example.org")["Location"] == "/chats/"
    user = User.objects.get()
    assert (browser.email, user.has_usable_password()) == (EMAIL, False)
    assert EmailAddress.objects.get(user=user).verified
    assert SignupGrant.objects.filter(user=user).exists()
    assert "Single sign-on" in text_of(browser.get("/accounts/sessions/"))
    # Another person ends the session, and so does none.
    first = browser.client.cookies["sessionid"].value
    assert browser.get("/chats/", "bob@example.org").status_code == 302
    assert browser.email == "bob@example.org"
    assert not Session.objects.filter(pk=first).exists()
    assert browser.get("/chats/", None)["Location"] == "/accounts/login/?next=/chats/"
    assert browser.email == ""
    # An account that a stranger has made with the address becomes its owner's alone.
    carol = user_of("carol@example.org", verified=False)
    EmailAddress.objects.create(user=carol, email="eve@example.org", verified=True)
    api_keys.create(carol, api_keys.Terms("Eve's"))
    SocialAccount.objects.create(user=carol, provider="oidc", uid="eve")
    eve = Client()
    eve.post("/accounts/login/", {"login": carol.email, "password": PASSWORD})
    assert eve.get("/chats/").status_code == 200
    browser.get("/chats/", carol.email)
    assert browser.email == carol.email
    carol.refresh_from_db()
    assert not carol.has_usable_password()
    assert not api_keys.usable(carol).exists()
    assert not SocialAccount.objects.exists()
    assert eve.get("/chats/").status_code == 302
    assert list(carol.emailaddress_set.values_list("email", "verified")) == [(carol.email, True)]
    # Approval, a locked account and a second factor.
    settings.SIGNUP = "approval"
    assert browser.get("/chats/", "dan@example.org")["Location"] == "/accounts/waiting/"
    User.objects.filter(pk=user.pk).update(is_active=False)
    assert browser.get("/chats/")["Location"] == "/accounts/inactive/"
    User.objects.filter(pk=user.pk).update(is_active=True)
    Authenticator.objects.create(user=user, type="totp", data={"secret": ""})
    assert browser.get("/chats/")["Location"] == "/accounts/login/code/"
    assert browser.email == ""


def test_header_signs_in_pages_alone(settings):
    browser = Browser()
    user_of()
    for identity in ("not an address", "a@example.org,b@example.org", ""):
        assert browser.get("/chats/", identity)["Location"] == "/accounts/login/?next=/chats/"
    assert browser.get("/api/v1/balance").status_code == 401
    assert browser.get("/chats/", headers={"accept": "application/json"}).status_code == 401
    # Not on pages of visitors, so that one can sign out, or sign in as another user.
    page = text_of(browser.get("/accounts/login/"))
    assert f"Continue as {EMAIL}" in page
    assert browser.email == ""
    browser.get("/chats/")
    assert browser.get("/api/v1/balance", None).status_code == 200
    settings.TRUSTED_HEADER_SIGN_OUT_URL = "/oauth2/sign_out"
    left = browser.post("/accounts/logout/")
    assert (left["Location"], browser.email) == ("/oauth2/sign_out", "")
    # A session with a password is the user's own.
    own = Browser()
    form = {"login": EMAIL, "password": PASSWORD}
    own.post("/accounts/login/", form)
    own.get("/chats/", "bob@example.org")
    assert own.email == EMAIL


def test_page_of_header_session_makes_no_further_statement(settings):
    browser, other = Browser(), Client()
    user = user_of()
    other.force_login(user)
    browser.get("/chats/")
    counts = []
    for get in (browser.get, other.get):
        get("/chats/")
        with CaptureQueriesContext(connection) as statements:
            get("/chats/")
        counts.append(len(statements))
    assert counts[0] == counts[1] > 0
