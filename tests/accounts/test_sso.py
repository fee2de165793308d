"""Sign-in at identity providers: a local issuer with real keys, at the pages."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount, SocialToken
from django.contrib.auth.models import Group
from django.core import mail
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts import api_keys, consent
from accounts.models import LegalDocument, SignupGrant, User
from accounts.sso import http, openid
from accounts.sso.errors import SignInFailed
from tests.accounts.test_joining import link
from tests.support import identity_provider
from tests.support.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider
from tests.support.threads import race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

EMAIL, PASSWORD = "ada@example.org", "a-long-password-17"
BEGIN, BACK = "/accounts/login/with/oidc/", "/accounts/login/with/oidc/callback/"
CONNECTIONS = "/accounts/connections/"


@pytest.fixture
def issuer(settings: Any) -> Iterator[IdentityProvider]:
    with identity_provider.running() as provider:
        settings.OIDC_ISSUER, settings.OIDC_NAME = provider.address, "Example ID"
        settings.OIDC_CLIENT_ID, settings.OIDC_CLIENT_SECRET = CLIENT_ID, CLIENT_SECRET
        provider.person = {
            "sub": "7",
            "email": "Ada@Example.org",
            "email_verified": True,
            "name": "Ada Lovelace",
        }
        openid.forget()
        yield provider
        openid.forget()


def leave(client: Client, path: str = BEGIN, **form: str) -> str:
    """Press the button; return the address at the provider to which the page goes on."""
    page = client.post(path, form)
    assert page.status_code == 200, page
    [url] = re.findall(r'http-equiv="refresh" content="0;url=([^"]+)"', page.content.decode())
    return html.unescape(url)


def sign_in(client: Client, issuer: IdentityProvider, path: str = BEGIN, **form: str) -> Any:
    """Walk to the provider and back; return the last page."""
    answer = issuer.authorize(leave(client, path, **form))
    return client.get(f"{path}callback/", answer, follow=True)


def signed_in(client: Client) -> str:
    """The address of the client's user; empty for a visitor."""
    found = client.session.get("_auth_user_id")
    return User.objects.get(pk=found).email if found else ""


def text_of(page: Any) -> str:
    return html.unescape(page.content.decode())


def user_of(email: str = EMAIL, *, verified: bool = True, **fields: Any) -> User:
    user = User.objects.create_user(email, PASSWORD, **fields)
    EmailAddress.objects.create(user=user, email=email, verified=verified, primary=True)
    return user


def test_new_person_gets_an_account_and_returns(client: Client, issuer: IdentityProvider):
    with CaptureQueriesContext(
        connection,
    ) as statements:
        page = text_of(client.get("/accounts/login/?next=/chats/"))
    assert "Continue with Example ID" in page
    assert not [one for one in statements if "socialaccount" in one["sql"]]
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", page.split("<main", 1)[1])  # no third party
    last = sign_in(client, issuer, next="/chats/")
    assert last.redirect_chain[-1][0] == "/chats/"
    user = User.objects.get()
    assert (user.email, user.display_name, user.has_usable_password()) == (
        EMAIL,
        "Ada Lovelace",
        False,
    )
    assert EmailAddress.objects.get(user=user).verified
    assert SignupGrant.objects.filter(user=user).exists()
    account = SocialAccount.objects.get(user=user)
    assert (account.provider, account.uid) == ("oidc", "7")
    assert not SocialToken.objects.exists()
    assert "Example ID" in text_of(client.get("/accounts/sessions/"))
    assert not mail.outbox  # the first sign-in is no new browser
    other = Client()
    # The address has changed there, the person has not.
    issuer.person |= {"email": "lovelace@example.org"}
    sign_in(other, issuer)
    assert signed_in(other) == EMAIL
    assert [one.subject for one in mail.outbox] == ["Parley: New sign-in to your account"]
    # Nothing of the second sign-in needed a new key or document.
    assert issuer.requests.count("/keys") == 1


