"""Every page, for a visitor, a new user, and staff with much data: axe, the console, and no sideways scroll.

The pages are those of the URL configuration, so that a new one is examined too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.template import loader
from django.test import Client
from django.urls import get_resolver, reverse
from pytest_django.live_server_helper import LiveServer
from selenium import webdriver

from accounts.models import User
from chat.conversations.lifecycle import first_title
from chat.models import Assistant, Message, MessagePart
from chat.rendering.document import to_html
from tests.accounts.test_pages import patterns
from tests.e2e.browser import Browser
from tests.e2e.conftest import DESKTOP, PHONE
from tests.e2e.test_screens import NARROW, OVERFLOW
from tests.support import axe, staff_rows
from tests.support.conversations import add_turns, begin
from tests.support.people import assistant
from tests.support.visitor import Visitor, without_limits
from tests.test_odd_input import addresses

__all__ = ["assistant"]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url"),
    pytest.mark.timeout(400),
]

QUESTION = "How do I plan a journey by boat? " + "unbroken" * 20
REPLY = f"""
# A heading

Words with **emphasis**, `code`, [a link](https://example.org/), a formula \\(a^2 + b^2\\), and

> a quotation.

1. An item
   - and one inside it

```python
print("a line of code that is wider than the page " * 3)  # {"x" * 200}
```

| | name | {"a wide column | " * 12}
|---|---|{"---|" * 12}
| 1 | one | {"1234567890 | " * 12}

| a table | of two columns |
|---|---|
| 1 | 2 |

$$\\int_0^1 x\\,dx = \\frac12$$
"""

# Pages of Django's own admin, which are not ours to mend, and those that sign out.
DJANGOS = re.compile(
    r"_(changelist|add|change|history|delete)$|^admin:(logout|jsi18n|autocomplete|password|view_on_site)"
    r"|^admin:django_rq|^rq_|^None$"
)
ERRORS = ("400", "403", "403_csrf", "403_origin", "429", "500", "503")


@pytest.fixture(autouse=True)
def _no_limits(settings: Any) -> None:
    without_limits(settings)


class Tour:
    """A browser that examines pages and collects what is wrong with them."""

    def __init__(self, driver: webdriver.Chrome, base: str) -> None:
        self.browser = Browser(driver, base, DESKTOP)
        self.found: list[tuple[str, str, object]] = []

    def enter(self, user: User) -> None:
        client = Client()
        client.force_login(user)
        self.browser.open("/accounts/login/")
        key = client.cookies["sessionid"].value
        self.browser.driver.add_cookie({"name": "sessionid", "value": key})

    def visit(self, path: str, *, is_error: bool = False) -> None:
        """Open and examine a page; the console may report the status of an error page."""
        self._emulate(DESKTOP, "light")
        self.browser.open(path)
        self.examine(path)
        complaints = self.browser.complaints
        if is_error and len(complaints) == 1 and "Failed to load resource" in complaints[0]:
            complaints = []
        self._expect(path, "console", complaints)

    def examine(self, path: str) -> None:
        """Examine the open page: all rules once, and contrast and width in each form of the page."""
        driver, run = self.browser.driver, self.browser.run
        self._expect(path, "light", axe.violations(driver))
        self._emulate(PHONE, "dark")
        self._expect(path, "dark phone", axe.violations(driver, "color-contrast", "target-size"))
        self._expect_to_fit(path, "phone")
        self._emulate(NARROW, "dark")
        self._expect_to_fit(path, "narrow")
        run("document.documentElement.dir = 'rtl'")
        self._expect_to_fit(path, "narrow, from right to left")
        self._emulate(DESKTOP, "light")
        self._expect_to_fit(path, "from right to left")
        self._expect(path, "from right to left", axe.violations(driver, "color-contrast"))
        run("document.documentElement.dir = ''")
        self._expect_to_fit(path, "desktop")

    @property
    def report(self) -> str:
        return "\n".join(f"{path} ({form}): {found}" for path, form, found in self.found)

    def _emulate(self, size: tuple[int, int], scheme: str) -> None:
        self.browser.resize(size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def _expect_to_fit(self, path: str, form: str) -> None:
        excess = self.browser.run(OVERFLOW)
        self._expect(path, f"sideways scroll, {form}", [excess] if excess > 0 else [])

    def _expect(self, path: str, form: str, found: list[Any]) -> None:
        if found:
            self.found.append((path, form, found))


@pytest.fixture
def tour(live_server: LiveServer, driver: webdriver.Chrome) -> Tour:
    return Tour(driver, live_server.url)


def pages(user: User | None, found: Iterator[tuple[str, str]]) -> Iterator[str]:
    """The addresses that answer this user with an HTML page of their own."""
    visitor = Visitor(user)
    seen = set()
    for name, address in found:
        if DJANGOS.search(name) or address in seen:
            continue
        seen.add(address)
        response = visitor.request("get", address)
        # The live server streams no page; fragments are parts of other pages.
        if response.status_code == 200 and not response.streaming and b"<html" in response.content:
            yield address


def without_parameters() -> Iterator[tuple[str, str]]:
    for name, route, _ in patterns(get_resolver()):
        if "<" not in route:
            yield name, "/" + re.sub(r"[\^$\\]|\\Z", "", route)


def test_pages_of_visitors_are_accessible(tour: Tour):
    for path in pages(None, without_parameters()):
        tour.visit(path)
    tour.visit("/nowhere/", is_error=True)
    # Error pages that no visit leads to.
    frame = tour.browser.driver.execute_cdp_cmd("Page.getFrameTree", {})["frameTree"]["frame"]["id"]
    for name in ERRORS:
        html = loader.render_to_string(f"{name}.html", {"retry_after": 30})
        tour.browser.driver.execute_cdp_cmd(
            "Page.setDocumentContent", {"frameId": frame, "html": html}
        )
        tour.examine(f"{name}.html")
    assert tour.found == [], tour.report


@pytest.mark.parametrize("step", [2, pytest.param(1, marks=pytest.mark.long)])
def test_pages_of_new_user_are_accessible(tour: Tour, assistant: Assistant, step: int):
    """Each second page, and all of them in `make ci-long`."""
    user = User.objects.create_user("reader@example.org", "a-long-password-17")
    tour.enter(user)
    for path in [*pages(user, without_parameters())][::step]:
        tour.visit(path)
    tour.visit("/styleguide/", is_error=True)
    assert tour.found == [], tour.report


@pytest.mark.long
def test_pages_with_much_data_are_accessible(tour: Tour):
    staff_rows.make()
    user = User.objects.get(pk=Message.objects.values("conversation__owner")[:1])
    user.is_staff = user.is_superuser = True
    user.save()
    chat = begin(user, Assistant.objects.get(), title=first_title(QUESTION))
    [asked, reply] = add_turns(user, chat, 1)
    Message.objects.filter(pk=asked.pk).update(text=QUESTION * 20)
    Message.objects.filter(pk=reply.pk).update(text=REPLY, html=to_html(REPLY))
    MessagePart.objects.create(
        message=reply, position=0, kind="reasoning", data={"text": REPLY, "seconds": 12}
    )
    tour.enter(user)
    for path in [chat.get_absolute_url(), *pages(user, addresses())]:
        tour.visit(path)
    tour.visit(f"{reverse('chat:search')}?q=journey")
    assert tour.found == [], tour.report
