"""Single sign-on with real processes: an identity provider in a browser, and the header of a proxy."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from functools import partial

import pytest
from selenium import webdriver

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import DESKTOP, Site, running_site, second_redis
from tests.support import identity_provider
from tests.support.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider

pytestmark = [pytest.mark.e2e, pytest.mark.long]


@pytest.fixture(scope="module")
def issuer() -> Iterator[IdentityProvider]:
    with identity_provider.running() as provider:
        provider.person = {
            "sub": "7",
            "email": "ada@example.org",
            "email_verified": True,
            "name": "Ada Lovelace",
        }
        yield provider


@pytest.fixture(scope="module")
def shared_site(
    tmp_path_factory: pytest.TempPathFactory, issuer: IdentityProvider
) -> Iterator[Site]:
    variables = {
        "OIDC_ISSUER": issuer.address,
        "OIDC_CLIENT_ID": CLIENT_ID,
        "OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "OIDC_NAME": "Example ID",
        "GOOGLE_CLIENT_ID": "x",
        "GOOGLE_CLIENT_SECRET": "x",
        "GITHUB_CLIENT_ID": "x",
        "GITHUB_CLIENT_SECRET": "x",
        "TRUSTED_HEADER": "X-Forwarded-Email",
        "TRUSTED_HEADER_PROXIES": "127.0.0.1",
        "REDIS_URL": second_redis(),
    }
    with running_site(tmp_path_factory.mktemp("sso"), **variables) as site:
        yield site


def is_at(browser: Browser, path: str) -> bool:
    return browser.path == path


def test_browser_signs_in_at_identity_provider(shared_site: Site, driver: webdriver.Chrome):
    """The page goes on under the CSP of the site, also without scripts."""
    for scripting in (True, False):
        browser = Browser(driver, shared_site.base, DESKTOP, scripting=scripting)
        browser.open("/accounts/login/?next=/accounts/connections/")
        browser.click(".sso form:first-of-type button")
        wait_until(partial(is_at, browser, "/accounts/connections/"), "the way back")
        assert "Example ID" in browser.find("main").text
        assert browser.complaints == []


def test_server_takes_the_header_of_its_proxy(shared_site: Site):
    host = shared_site.base.removeprefix("http://")

    def ask(header: str) -> str:
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request(
            "GET", "/chats/", headers={header: "bob@example.org", "Accept": "text/html"}
        )
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.headers["Location"]

    assert ask("X-Forwarded-Email") == "/chats/"
    assert ask("X_Forwarded_Email") == ask("X-Other") == "/accounts/login/?next=/chats/"
