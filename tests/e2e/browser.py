"""A person's browser: actions and visible contents, in the words of the page."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import (
    NoSuchElementException,
    StaleElementReferenceException,
    WebDriverException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

PATIENCE = 30.0  # seconds: only so that a hang fails
# Words in the errors of a driver about a page that is left while it is examined.
BEING_LEFT = ("execution context", "does not belong to the document", "aborted by navigation")
PASSWORD = "a-long-password-17"

T = TypeVar("T")


class Browser:
    """A driver with one empty tab, new and signed out, for a screen of `size`."""

    def __init__(
        self,
        driver: webdriver.Chrome,
        base: str,
        size: tuple[int, int],
        *,
        scripting: bool = True,
        dark: bool = False,
    ) -> None:
        self.driver = driver
        self.base = base
        self._size = size
        self._scripting = scripting
        self._dark = dark
        self._forget()
        self._emulate()

    def _forget(self) -> None:
        old = self.driver.window_handles
        # The session storage of a page ends with its tab.
        self.driver.switch_to.new_window("tab")
        new = self.driver.current_window_handle
        for tab in old:
            self.driver.switch_to.window(tab)
            self.driver.close()
        self.driver.switch_to.window(new)
        self.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        self.driver.get_log("browser")

    def _emulate(self) -> None:
        width, height = self._size
        is_phone = width < 500
        scheme = "dark" if self._dark else "light"
        for command, parameters in (
            (
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone},
            ),
            ("Emulation.setTouchEmulationEnabled", {"enabled": is_phone}),
            # A headless browser has no focused window; pages depend on the focus.
            ("Emulation.setFocusEmulationEnabled", {"enabled": True}),
            (
                "Emulation.setEmulatedMedia",
                {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
            ),
            ("Emulation.setScriptExecutionDisabled", {"value": not self._scripting}),
        ):
            self.driver.execute_cdp_cmd(command, parameters)

    def resize(self, size: tuple[int, int]) -> None:
        """Change the size of the screen, without reloading the page."""
        self._size = size
        self._emulate()

    # --- Going places

    def open(self, path: str = "/") -> None:
        self.driver.get(self.base + path)

    def new_tab(self, path: str) -> str:
        """Open and select a tab of the same session; return its name for `go_to_tab`."""
        self.driver.switch_to.new_window("tab")
        self._emulate()
        self.open(path)
        return self.driver.current_window_handle

    @property
    def tab(self) -> str:
        return self.driver.current_window_handle

    def go_to_tab(self, name: str) -> None:
        self.driver.switch_to.window(name)

    @property
    def path(self) -> str:
        return self.driver.current_url.removeprefix(self.base)

    @property
    def conversation(self) -> str:
        """The id of the conversation in the address."""
        wait_until(lambda: self.path.startswith("/c/"), "the chat gets its address")
        return self.path.split("/")[2]

    def sign_up(self, email: str) -> None:
        self.open("/accounts/signup/")
        self.find("[name=email]").send_keys(email)
        self.find("[name=password1]").send_keys(PASSWORD, Keys.ENTER)
        wait_until(lambda: self.path == "/", "signing up leads to a new chat")

    def sign_in(self, email: str) -> None:
        self.open("/accounts/login/")
        self.find("[name=login]").send_keys(email)
        self.find("[name=password]").send_keys(PASSWORD, Keys.ENTER)
        wait_until(lambda: self.path == "/", "signing in leads to a new chat")

    # --- Chatting

    def write(self, text: str) -> None:
        self.find("chat-composer textarea").send_keys(text)

    def send(self, text: str) -> None:
        self.write(text)
        self.find("chat-composer textarea").send_keys(Keys.ENTER)

    def ask(self, text: str) -> None:
        """Send a message and wait for the end of its reply."""
        before = len(self.own_messages)
        self.send(text)
        wait_until(lambda: len(self.own_messages) > before, "the message is shown")
        self.wait_for_status("done")

    def click(self, selector: str) -> None:
        def press() -> bool:
            found = self.shown(selector)
            if found:
                found[0].click()  # raises when a reload has removed it
            return bool(found)

        wait_until(press, f"{selector} is there to click")

    @property
    def draft(self) -> str:
        return str(self.find("chat-composer textarea").get_property("value"))

    @property
    def own_messages(self) -> list[str]:
        return self.texts(".message.own .own-text")

    @property
    def reply(self) -> str:
        """The visible text of the newest reply; empty while it has none."""
        return (self.texts(".message.reply:last-child :is(.stream, .prose)") or [""])[-1]

    @property
    def status(self) -> str:
        """The newest reply's status: pending, done, stopped or failed; empty without a reply."""
        found = self.driver.find_elements(By.CSS_SELECTOR, ".message.reply:last-child")
        return (found[0].get_attribute("data-status") or "") if found else ""

    def wait_for_status(self, *wanted: str) -> None:
        wait_until(lambda: self.status in wanted, f"the reply is {' or '.join(wanted)}")

    def wait_for_text(self, selector: str, text: str) -> None:
        wait_until(
            lambda: any(text in found for found in self.texts(selector)),
            f"{selector} says {text!r}, not {self.texts(selector)!r}",
        )

    # --- Looking

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def shown(self, selector: str) -> list[WebElement]:
        found = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return [element for element in found if element.is_displayed()]

    def texts(self, selector: str) -> list[str]:
        """The texts of the visible elements."""
        texts = self.run(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((element) => element.checkVisibility()).map((element) => element.innerText)",
            selector,
        )
        assert isinstance(texts, list)
        return texts

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    @property
    def complaints(self) -> list[str]:
        """Severe errors in the browser's console, except lost connections."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE" and "WebSocket connection" not in entry["message"]
        ]


def wait_until(condition: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Return the condition's first true result."""
    give_up_at = time.monotonic() + patience
    while True:
        answer: T | None
        try:
            answer = condition()
        except (NoSuchElementException, StaleElementReferenceException):
            answer = None  # the page changed meanwhile
        except WebDriverException as error:
            if not any(words in str(error) for words in BEING_LEFT):
                raise
            answer = None
        if answer:
            return answer
        assert time.monotonic() < give_up_at, f"not in {patience} s: {what}"
        time.sleep(0.03)