def test_redirect_address_has_the_site_address(client: Client, issuer: IdentityProvider, settings):
    settings.SITE_URL = "https://chat.example.org"
    wanted = parse_qs(urlsplit(leave(client, BEGIN)).query)["redirect_uri"]
    assert wanted == [f"https://chat.example.org{BEGIN}callback/"]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "wrong nonce": ({"claims": {"nonce": "another"}}, "could not be verified"),
    "wrong issuer": ({"claims": {"iss": "https://evil.example"}}, "could not be verified"),
    "wrong audience": ({"claims": {"aud": "another"}}, "could not be verified"),
    "wrong party": (
        {"claims": {"aud": [CLIENT_ID, "other"], "azp": "other"}},
        "could not be verified",
    ),
    "several parties": ({"claims": {"aud": [CLIENT_ID, "other"]}}, "could not be verified"),
    "expired": ({"claims": {"exp": 1}}, "clocks"),
    "issued later": ({"claims": {"iat": 9_999_999_999}}, "clocks"),
    "no subject": ({"claims": {"sub": ""}}, "could not be verified"),
    "long subject": ({"claims": {"sub": "x" * 192}}, "could not be verified"),
    "unsigned": ({"signs_by": "none"}, "could not be verified"),
    "signed by the public key": ({"signs_by": "HS256"}, "could not be verified"),
    "signed by another key": (
        {"published": identity_provider.new_key()},
        "could not be verified",
    ),
    "another subject": (
        {"claims": {"email": None}, "userinfo": {"sub": "8"}},
        "could not be verified",
    ),
    "another issuer": ({"issuer": "https://evil.example"}, "could not be verified"),
    "no address": ({"person": {"sub": "7"}}, "gave no e-mail address"),
    "wrong address": ({"person": {"sub": "7", "email": "no"}}, "gave no e-mail address"),
    "code used": ({"token_error": "invalid_grant"}, "took too long"),
    "wrong secret": ({"token_error": "invalid_client"}, "refused the sign-in"),
}


def test_hostile_answers_make_no_session(client: Client, issuer: IdentityProvider):
    """Each fault of an answer has a page with words, and makes neither user nor session."""
    for name, (fault, words) in FAULTS.items():
        openid.forget()
        before = {one: getattr(issuer, one) for one in fault}
        for one, value in fault.items():
            setattr(issuer, one, value)
        page = client.post(BEGIN)
        if page.status_code == 200:
            [url] = re.findall(r"content=\"0;url=([^\"]+)\"", page.content.decode())
            page = client.get(BACK, issuer.authorize(html.unescape(url)), follow=True)
        assert page.status_code == 400, name
        assert words in text_of(page), name
        assert not signed_in(client), name
        for one, value in before.items():
            setattr(issuer, one, value)
    assert not User.objects.exists()
    sign_in(client, issuer)
    assert signed_in(client) == EMAIL


def test_broken_ways_back_have_words(client: Client, issuer: IdentityProvider, monkeypatch):
    url = leave(client)
    answer = issuer.authorize(url)
    # In another browser, without a state, by the answer of another issuer, and with an error of the provider.
    assert "took too long" in text_of(Client().get(BACK, answer))
    assert "took too long" in text_of(client.get(BACK, {"code": "x"}))
    assert "could not be verified" in text_of(
        client.get(BACK, {**answer, "iss": "https://evil.example"})
    )
    for error, words in (
        ("access_denied", "was cancelled at Example ID"),
        ("temporarily_unavailable", "does not answer"),
        ("invalid_scope", "refused the sign-in"),
    ):
        state = issuer.authorize(leave(client))["state"]
        page = client.get(BACK, {"error": error, "state": state})
        assert (page.status_code, words in text_of(page)) == (400, True)
    # A state serves once.
    answer = issuer.authorize(leave(client))
    client.get(BACK, answer)
    stranger = Client()
    stranger.cookies = client.cookies
    assert client.get(BACK, answer)["Location"] == "/"
    monkeypatch.setattr(http, "SECONDS", 0.2)
    openid.forget()
    issuer.is_silent = True
    began = time.monotonic()
    assert "does not answer" in text_of(Client().post(BEGIN))
    assert time.monotonic() - began < 10
    assert client.post("/accounts/login/with/unknown/").status_code == 404


