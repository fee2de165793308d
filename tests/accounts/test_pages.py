"""The pages of an account, as people walk through them, and the doors that are closed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from uuid import uuid4

import pytest
from django.core import mail
from django.template.loader import render_to_string
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from accounts.access import PUBLIC_VIEWS
from accounts.models import User

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


def test_signing_up_leads_to_a_new_chat(client: Client):
    response = client.post("/accounts/signup/", {"email": "New@Example.org", "password1": PASSWORD})
    assert response["Location"] == "/"
    assert User.objects.get().email == "new@example.org"
    assert is_signed_in(client)


@pytest.mark.parametrize(
    ("email", "password", "words"),
    [
        ("", PASSWORD, "This field is required."),
        ("nobody", PASSWORD, "Enter a valid email address."),
        (EMAIL, "short", "This password is too short."),
        (EMAIL, "1234567890", "This password is too common."),
        (EMAIL, EMAIL, "The password is too similar to the"),
    ],
)
def test_signing_up_says_what_is_wrong_beside_the_field(
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


def test_signing_up_with_a_taken_address_is_refused(client: Client, reader: User):
    response = client.post("/accounts/signup/", {"email": EMAIL, "password1": PASSWORD})
    assert "A user is already registered with this email address." in response.content.decode()
    assert not is_signed_in(client)


def test_where_addresses_are_confirmed_only_its_owner_learns_that_one_is_taken(
    client: Client, reader: User, settings
):
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


def test_signing_in_leads_where_one_wanted_to_go(client: Client, reader: User):
    asked = client.get("/chats/")
    assert asked["Location"] == "/accounts/login/?next=/chats/"
    page = client.get(asked["Location"]).content.decode()
    assert '<input type="hidden" name="next" value="/chats/">' in page
    response = client.post(
        "/accounts/login/", {"login": EMAIL.upper(), "password": PASSWORD, "next": "/chats/"}
    )
    assert response["Location"] == "/chats/"
    # Signing in shows itself; no sentence says it.
    assert "notice" not in client.get("/chats/").content.decode().split("<main")[1]


def test_signing_in_does_not_lead_to_other_sites(client: Client, reader: User):
    response = client.post(
        "/accounts/login/",
        {"login": EMAIL, "password": PASSWORD, "next": "https://elsewhere.example/"},
    )
    assert response["Location"] == "/"


@pytest.mark.parametrize("login", [EMAIL, "nobody@example.org"])
def test_a_wrong_password_says_the_same_for_every_address(client: Client, reader: User, login: str):
    response = client.post("/accounts/login/", {"login": login, "password": "wrong"})
    html = response.content.decode()
    assert "The email address and/or password you specified are not correct." in html
    assert f'value="{login}"' in html
    assert not is_signed_in(client)


def test_a_closed_account_cannot_sign_in(client: Client, reader: User):
    reader.is_active = False
    reader.save()
    client.post("/accounts/login/", {"login": EMAIL, "password": PASSWORD})
    assert not is_signed_in(client)


def test_password_managers_find_what_they_look_for(client: Client):
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


def test_signing_out_asks_first_and_then_does_it(inside: Client):
    assert "Sign out?" in inside.get("/accounts/logout/").content.decode()
    assert is_signed_in(inside)
    assert inside.post("/accounts/logout/")["Location"] == "/accounts/login/"
    assert not is_signed_in(inside)


# --- Passwords --------------------------------------------------------------------------------


def test_a_forgotten_password_is_replaced_by_a_link_from_a_mail(client: Client, reader: User):
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


def test_a_link_that_is_older_than_an_hour_does_not_work(
    client: Client, reader: User, time_machine
):
    time_machine.move_to("2026-03-18T12:00:00Z", tick=False)
    client.post("/accounts/password/reset/", {"email": EMAIL})
    [link] = re.findall(r"http://testserver(/\S+)", str(mail.outbox[0].body))
    time_machine.move_to("2026-03-18T12:59:00Z", tick=False)
    assert "Choose a new password" in client.get(link, follow=True).content.decode()
    time_machine.move_to("2026-03-18T13:01:00Z", tick=False)
    assert "This link is no longer valid" in Client().get(link, follow=True).content.decode()


def test_an_address_without_an_account_is_told_by_mail_and_not_on_the_page(
    client: Client, reader: User
):
    with_account = client.post("/accounts/password/reset/", {"email": EMAIL}, follow=True)
    without = client.post("/accounts/password/reset/", {"email": "x@example.org"}, follow=True)
    assert with_account.content == without.content
    assert mail.outbox[1].subject == "Parley: There is no account for this address"


def test_the_password_can_be_changed_and_one_stays_signed_in(inside: Client, reader: User):
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


def test_an_address_is_confirmed_by_a_link_from_a_mail(client: Client):
    client.post("/accounts/signup/", {"email": EMAIL, "password1": PASSWORD})
    page = client.get("/accounts/email/").content.decode()
    assert "Not confirmed yet" in page
    [message] = mail.outbox
    assert message.subject == "Parley: Confirm your e-mail address"
    [link] = re.findall(r"http://testserver(/\S+)", str(message.body))
    assert EMAIL in client.get(link).content.decode()
    client.post(link)
    assert "Confirmed" in client.get("/accounts/email/").content.decode()


def test_a_wrong_link_to_confirm_says_so(client: Client):
    html = client.get("/accounts/confirm-email/nonsense/").content.decode()
    assert "This link is no longer valid" in html


def test_another_address_can_be_added_and_removed(inside: Client):
    added = inside.post(
        "/accounts/email/", {"email": "second@example.org", "action_add": ""}, follow=True
    )
    assert "We have sent a link to second@example.org." in added.content.decode()
    gone = inside.post(
        "/accounts/email/", {"email": "second@example.org", "action_remove": ""}, follow=True
    )
    assert "second@example.org has been removed." in gone.content.decode()


# --- Closed doors -----------------------------------------------------------------------------


def patterns(
    resolver: URLResolver, namespace: str = "", path: str = ""
) -> Iterator[tuple[str, str, URLPattern]]:
    """Name and route of every page there is, through all includes."""
    for entry in resolver.url_patterns:
        if isinstance(entry, URLResolver):
            inner = f"{namespace}{entry.namespace}:" if entry.namespace else namespace
            yield from patterns(entry, inner, path + str(entry.pattern))
        else:
            yield f"{namespace}{entry.name}", path + str(entry.pattern), entry


def an_address(route: str) -> str:
    """An address of a route, with something in the place of each parameter."""
    route = re.sub(r"<uuid:\w+>", str(uuid4()), route)
    route = re.sub(r"<int:\w+>", "1", route)
    route = re.sub(r"<(?:\w+:)?\w+>", "something", route)
    # Routes by regular expression.
    route = re.sub(r"\(\?P<\w+>[^)]*\)", "something", route)
    return "/" + route.replace("^", "").replace("$", "").replace("\\Z", "").replace("\\", "")


ROUTES = sorted({(name, an_address(route)) for name, route, _ in patterns(get_resolver())})


def test_the_walk_over_all_pages_finds_them():
    names = {name for name, _ in ROUTES}
    assert {"chat:new", "chat:send", "admin:index", "account_login", "health"} <= names
    assert any(name.startswith("admin:chat_message") for name in names)
    assert names >= PUBLIC_VIEWS


@pytest.mark.parametrize("method", ["get", "post"])
def test_every_page_that_is_not_public_sends_visitors_to_sign_in(client: Client, method: str):
    client.raise_request_exception = False
    open_doors = []
    for name, address in ROUTES:
        response = getattr(client, method)(address)
        sent_away = response.status_code == 302 and "/login/" in response["Location"]
        if name not in PUBLIC_VIEWS and not sent_away and response.status_code != 404:
            open_doors.append((name, address, response.status_code))
    assert open_doors == []


def test_programs_are_told_that_they_are_not_signed_in(client: Client):
    response = client.get("/chats/", HTTP_ACCEPT="application/json")
    assert response.status_code == 401
    assert response.json()["code"] == "not_signed_in"


def test_public_pages_open_for_visitors_and_carry_no_inline_script(client: Client):
    without_a_page = {
        "health",
        "health_ready",
        "admin:login",
        "billing:packages_json",
        "billing:webhook",
    }
    for name in sorted(PUBLIC_VIEWS - without_a_page):
        arguments = {
            "account_confirm_email": ["key"],
            "account_reset_password_from_key": ["1", "key"],
        }.get(name, [])
        response = client.get(reverse(name, args=arguments), follow=True)
        html = response.content.decode()
        assert response.status_code == 200, name
        assert not re.search(r"<script(?![^>]*\bsrc=)", html), name
        assert not re.search(r"\son\w+=|\sstyle=|<style", html), name
        assert '<main id="main">' in html, name


def test_pages_of_the_account_carry_no_inline_script(inside: Client):
    for name in ("account_email", "account_change_password", "account_reauthenticate"):
        html = inside.get(reverse(name)).content.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)", html), name
        assert not re.search(r"\son\w+=|\sstyle=|<style", html), name
        assert '<main id="main">' in html, name


# --- Errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["400", "403", "403_csrf", "404", "500"])
def test_pages_of_errors_need_neither_database_nor_request(name: str, django_assert_num_queries):
    with django_assert_num_queries(0):
        html = render_to_string(f"{name}.html")
    assert f"Error {name[:3]}" in html
    assert "· Parley</title>" in html


def test_what_is_not_there_is_told_in_words(inside: Client):
    response = inside.get("/nowhere/")
    assert response.status_code == 404
    assert "Page not found" in response.content.decode()
