"""The pages of an account in the order of their use, and the pages that need a session."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import pytest
from django.core import mail
from django.template.loader import render_to_string
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from django.utils import timezone

from accounts import invitations
from accounts.access import PUBLIC_VIEWS
from accounts.models import Invitation, LegalDocument, User

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey_url")]

EMAIL = "reader@example.org"
PASSWORD = "a-long-password-17"
OTHER = "another-password-23"


@pytest.fixture
def reader() -> User:
    return User.objects.create_user(EMAIL, PASSWORD)


@pytest.fixture
def inside(client: Client, reader: User) -> Client:
    client.force_login(reader)
    return client


def is_signed_in(client: Client) -> bool:
    return client.get("/").status_code == 200


# --- Signing up, in and out -------------------------------------------------------------------


def test_sign_up_leads_to_a_new_chat(client: Client):
    response = client.post("/accounts/signup/", {"email": "New@Example.org", "password1": PASSWORD})
    assert response["Location"] == "/"
    assert User.objects.get().email == "new@example.org"
    assert is_signed_in(client)


@pytest.mark.parametrize(
    ("email", "password", "words"),
    [
        ("", PASSWORD, "This field is required."),
        ("nobody", PASSWORD, "Enter a valid e-mail address."),
        (EMAIL, "short", "This password is too short."),
        (EMAIL, "1234567890", "This password is too common."),
        (EMAIL, EMAIL, "The password is too similar to the"),
    ],
)
def test_sign_up_error_is_shown_beside_its_field(
    client: Client, email: str, password: str, words: str
):
    response = client.post("/accounts/signup/", {"email": email, "password1": password})
    assert response.status_code == 200
    html = response.content.decode()
    assert words in html
    assert 'aria-invalid="true"' in html
    # The error is read with its field.
    [described_by] = re.findall(r'aria-invalid="true"[^>]*aria-describedby="([^"]+)"', html) or (
        re.findall(r'aria-describedby="([^"]+)"[^>]*aria-invalid="true"', html)
    )
    assert all(f'id="{name}"' in html for name in described_by.split())
    assert User.objects.count() == 0


def test_sign_up_with_a_taken_address_is_refused(client: Client, reader: User):
    response = client.post("/accounts/signup/", {"email": EMAIL, "password1": PASSWORD})
    assert "There is already an account with this e-mail address." in response.content.decode()
    assert not is_signed_in(client)


def test_taken_address_is_disclosed_to_its_owner_only(client: Client, reader: User, settings):
    """Where addresses must be confirmed, the page is the same for a taken and a free one."""
    settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
    taken = client.post("/accounts/signup/", {"email": EMAIL, "password1": PASSWORD}, follow=True)
    free = Client().post(
        "/accounts/signup/", {"email": "new@example.org", "password1": PASSWORD}, follow=True
    )
    assert taken.redirect_chain == free.redirect_chain
    assert "Check your inbox" in taken.content.decode()
    assert User.objects.count() == 2
    assert [(message.to, message.subject) for message in mail.outbox] == [
        ([EMAIL], "Parley: You already have an account"),
        (["new@example.org"], "Parley: Confirm your e-mail address"),
    ]


def test_sign_in_returns_to_the_requested_page(client: Client, reader: User):
    asked = client.get("/chats/")
    assert asked["Location"] == "/accounts/login/?next=/chats/"
    page = client.get(asked["Location"]).content.decode()
    assert '<input type="hidden" name="next" value="/chats/">' in page
    response = client.post(
        "/accounts/login/", {"login": EMAIL.upper(), "password": PASSWORD, "next": "/chats/"}
    )
    assert response["Location"] == "/chats/"
    # A signed-in page is enough; no notice repeats it.
    assert 'class="notice"' not in client.get("/chats/").content.decode().split("<main")[1]


def test_sign_in_never_redirects_to_other_sites(client: Client, reader: User):
    response = client.post(
        "/accounts/login/",
        {"login": EMAIL, "password": PASSWORD, "next": "https://elsewhere.example/"},
    )
    assert response["Location"] == "/"


@pytest.mark.parametrize("login", [EMAIL, "nobody@example.org"])
def test_wrong_password_does_not_reveal_known_addresses(client: Client, reader: User, login: str):
    response = client.post("/accounts/login/", {"login": login, "password": "wrong"})
    html = response.content.decode()
    assert "The e-mail address or the password is not correct." in html
    assert f'value="{login}"' in html
    assert not is_signed_in(client)


def test_first_superuser_signs_in_without_working_mail(client: Client, settings):
    """Of `manage.py createsuperuser`, while addresses must be confirmed."""
    settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
    User.objects.create_superuser("Boss@example.org", "a-long-password-1")
    form = {"login": "boss@example.org", "password": "a-long-password-1"}
    response = client.post(f"{reverse('account_login')}?next=/admin/", form, follow=True)
    assert response.request["PATH_INFO"] == "/admin/"
    assert response.status_code == 200


def test_closed_account_cannot_sign_in(client: Client, reader: User):
    reader.is_active = False
    reader.save()
    client.post("/accounts/login/", {"login": EMAIL, "password": PASSWORD})
    assert not is_signed_in(client)


def test_password_managers_find_the_fields(client: Client):
    login = client.get("/accounts/login/").content.decode()
    assert 'autocomplete="email"' in login
    assert 'autocomplete="current-password"' in login
    signup = client.get("/accounts/signup/").content.decode()
    assert 'autocomplete="new-password"' in signup
    # Each field has a label of its own.
    for html in (login, signup):
        fields = re.findall(r'<input type="(?:email|password)"[^>]* id="([^"]+)"', html)
        assert len(fields) == 2
        assert all(f'<label for="{name}"' in html for name in fields)


def test_account_pages_spell_words_alike(client: Client, reader: User):
    pages = ["login", "signup", "password/reset"]
    html = "".join(client.get(f"/accounts/{page}/").content.decode() for page in pages)
    client.force_login(reader)
    pages = ["email", "password/change", "reauthenticate"]
    html += "".join(client.get(f"/accounts/{page}/").content.decode() for page in pages)
    words = re.sub(r"<[^>]*>", " ", html)
    assert not re.search(r"\b[Ee]mail\b|[a-z] Password", words)
    assert words.count("E-mail address") >= 5


def test_sign_out_asks_for_confirmation(inside: Client):
    assert "Sign out?" in inside.get("/accounts/logout/").content.decode()
    assert is_signed_in(inside)
    assert inside.post("/accounts/logout/")["Location"] == "/accounts/login/"
    assert not is_signed_in(inside)


# --- Passwords --------------------------------------------------------------------------------


def test_forgotten_password_is_replaced_by_mailed_link(client: Client, reader: User):
    response = client.post("/accounts/password/reset/", {"email": EMAIL}, follow=True)
    assert "Check your inbox" in response.content.decode()
    [message] = mail.outbox
    assert message.subject == "Parley: Choose a new password"
    [link] = re.findall(r"http://testserver(/\S+)", str(message.body))

    page = client.get(link, follow=True)
    assert "Choose a new password" in page.content.decode()
    address = page.redirect_chain[-1][0]
    assert link.rstrip("/").rpartition("-")[2] not in address  # the key is not in the address bar
    wrong = client.post(address, {"password1": OTHER, "password2": "different"})
    assert "You must type the same password each time." in wrong.content.decode()
    client.post(address, {"password1": OTHER, "password2": OTHER})

    reader.refresh_from_db()
    assert reader.check_password(OTHER)
    assert is_signed_in(client)

    again = Client().get(link, follow=True)
    assert "This link is no longer valid" in again.content.decode()


def test_links_in_mails_have_the_sites_address(client: Client, reader: User, settings):
    """Whatever the Host of the request says: any port of the site's host passes Django's check."""

    def links(email: str) -> list[str]:
        mail.outbox.clear()
        client.post(
            "/accounts/password/reset/", {"email": email}, headers={"host": "testserver:81"}
        )
        return re.findall(r"https?://[^/\s]+", str(mail.outbox[0].body))

    assert links(EMAIL) == ["http://testserver:81"]
    settings.SITE_URL = "https://chat.example.org"
    assert links(EMAIL) == links("x@example.org") == ["https://chat.example.org"]
    sign_up = {"email": EMAIL, "password1": OTHER, "password2": OTHER}
    Client().post("/accounts/signup/", sign_up, headers={"host": "testserver:81"})
    assert "https://chat.example.org/" in mail.outbox[-1].body
    assert ":81" not in mail.outbox[-1].body
    # Also a new sign-in's, whose mail leads to the list of sessions.
    User.objects.update(last_login=timezone.now())
    Client(headers={"host": "testserver:81"}).post(
        "/accounts/login/", {"login": EMAIL, "password": PASSWORD}
    )
    assert "https://chat.example.org/accounts/sessions/" in mail.outbox[-1].body


def test_reset_link_expires_after_an_hour(client: Client, reader: User, time_machine):
    time_machine.move_to("2026-03-18T12:00:00Z", tick=False)
    client.post("/accounts/password/reset/", {"email": EMAIL})
    [link] = re.findall(r"http://testserver(/\S+)", str(mail.outbox[0].body))
    time_machine.move_to("2026-03-18T12:59:00Z", tick=False)
    assert "Choose a new password" in client.get(link, follow=True).content.decode()
    time_machine.move_to("2026-03-18T13:01:00Z", tick=False)
    assert "This link is no longer valid" in Client().get(link, follow=True).content.decode()


def test_reset_page_does_not_reveal_unknown_addresses(client: Client, reader: User):
    with_account = client.post("/accounts/password/reset/", {"email": EMAIL}, follow=True)
    without = client.post("/accounts/password/reset/", {"email": "x@example.org"}, follow=True)
    token = re.compile(rb'name="csrfmiddlewaretoken" value="\w+"')
    assert token.sub(b"", with_account.content) == token.sub(b"", without.content)
    assert mail.outbox[1].subject == "Parley: There is no account for this address"


def test_password_change_keeps_the_session(inside: Client, reader: User):
    address = "/accounts/password/change/"
    wrong = inside.post(address, {"oldpassword": "wrong", "password1": OTHER, "password2": OTHER})
    assert "Please type your current password." in wrong.content.decode()
    done = inside.post(
        address, {"oldpassword": PASSWORD, "password1": OTHER, "password2": OTHER}, follow=True
    )
    assert "Your password has been changed." in done.content.decode()
    reader.refresh_from_db()
    assert reader.check_password(OTHER)
    assert is_signed_in(inside)


# --- Addresses --------------------------------------------------------------------------------


def test_address_is_confirmed_by_mailed_link(client: Client):
    client.post("/accounts/signup/", {"email": EMAIL, "password1": PASSWORD})
    page = client.get("/accounts/email/").content.decode()
    assert "Not confirmed yet" in page
    [message] = mail.outbox
    assert message.subject == "Parley: Confirm your e-mail address"
    [link] = re.findall(r"http://testserver(/\S+)", str(message.body))
    assert EMAIL in client.get(link).content.decode()
    client.post(link)
    assert "Confirmed" in client.get("/accounts/email/").content.decode()


def test_wrong_confirmation_link_is_refused(client: Client):
    html = client.get("/accounts/confirm-email/nonsense/").content.decode()
    assert "This link is no longer valid" in html


# --- Private and public pages -----------------------------------------------------------------


def patterns(
    resolver: URLResolver, namespace: str = "", path: str = ""
) -> Iterator[tuple[str, str, URLPattern]]:
    """Yield the name, route and pattern of every page, through all includes."""
    for entry in resolver.url_patterns:
        if isinstance(entry, URLResolver):
            inner = f"{namespace}{entry.namespace}:" if entry.namespace else namespace
            yield from patterns(entry, inner, path + str(entry.pattern))
        else:
            yield f"{namespace}{entry.name}", path + str(entry.pattern), entry


def an_address(route: str) -> str:
    """Return an address of a route, with a value for each parameter."""
    route = re.sub(r"<uuid:\w+>", str(uuid4()), route)
    route = re.sub(r"<int:\w+>", "1", route)
    route = re.sub(r"<(?:\w+:)?\w+>", "something", route)
    # Routes by regular expression.
    route = re.sub(r"\(\?P<\w+>[^)]*\)", "something", route)
    return "/" + route.replace("^", "").replace("$", "").replace("\\Z", "").replace("\\", "")


ROUTES = sorted({(name, an_address(route)) for name, route, _ in patterns(get_resolver())})


def test_walk_over_routes_finds_all_pages():
    names = {name for name, _ in ROUTES}
    assert {"chat:new", "chat:send", "admin:index", "account_login", "system_status"} <= names
    assert any(name.startswith("admin:chat_message") for name in names)
    assert names >= PUBLIC_VIEWS


@pytest.mark.parametrize("method", ["get", "post"])
def test_private_pages_redirect_visitors_to_sign_in(client: Client, method: str):
    client.raise_request_exception = False
    unprotected = []
    for name, address in ROUTES:
        response = getattr(client, method)(address)
        is_refused = response.status_code == 302 and "/login/" in response["Location"]
        if name.startswith("rest:"):  # its reference describes it to every visitor
            is_refused = (
                response.status_code in (401, 405) or "/docs/" in address or ".json" in address
            )
        if name not in PUBLIC_VIEWS and not is_refused and response.status_code != 404:
            unprotected.append((name, address, response.status_code))
    assert unprotected == []


def test_json_request_without_session_is_refused(client: Client):
    response = client.get("/chats/", HTTP_ACCEPT="application/json")
    assert response.status_code == 401
    assert response.json()["code"] == "not_signed_in"


def _invitation() -> str:
    token, digest = invitations.new_token()
    Invitation.objects.create(hash=digest, expires_at=timezone.now() + timedelta(days=1))
    return token


def test_pages_open_without_inline_script(client: Client, reader: User):
    """Public pages for visitors, then the pages of an account for its owner."""
    without_a_page = {
        "health",
        "health_ready",
        "admin:login",
        "billing:packages_json",
        "billing:webhook",
        "visitor_language",
        "account_decline_invitation",  # posted to alone
        "chat:public",
        "chat:public_file",
        "chat:public_thumbnail",
        "chat:report_public",
        "chat:public_statistics",
        "chat:statistics_card",
        "manifest",
        "service_worker",
        "account_sign_in_link",  # these three: test_sso.py
        "socialaccount_begin",
        "socialaccount_callback",
    }
    arguments = {
        "account_confirm_email": ["key"],
        "account_reset_password_from_key": ["1", "key"],
    }
    arguments["account_invitation"] = [_invitation()]
    for kind in LegalDocument.Kind.values:
        LegalDocument.objects.create(
            kind=kind, language="en", version=1, text="x", published_at=timezone.now()
        )
        arguments[f"chat:{kind}_version"] = ["1"]
    private = ["account_email", "account_change_password", "account_reauthenticate"]
    for name in [*sorted(PUBLIC_VIEWS - without_a_page), *private]:
        if name in private:
            client.force_login(reader)
        response = client.get(reverse(name, args=arguments.get(name, [])), follow=True)
        html = response.content.decode()
        assert response.status_code == 200, name
        assert not re.search(r"<script(?![^>]*\bsrc=)", html), name
        assert not re.search(r"\son\w+=|\sstyle=|<style", html), name
        assert re.search('<main [^>]*id="main"', html), name


# --- Errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["400", "403", "403_csrf", "403_origin", "404", "500"])
def test_error_pages_need_neither_database_nor_request(name: str, django_assert_num_queries):
    with django_assert_num_queries(0):
        html = render_to_string(f"{name}.html")
    assert f"Error {name[:3]}" in html
    assert "· Parley</title>" in html


def test_unknown_page_is_explained(inside: Client):
    response = inside.get("/nowhere/")
    assert response.status_code == 404
    assert "Page not found" in response.content.decode()
