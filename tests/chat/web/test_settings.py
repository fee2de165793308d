"""The settings of a user: stored in the row, in a cookie for pages without a user, and in every page's markup."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from accounts.settings_pages import PAGES
from billing.credits import MICRO
from billing.models import Account, Plan

pytestmark = pytest.mark.usefixtures("valkey_url", "assistant")

DARK = {"theme": "dark", "text_size": "large"}
SHOWN = b'<html lang="en" dir="ltr" data-theme="dark" data-text-size="large">'


@pytest.fixture
def page(owner: User) -> Client:
    client = Client()
    client.force_login(owner)
    return client


def test_appearance_holds_on_all_pages_and_devices(page, owner):
    other = Client()
    other.force_login(owner)
    assert b'data-theme="system" data-text-size="medium"' in other.get("/").content
    assert "appearance" not in other.cookies
    response = page.post("/settings/", DARK)
    assert (response.status_code, response["Location"]) == (302, "/settings/")
    for client in (page, other):
        for path in ("/", "/settings/", "/chats/", "/billing/"):
            html = client.get(path).content
            assert SHOWN in html, path
            assert b'data-scheme="dark" content="#161513" media="all"' in html
        assert SHOWN in client.get("/nowhere").content  # an address without a view: by the cookie
        client.get("/accounts/logout/")
        client.post("/accounts/logout/")
        assert SHOWN in client.get("/accounts/login/").content


@pytest.mark.parametrize(
    "fields", [{}, {"theme": "dark"}, DARK | {"theme": "\x00"}, DARK | {"text_size": "x" * 9_000}]
)
def test_unknown_choice_is_refused_and_changes_nothing(page, owner, fields):
    assert page.post("/settings/", fields).status_code == 400
    answer = page.post("/settings/", fields, headers={"Accept": "application/json"})
    assert answer.status_code == 400
    owner.refresh_from_db()
    assert (owner.theme, owner.text_size) == ("system", "medium")


@pytest.mark.parametrize("value", ["", ".", "dark", 'dark."><script>', "red.medium", "dark.huge.x"])
def test_strange_cookie_shows_the_default(value):
    client = Client()
    client.cookies["appearance"] = value
    html = client.get("/accounts/login/").content
    assert b'<html lang="en" dir="ltr" data-theme="system" data-text-size="medium">' in html


def test_single_keys_are_switched_by_their_own_form(page, owner):
    page.post("/settings/", DARK)
    for fields, is_on in (({"keyboard": ""}, False), ({"keyboard": "", "single_keys": "on"}, True)):
        assert page.post("/settings/", fields)["Location"] == "/settings/"
        assert (b"<chat-keys data-single-keys>" in page.get("/").content) is is_on
    assert SHOWN in page.get("/").content


def test_hints_are_shown_until_they_are_hidden(page, owner, stranger):
    html = page.get("/").content.decode()
    assert "You have 100 credits." in html
    assert '<a href="/billing/">See your credits</a>' in html
    response = page.post("/settings/", {"hide_hints": "1"})
    assert (response.status_code, response["Location"]) == (302, "/")
    assert "Good to know" not in page.get("/").content.decode()
    page.force_login(stranger)
    assert "Good to know" in page.get("/").content.decode()


def test_navigation_marks_the_current_settings_page(page, owner):
    shown = [entry for entry in PAGES if entry.is_shown()]
    for entry in shown:
        html = page.get(reverse(entry.view)).content.decode()
        for other in shown:
            link = f'class="settings-page" href="{reverse(other.view)}"'
            assert (f'{link} aria-current="page"' in html) == (other is entry), entry.view
            assert link in html
        assert ("settings-back" in html) == (entry is not PAGES[0])


def test_display_name_is_stored_or_refused(page, owner):
    assert page.post("/accounts/profile/", {"display_name": " Ada <b> "}).status_code == 302
    owner.refresh_from_db()
    assert owner.display_name == "Ada <b>"
    assert "Ada &lt;b&gt;" in page.get("/accounts/profile/").content.decode()
    for wrong in ("x" * 61, "a\x00b"):
        assert page.post("/accounts/profile/", {"display_name": wrong}).status_code == 400
    owner.refresh_from_db()
    assert owner.display_name == "Ada <b>"


def test_profile_shows_the_plan_of_the_account(page, owner):
    assert "Your plan" not in page.get("/accounts/profile/").content.decode()
    Plan.objects.create(slug="free", name="Free", is_default=True, monthly_messages=50)
    html = page.get("/accounts/profile/").content.decode()
    assert "Your plan: Free." in html
    assert "Messages each month: 50." in html
    assert "credits each month" not in html
    own = Plan.objects.create(slug="team", name="Team", monthly_credits=500 * MICRO)
    Account.objects.filter(user=owner).update(plan=own)
    html = page.get("/accounts/profile/").content.decode()
    assert "Your plan: Team." in html
    assert "500 credits each month." in html