def test_silent_issuer_holds_few_threads(issuer: IdentityProvider, monkeypatch):
    monkeypatch.setattr(http, "SECONDS", 3.0)
    monkeypatch.setattr(http, "PATIENCE", 30.0)
    issuer.is_silent = True
    refused: list[float] = []

    def ask() -> None:
        began = time.monotonic()
        with pytest.raises(SignInFailed):
            http.get(issuer.address)
        refused.append(time.monotonic() - began)

    race([ask] * 8)
    assert len([seconds for seconds in refused if seconds < 1.5]) == 8 - http.AT_ONCE - http.WAITING


def test_rotated_key_is_fetched_anew(client: Client, issuer: IdentityProvider, monkeypatch):
    monkeypatch.setattr(openid, "ROTATION_SECONDS", 0.0)
    sign_in(client, issuer)
    issuer.key, issuer.kid = identity_provider.new_key(), "second"
    other = Client()
    sign_in(other, issuer)
    assert signed_in(other) == EMAIL
    assert issuer.requests.count("/keys") == 2


@pytest.mark.parametrize(
    ("theirs", "ours", "staff"),
    [(True, True, False), (False, True, False), (True, False, False), (True, True, True)],
)
def test_account_is_linked_by_addresses_verified_twice(
    client: Client, issuer: IdentityProvider, theirs: bool, ours: bool, staff: bool
):
    user = user_of(verified=ours, is_staff=staff)
    issuer.person["email_verified"] = theirs
    if not theirs:  # the token and the userinfo differ: the address is that of the userinfo
        issuer.claims = {"email": None, "email_verified": True}
    page = sign_in(client, issuer)
    is_linked = theirs and ours and not staff
    assert (signed_in(client) == EMAIL) is is_linked
    assert SocialAccount.objects.filter(user=user).exists() is is_linked
    user.refresh_from_db()
    assert user.check_password(PASSWORD)
    assert User.objects.count() == 1
    if is_linked:
        assert "Parley: A connected account" in [one.subject for one in mail.outbox]
    else:
        assert "already an account" in text_of(page)
        assert page.status_code == 409


def test_local_rules_hold_for_providers(client: Client, issuer: IdentityProvider, settings):
    """Locked, leaving and waiting accounts, the second factor and closed sign-up behave as with a password."""
    settings.SIGNUP = "closed"
    assert "Sign-up is closed" in text_of(sign_in(client, issuer))
    settings.SIGNUP = "invitation"
    assert "Sign-up is by invitation" in text_of(sign_in(client, issuer))
    _row, address = link(group=Group.objects.create(name="School"))
    client.get(address)
    sign_in(client, issuer)
    user = User.objects.get()
    assert [one.name for one in user.groups.all()] == ["School"]
    # Locked.
    User.objects.update(is_active=False)
    visitor = Client()
    page = sign_in(visitor, issuer)
    assert (signed_in(visitor), page.redirect_chain[-1][0]) == ("", "/accounts/inactive/")
    User.objects.update(is_active=True)
    # A second factor of this site.
    Authenticator.objects.create(user=user, type=Authenticator.Type.TOTP, data={"secret": "x"})
    page = sign_in(visitor, issuer)
    assert (signed_in(visitor), page.redirect_chain[-1][0]) == ("", "/accounts/login/code/")
    Authenticator.objects.all().delete()
    # Staff who must have one.
    User.objects.update(is_staff=True)
    settings.STAFF_TWO_FACTOR = True
    member = Client()
    assert sign_in(member, issuer, next="/admin/").redirect_chain[-1][0] == "/accounts/security/"
    # Consent, before the first page.
    settings.SIGNUP = "open"
    terms = {"kind": "terms", "language": "en", "version": 1, "text": "x", "needs_consent": True}
    LegalDocument.objects.create(**terms, published_at=timezone.now())
    consent.memory.due = 0.0
    issuer.person = {"sub": "8", "email": "asked@example.org", "email_verified": True}
    page = sign_in(Client(), issuer, next="/chats/")
    assert page.redirect_chain[-1][0].startswith("/consent/")
    LegalDocument.objects.all().delete()
    consent.memory.forget()
    # An unverified address.
    settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
    issuer.person = {"sub": "10", "email": "unsure@example.org", "email_verified": "false"}
    visitor = Client()
    assert "Check your inbox" in text_of(sign_in(visitor, issuer))
    unsure = User.objects.get(email="unsure@example.org")
    assert not signed_in(visitor)
    assert not SignupGrant.objects.filter(user=unsure).exists()
    # Approval.
    settings.SIGNUP = "approval"
    issuer.person = {"sub": "9", "email": "new@example.org", "email_verified": True}
    page = sign_in(Client(), issuer)
    assert "Waiting for approval" in text_of(page)
    waits = User.objects.get(email="new@example.org")
    assert (waits.is_active, SignupGrant.objects.filter(user=waits).exists()) == (False, False)


