"""The language of pages: that of the user's row, else of the cookie, else of the browser."""

from __future__ import annotations

import re

import pytest
from django.test import Client

from accounts.models import User

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

PASSWORD = "a-long-password-17"


def shown(response) -> tuple[str, str]:
    """Return the language and the direction that a page declares."""
    found = re.search(r'<html lang="(\w+)" dir="(\w+)"', response.content.decode())
    assert found
    assert found[1] == response["Content-Language"]
    assert {"Accept-Language", "Cookie"} <= set(response["Vary"].split(", "))
    return found[1], found[2]


def test_visitor_gets_the_language_of_browser_or_cookie():
    client = Client(headers={"Accept-Language": "fr, de-AT;q=0.8, es;q=0.5"})
    page = client.get("/accounts/login/")
    assert shown(page) == ("de", "ltr")
    assert "catalogs/de.js" in page.content.decode()
    chosen = client.post(
        "/accounts/language/", {"language": "ar", "next": "/accounts/signup/?next=/"}
    )
    assert chosen.headers["Location"] == "/accounts/signup/?next=/"
    assert shown(client.get("/accounts/login/")) == ("ar", "rtl")
    client.post("/accounts/language/", {"language": "tlh", "next": "https://example.org/"})
    page = client.get("/accounts/login/")
    assert shown(page) == ("en", "ltr")
    assert "catalogs/" not in page.content.decode()


def test_user_keeps_the_language_on_all_devices():
    client = Client(headers={"Accept-Language": "es"})
    client.post("/accounts/signup/", {"email": "reader@example.org", "password1": PASSWORD})
    user = User.objects.get()
    assert user.language == "es"
    saved = client.post("/settings/", {"language": "de"}, follow=True)
    assert shown(saved) == ("de", "ltr")
    assert 'value="de" lang="de" selected' in saved.content.decode()
    assert client.post("/settings/", {"language": "tlh"}).status_code == 400
    # The sign-in page of this device, and the pages of another one that has no cookie yet.
    assert client.cookies["language"].value == "de"
    other = Client(headers={"Accept-Language": "es"})
    other.force_login(user)
    assert shown(other.get("/settings/")) == ("de", "ltr")
    assert other.cookies["language"].value == "de"
    assert shown(other.get("/nowhere/")) == ("de", "ltr")
