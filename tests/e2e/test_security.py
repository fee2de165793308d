"""Passkeys in a real browser, with Chromium's virtual authenticator, and the pages of Security."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.browser import PASSWORD, Browser, wait_until
from tests.e2e.conftest import PHONE, Site
from tests.e2e.test_screens import OVERFLOW

pytestmark = pytest.mark.e2e

AUTHENTICATOR = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}
PASSKEYS = "SELECT count(*) FROM mfa_authenticator WHERE type = 'webauthn'"


def test_passkey_is_added_and_signs_in(
    site: Site, open_browser: Callable[..., Browser], email: str
):
    browser = open_browser(PHONE)
    # An address has no passkeys; `localhost` is the one name that needs no https.
    browser.base = browser.base.replace("127.0.0.1", "localhost")
    browser.sign_up(email)
    site.execute("UPDATE account_emailaddress SET verified = true WHERE email = %s", email)
    run = browser.driver.execute_cdp_cmd
    run("WebAuthn.enable", {"enableUI": False})
    device = run("WebAuthn.addVirtualAuthenticator", {"options": AUTHENTICATOR})["authenticatorId"]
    try:
        browser.open("/accounts/security/passkey/")
        browser.find("[name=password]").send_keys(PASSWORD)
        browser.click("button[type=submit]")
        wait_until(
            lambda: browser.path.startswith("/accounts/security/passkey/"), "the password is right"
        )
        browser.find("[name=name]").send_keys(" of a phone")
        browser.click("passkey-form button")
        wait_until(lambda: browser.path == "/accounts/security/codes/", "the codes are shown")
        assert len(browser.driver.find_elements("css selector", ".factor-codes li")) == 10
        assert browser.run(OVERFLOW) <= 0
        assert site.rows(PASSKEYS) == [(1,)]
        browser.open("/accounts/security/")
        browser.wait_for_text(".settings", "Passkey of a phone")
        assert browser.run(OVERFLOW) <= 0

        # As the second factor.
        run("Network.clearBrowserCookies", {})
        browser.open("/accounts/login/?next=/settings/")
        browser.find("[name=login]").send_keys(email)
        browser.find("[name=password]").send_keys(PASSWORD)
        browser.click("form:has([name=password]) [type=submit]")
        wait_until(
            lambda: browser.path.startswith("/accounts/login/code/"), "the factor is asked for"
        )
        browser.click("passkey-form button")
        wait_until(lambda: browser.path == "/settings/", "the passkey completes the sign-in")

        # In place of the password.
        run("Network.clearBrowserCookies", {})
        browser.open("/accounts/login/?next=/settings/")
        browser.click("passkey-form button")
        wait_until(lambda: browser.path == "/settings/", "the passkey alone signs in")

        # One that the site does not know, or no longer.
        site.execute("DELETE FROM mfa_authenticator")
        run("Network.clearBrowserCookies", {})
        browser.open("/accounts/login/")
        browser.click("passkey-form button")
        browser.wait_for_text(".notice", "That did not work.")
        run("WebAuthn.removeVirtualAuthenticator", {"authenticatorId": device})
        device = ""
        errors = [one for one in browser.driver.get_log("browser") if one["level"] == "SEVERE"]
        assert errors == []
    finally:
        if device:
            run("WebAuthn.removeVirtualAuthenticator", {"authenticatorId": device})
        run("WebAuthn.disable", {})