def test_sign_up_in_two_tabs_makes_one_account(issuer: IdentityProvider):
    browsers = [Client() for _ in range(4)]
    answers = [issuer.authorize(leave(one)) for one in browsers]
    pairs = zip(browsers, answers, strict=True)
    results = race([partial(one.get, BACK, answer) for one, answer in pairs])
    assert [one["Location"] for one in results] == ["/"] * 4
    assert [signed_in(one) for one in browsers] == [EMAIL] * 4
    assert SocialAccount.objects.get().user == User.objects.get()


def test_stranger_keeps_no_way_into_a_reset_account(client: Client, issuer: IdentityProvider):
    """An account that was made at a provider with the unverified address of its later owner."""
    issuer.person["email_verified"] = False
    sign_in(client, issuer)
    user = User.objects.get()
    api_keys.create(user, api_keys.Terms(name="Test"))
    assert "Confirm your e-mail address first." in text_of(
        client.post("/accounts/login/with/oidc/", {"process": "connect"}, follow=True)
    )
    owner = Client()
    owner.post("/accounts/password/reset/", {"email": EMAIL})
    path = re.findall(
        r"http://testserver(/accounts/password/reset/key/\S+)", str(mail.outbox[-1].body)
    )[0]
    page = owner.get(path, follow=True)
    form = {"password1": PASSWORD, "password2": PASSWORD}
    owner.post(page.redirect_chain[-1][0], form)
    user.refresh_from_db()
    assert user.check_password(PASSWORD)
    assert not SocialAccount.objects.exists()
    assert not user.api_keys.filter(revoked_at=None).exists()
    assert client.get("/chats/").status_code == 302


def test_groups_of_the_issuer_are_followed(client: Client, issuer: IdentityProvider, settings):
    settings.OIDC_GROUPS_CLAIM = "groups"
    settings.OIDC_ALLOWED_GROUPS = ["users"]
    settings.OIDC_GROUP_MAP = {"teachers": "Teachers"}
    Group.objects.create(name="Teachers")
    own = Group.objects.create(name="Own")
    page = sign_in(client, issuer)
    assert (page.status_code, "may not use this site" in text_of(page)) == (403, True)
    issuer.userinfo = {"groups": ["users", "teachers"]}
    sign_in(client, issuer)
    user = User.objects.get()
    user.groups.add(own)
    assert {one.name for one in user.groups.all()} == {"Teachers", "Own"}
    issuer.userinfo = {"groups": ["users"]}
    sign_in(client, issuer)
    assert {one.name for one in user.groups.all()} == {"Own"}


def test_account_is_connected_and_disconnected(client: Client, issuer: IdentityProvider):
    user = user_of()
    client.force_login(user)
    # The password first: a session may be borrowed.
    issuer.person = {"sub": "70", "email": "elsewhere@example.org", "email_verified": True}
    first = client.post(BEGIN, {"process": "connect"})
    assert first["Location"].startswith("/accounts/reauthenticate/")
    client.post(first["Location"], {"password": PASSWORD})
    page = sign_in(client, issuer, process="connect")
    assert "Example ID is connected." in text_of(page)
    assert "elsewhere@example.org" in text_of(page)
    assert mail.outbox[-1].to == [EMAIL]
    visitor = Client()
    sign_in(visitor, issuer)
    assert signed_in(visitor) == EMAIL
    # Another user cannot connect it, too.
    other = Client()
    other.force_login(user_of("eve@example.org"))
    again = other.post(BEGIN, {"process": "connect"})
    other.post(again["Location"], {"password": PASSWORD})
    assert "connected to another account" in text_of(sign_in(other, issuer, process="connect"))
    row = SocialAccount.objects.get()
    other.post(CONNECTIONS, {"account": row.pk})
    assert SocialAccount.objects.get().user == user
    # The only way to sign in stays.
    user.set_unusable_password()
    user.save(update_fields=["password"])
    sign_in(visitor, issuer)
    refused = visitor.post(CONNECTIONS, {"account": row.pk})
    assert (refused.status_code, "only way to sign in" in text_of(refused)) == (409, True)
    user.set_password(PASSWORD)
    user.save(update_fields=["password"])
    sign_in(visitor, issuer)
    asked = visitor.post(CONNECTIONS, {"account": row.pk})
    visitor.post(asked["Location"], {"password": PASSWORD})
    assert "no longer connected" in text_of(
        visitor.post(CONNECTIONS, {"account": row.pk}, follow=True)
    )
    assert not SocialAccount.objects.exists()


