"""A chat that is shared in its dialog: a reader sees the reply while it is written, a visitor sees the link."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import PHONE, Site, running_site, second_redis
from tests.support import axe

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    variables = {"SHARE_WITH_USERS": "1", "SHARE_BY_LINK": "1", "REDIS_URL": second_redis()}
    with running_site(tmp_path_factory.mktemp("sharing"), **variables) as site:
        yield site


def test_shared_chat_is_read_live_and_by_link(
    site: Site, open_browser: Callable[..., Browser], browser: Browser, email: str
):
    reader = f"reader-{uuid4().hex[:8]}@example.org"
    browser.ask("[[tokens=30 rate=0]] Which **plants** need little light?")
    chat = browser.conversation
    browser.click("[data-chat-menu] summary")
    browser.click("[data-chat-menu] a[href$='/share/']")
    browser.wait_for_text("#page-dialog", "People")
    browser.find("#page-dialog [name=email]").send_keys(reader)
    browser.find("#page-dialog [name=email]").submit()
    browser.wait_for_text("#page-dialog .share-rows", reader)
    browser.click("#page-dialog .form-actions button")
    wait_until(lambda: len(browser.shown("#page-dialog copy-field")) == 1, "the link is made")
    focused = "return document.activeElement.matches('copy-field input')"
    wait_until(lambda: browser.run(focused), "the focus stays in its section")
    link = browser.find("#page-dialog copy-field input").get_attribute("value") or ""
    assert axe.violations(browser.driver) == []
    browser.click("#page-dialog .sheet-head button")
    browser.send(f"[[tokens=30 rate=0 hold=5 key={email}]] And which need much?")
    site.provider.wait(held=1)
    visitor = open_browser(PHONE, scripting=False, dark=True)
    visitor.driver.get(link)
    visitor.wait_for_text("h1", "Which")
    assert visitor.texts("form, script") == []
    visitor = open_browser()
    visitor.driver.get(link)
    assert axe.violations(visitor.driver) == []
    visitor.click(".shared-report-link a")
    visitor.click("[name=reason][value=other]")
    visitor.click("form button[type=submit]")
    visitor.wait_for_text("main", "Thank you")
    visitor.sign_up(reader)
    visitor.driver.get(link)
    visitor.click(".shared-foot form button")
    wait_until(lambda: visitor.path.startswith("/c/"), "the copy is opened")
    assert visitor.conversation != chat
    site.execute("UPDATE account_emailaddress SET verified = true WHERE email = %s", reader)
    site.execute(
        "UPDATE chat_conversationshare SET user_id ="
        " (SELECT id FROM accounts_user WHERE email = %s) WHERE email = %s",
        reader, reader,
    )  # fmt: skip
    visitor.open("/shared/")
    visitor.open(f"/c/{chat}/")
    visitor.wait_for_text("chat-shared", "Shared by")
    assert axe.violations(visitor.driver) == []
    wait_until(lambda: visitor.texts("[data-stream]") not in ([], [""]), "the reply is streamed")
    site.provider.release(email)
    wait_until(lambda: not visitor.shown("[data-stream]"), "the whole reply is shown")
    assert len(visitor.texts("chat-shared .reply .prose")) == 2
    assert visitor.complaints == []
    site.execute("DELETE FROM chat_conversationshare WHERE email = %s", reader)
    visitor.wait_for_text("main", "no longer shared with you")
    assert visitor.path == "/shared/?ended"
