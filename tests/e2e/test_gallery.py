"""The pictures of the documentation: `make screenshots` writes them to docs/images/."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import DESKTOP, PHONE
from tests.e2e.gallery import Gallery
from tests.e2e.test_screens import OVERFLOW
from tests.support.people import session_key
from tests.support.stack import PROJECT, Stack

pytestmark = [
    pytest.mark.gallery,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url"),
]

FOLDER = PROJECT / "docs" / "images"
SCALE = 1.5  # pixels of a picture for one of the page
QUALITY = 80
MOST_BYTES = 150_000


class Camera:
    """A browser whose pictures are written to FOLDER."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.taken: list[str] = []

    def open(self, path: str, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> None:
        browser = self.browser
        browser.resize(size)
        width, height = size
        cdp = browser.driver.execute_cdp_cmd
        cdp(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": SCALE, "mobile": width < 500},
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        cdp("Emulation.setEmulatedMedia", {"features": features})
        browser.open(path)
        wait_until(lambda: not browser.shown(".connection"), "the page is connected")

    def take(self, name: str) -> None:
        """Write what the browser shows, and check that the page fits."""
        assert self.browser.run(OVERFLOW) <= 0, name
        # The caret and the frames of a transition differ from run to run.
        self.browser.run(
            "document.getAnimations().filter((one) => one instanceof CSSTransition)"
            ".forEach((one) => one.finish()); document.documentElement.style.caretColor = 'transparent'"
        )
        options = {"format": "webp", "quality": QUALITY}
        data = self.browser.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
        picture = b64decode(data)
        assert len(picture) < MOST_BYTES, (name, len(picture))
        (FOLDER / f"{name}.webp").write_bytes(picture)
        self.taken.append(name)


def test_gallery_is_written(driver: webdriver.Chrome, tmp_path: Path):
    gallery = Gallery()
    chat = gallery.chat.get_absolute_url()
    with Stack(
        tmp_path, provider_url="http://127.0.0.1:9/v1", environment={"STATIC_MANIFEST": "0"}
    ) as stack:
        stack.start("web")
        browser = Browser(driver, stack.base, DESKTOP)
        camera = Camera(browser)
        browser.open("/accounts/login/")
        browser.driver.add_cookie({"name": "sessionid", "value": session_key(gallery.user)})
        camera.open("/")
        camera.take("start")

        browser.write("Which of these models knows most about sailing?")
        browser.click(".model-menu > summary")
        wait_until(lambda: len(browser.shown("[role=option]")) >= 3, "the models are listed")
        browser.wait_for_text("[role=option]", "credits")
        camera.take("models")

        camera.open(chat)
        browser.run("scrollTo(0, 0)")
        camera.take("chat")
        browser.find("body").send_keys(Keys.CONTROL, "k")
        wait_until(lambda: len(browser.shown(".palette-option")) > 3, "the palette is open")
        camera.take("palette")
        camera.open(chat, dark=True)
        browser.run("scrollTo(0, 0)")
        camera.take("chat-dark")
        camera.open(gallery.compared.get_absolute_url())
        camera.take("compare")
        camera.open("/search/?q=fall")
        camera.take("search")
        camera.open("/assistants/")
        camera.take("assistants")
        camera.open("/billing/")
        camera.take("credits")
        camera.open("/billing/usage/")
        camera.take("usage")
        camera.open("/settings/")
        camera.take("settings")

        camera.open(chat, PHONE)
        camera.take("phone-chat")
        camera.open("/", PHONE, dark=True)
        browser.click(".topbar [popovertarget=sidebar]")
        wait_until(lambda: browser.shown("chat-sidebar"), "the list is open")
        camera.take("phone-list-dark")

        gallery.user.is_staff = gallery.user.is_superuser = True
        gallery.user.save()
        camera.open("/admin/billing/report/")
        camera.take("admin")

        gallery.user.language = "ar"
        gallery.user.save()
        camera.open(gallery.arabic.get_absolute_url())
        camera.take("right-to-left")
        assert browser.complaints == []
    assert len(camera.taken) >= 12