def test_user_without_password_confirms_at_provider(client: Client, issuer: IdentityProvider):
    sign_in(client, issuer)
    session = client.session
    session["account_authentication_methods"][0]["at"] -= 3600
    session.save()
    asked = client.get("/accounts/security/app/")
    assert (
        asked["Location"] == "/accounts/connections/confirm/?next=%2Faccounts%2Fsecurity%2Fapp%2F"
    )
    assert "Sign in again" in text_of(client.get(asked["Location"]))
    form = {"process": "confirm", "next": "/accounts/security/app/"}
    assert "prompt=login&max_age=0" in leave(client, **form)
    # Without a new sign-in there, or by another person, nothing is confirmed.
    issuer.claims = {"auth_time": int(time.time()) - 3600}
    assert "refused the sign-in" in text_of(sign_in(client, issuer, **form))
    issuer.claims = {"sub": "8"}
    assert "refused the sign-in" in text_of(sign_in(client, issuer, **form))
    assert client.get("/accounts/security/app/").status_code == 302
    issuer.claims = {}
    assert sign_in(client, issuer, **form).redirect_chain[-1][0] == "/accounts/security/app/"
    assert client.get("/accounts/security/app/").status_code == 200


def test_google_and_github_sign_in(client: Client, issuer: IdentityProvider, settings):
    settings.OIDC_CLIENT_ID = ""
    settings.GOOGLE_ISSUER = settings.GITHUB_URL = issuer.address
    settings.GOOGLE_CLIENT_ID = settings.GITHUB_CLIENT_ID = CLIENT_ID
    settings.GOOGLE_CLIENT_SECRET = settings.GITHUB_CLIENT_SECRET = CLIENT_SECRET
    page = text_of(client.get("/accounts/signup/"))
    assert "Continue with Google" in page
    assert "Continue with GitHub" in page
    sign_in(client, issuer, "/accounts/login/with/google/")
    assert signed_in(client) == EMAIL
    # The same verified address: connected, no second account.
    other = Client()
    sign_in(other, issuer, "/accounts/login/with/github/")
    assert signed_in(other) == EMAIL
    rows = SocialAccount.objects.values_list("provider", "uid", "user__email")
    assert set(rows) == {("google", "7", EMAIL), ("github", "583231", EMAIL)}


def test_passwords_can_be_switched_off(client: Client, issuer: IdentityProvider, settings, capsys):
    settings.PASSWORD_SIGN_IN = False
    root = User.objects.create_superuser("root@example.org", PASSWORD)
    page = text_of(client.get("/accounts/login/"))
    assert 'name="password"' not in page
    client.post("/accounts/login/", {"login": root.email, "password": PASSWORD})
    assert not signed_in(client)
    for path in ("signup/", "password/reset/", "login/passkey/"):
        assert client.get(f"/accounts/{path}")["Location"] == "/accounts/login/"
    call_command("sign_in_link", root.email)
    path = capsys.readouterr().out.strip()
    path = path[path.index("/accounts/") :]
    assert client.get(path).status_code == 200
    client.post(path)
    assert signed_in(client) == root.email
    assert (
        "Password"
        not in text_of(client.get("/accounts/sessions/")).split("<nav", 1)[1].split("</nav", 1)[0]
    )
    assert Client().post(path).status_code == 404  # once
    assert Client().get("/accounts/login/link/1-x/").status_code == 404
