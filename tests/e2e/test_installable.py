"""The service worker: the offline page while the site is unreachable, and its removal."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium import webdriver

from chat.models import PushSubscription
from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import DESKTOP, PHONE
from tests.e2e.test_screens import NARROW, OVERFLOW
from tests.support import axe
from tests.support.push_service import push_service
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url"),
]

STORED = """
const done = arguments[0];
(async () => {
  const paths = [];
  for (const name of await caches.keys()) {
    for (const {url} of await (await caches.open(name)).keys()) paths.push(new URL(url).pathname);
  }
  done(paths);
})();
"""


# In place of the browser's own push service, which is outside of this machine.
SUBSCRIBE = """
const [fields, done] = arguments;
navigator.serviceWorker.ready.then(({pushManager}) => {
  pushManager.getSubscription = async () => null;
  pushManager.subscribe = async ({applicationServerKey, userVisibleOnly}) => {
    if (!userVisibleOnly || applicationServerKey.length !== 87) throw new Error("refused");
    const {endpoint, ...keys} = fields;
    return {toJSON: () => ({endpoint, keys})};
  };
  done();
});
"""


def test_settings_turn_notifications_on_and_off(driver: webdriver.Chrome, tmp_path: Path):
    with (
        push_service() as service,
        Stack(
            tmp_path,
            provider_url="http://127.0.0.1:9/v1",
            environment={"STATIC_MANIFEST": "0", "PUSH_HOSTS": service.address},
        ) as stack,
    ):
        stack.start("web")
        browser = Browser(driver, stack.base, PHONE)
        browser.driver.execute_cdp_cmd(
            "Browser.grantPermissions", {"origin": stack.base, "permissions": ["notifications"]}
        )
        browser.sign_up("reader@example.org")
        browser.open("/settings/notifications/")
        browser.driver.execute_async_script(SUBSCRIBE, service.subscription)
        browser.click("[data-turn-on]")
        browser.wait_for_text(".notice-text", "Notifications are on for this device.")
        browser.wait_for_text(".device-name", "this device")
        assert not browser.shown("chat-push")
        assert browser.run(OVERFLOW) <= 0
        assert axe.violations(browser.driver) == []
        assert PushSubscription.objects.get().endpoint == service.subscription["endpoint"]
        browser.click(".device [name=remove]")
        browser.wait_for_text(".notice-text", "Notifications are off for this device.")
        assert browser.shown("[data-turn-on]")
        assert not PushSubscription.objects.exists()
        assert browser.complaints == []


def test_unreachable_site_shows_the_offline_page(driver: webdriver.Chrome, tmp_path: Path):
    with Stack(
        tmp_path, provider_url="http://127.0.0.1:9/v1", environment={"STATIC_MANIFEST": "0"}
    ) as stack:
        stack.start("web")
        browser = Browser(driver, stack.base, DESKTOP)
        browser.sign_up("reader@example.org")
        browser.run("navigator.serviceWorker.ready.then(() => { window.isReady = true; })")
        wait_until(lambda: browser.run("return window.isReady"), "the worker is active")
        browser.open("/chats/")
        stored = browser.driver.execute_async_script(STORED)
        assert "/offline/" in stored
        assert all(path.startswith(("/static/", "/offline/")) for path in stored)
        manifest = browser.driver.execute_cdp_cmd("Page.getAppManifest", {})
        assert manifest["errors"] == []
        assert browser.driver.execute_cdp_cmd("Page.getInstallabilityErrors", {}) == {
            "installabilityErrors": []
        }
        assert browser.complaints == []

        stack.terminate("web")
        browser.open("/settings/")
        browser.wait_for_text("h1", "You are offline")
        assert browser.path == "/settings/"
        browser.wait_for_text("[data-waiting]", "opens as soon as the connection is back")
        assert axe.violations(browser.driver) == []
        for size in (NARROW, PHONE, DESKTOP):
            browser.resize(size)
            assert browser.run(OVERFLOW) <= 0

        # With it the page that was asked for comes back, and the worker is switched off.
        stack.change_environment(SERVICE_WORKER="0")
        stack.start("web")
        browser.wait_for_text(".topbar-title", "Settings")
        wait_until(
            lambda: browser.driver.execute_async_script(
                "navigator.serviceWorker.getRegistrations()"
                ".then(({length}) => arguments[0](length === 0))"
            ),
            "the worker removes itself",
        )
