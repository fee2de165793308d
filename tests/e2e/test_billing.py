"""Money in the browser: the balance, purchases, promo codes and receipts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
from selenium import webdriver

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import DESKTOP, PHONE, Site, running_site, second_redis
from tests.e2e.test_screens import LOW_CONTRAST, NARROW, OVERFLOW

pytestmark = pytest.mark.e2e

CREDIT = 1_000_000

# Scrollable boxes that hide a few pixels only: their scrollbar shows nothing.
NEARLY_FITTING = """
return [...document.querySelectorAll("main *")]
  .filter((box) => ["auto", "scroll"].includes(getComputedStyle(box).overflowX))
  .map((box) => [box.className, box.scrollWidth - box.clientWidth, box.scrollHeight - box.clientHeight])
  .filter(([, across, down]) => (across > 0 && across < 8) || down > 0);
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A Parley that sells two more packages, Tiny and Huge, at its test bank."""
    with running_site(
        tmp_path_factory.mktemp("shop"),
        DEBUG="1",
        PAYMENTS_SANDBOX="1",
        CURRENCIES="USD,EUR",
        REDIS_URL=second_redis(),
    ) as site:
        for name, credits, bonus, popular in (("Tiny", 500, 0, False), ("Huge", 5_000, 500, True)):
            site.execute(
                "INSERT INTO billing_creditpackage"
                " (slug, name, credits, bonus, popular, active, position)"
                " VALUES (%s, %s, %s, %s, %s, true, 0)",
                name.lower(), name, credits * CREDIT, bonus * CREDIT, popular,
            )  # fmt: skip
        site.execute(
            "INSERT INTO billing_packageprice (package_id, currency, amount_minor)"
            " SELECT id, currency, credits / 1000000"
            " FROM billing_creditpackage, unnest(ARRAY['USD', 'EUR']) AS currency"
            " WHERE slug IN ('tiny', 'huge')"
        )
        site.execute(
            "INSERT INTO billing_promocode (code, credits, max_redemptions, per_user, redeemed,"
            " lot_days, active, note, created_at)"
            " VALUES ('HELLO', 50000000, 1000, 1, 0, 30, true, '', now())"
        )
        yield site


@pytest.fixture
def open_shop(shop: Site, driver: webdriver.Chrome) -> Callable[..., Browser]:
    return functools.partial(Browser, driver, shop.base)


def buy(browser: Browser, name: str) -> None:
    """Go from the packages to the bank."""
    browser.click(f"[aria-label^='Buy {name} ']")
    browser.wait_for_text("h1", "Test bank")


def status(browser: Browser) -> str:
    return (browser.texts("main [role=status] strong") or [""])[0]


@pytest.mark.parametrize("scripting", [True, False], ids=["with scripts", "without scripts"])
def test_purchase_leads_back_to_its_start(
    shop: Site, open_shop: Callable[..., Browser], email: str, scripting: bool
):
    browser = open_shop(PHONE, scripting=scripting)
    browser.sign_up(email)
    assert browser.texts("[data-balance-available]") == ["100"]
    browser.open("/billing/packages/?next=/chats/")
    buy(browser, "Huge")
    browser.click("[value=pay]")
    wait_until(lambda: status(browser) == "Paid.", "the order's page says that it is paid")
    assert browser.texts("[data-balance-available]") == ["5,600"]

    [(order,)] = shop.rows(
        "SELECT o.id FROM billing_order o JOIN accounts_user u ON u.id = o.user_id"
        " WHERE u.email = %s AND o.status = 'paid'",
        email,
    )
    assert browser.path == f"/billing/orders/{order}/"
    browser.click("main .button-primary")
    wait_until(lambda: browser.path == "/chats/", "the way back")

    browser.open("/billing/history/")
    titles = ["Balance", "Bonus: Huge", "Purchase: Huge", "Credits given", "Balance before"]
    assert browser.texts("tbody .title") == titles
    assert browser.texts("tbody .amount.in") == ["+500.00", "+5,000.00", "+100.00"]
    if scripting:
        assert fetched(browser, f"/billing/orders/{order}/receipt.pdf").startswith("%PDF")
        file = fetched(browser, "/billing/history.csv").splitlines()
        assert [line.split(",")[-2] for line in file] == ["amount", "100", "5000", "500"]
        assert browser.complaints == []


def fetched(browser: Browser, path: str) -> str:
    """The response to the link of a file, as text."""
    return str(
        browser.driver.execute_async_script(
            "fetch(arguments[0]).then((answer) => answer.text()).then(arguments[1])", path
        )
    )


def test_unpaid_order_gives_no_credits(shop: Site, open_shop: Callable[..., Browser], email: str):
    browser = open_shop(DESKTOP)
    browser.sign_up(email)
    browser.open("/billing/packages/")
    buy(browser, "Tiny")
    browser.click("[value=decline]")
    wait_until(lambda: status(browser) == "Payment failed.", "the failure is shown")
    browser.click("main a.button[href^='/billing/packages/']")
    buy(browser, "Tiny")
    browser.click("[value=cancel]")
    wait_until(lambda: status(browser) in {"Not paid yet.", "Canceled."}, "the end is shown")
    assert browser.texts("[data-balance-available]") == ["100"]


def test_promo_code_is_redeemed_once(open_shop: Callable[..., Browser], email: str):
    browser = open_shop(DESKTOP)
    browser.sign_up(email)
    browser.click("[data-balance]")
    wait_until(lambda: browser.shown("#code"), "the page of credits")
    browser.find("#code").send_keys("hello\n")
    browser.wait_for_text(".notice-success", "50 credits were added.")
    assert browser.texts(".sum strong") == ["150"]
    browser.find("#code").send_keys("HELLO\n")
    browser.wait_for_text("#code-error", "You have used the code HELLO already.")


PAGES = ("", "packages/", "history/", "usage/", "limits/", "history/?first=x&kind=usage")

# Controls that are too small for a finger; links inside a sentence or a statement have no minimum size.
SMALL = """
return [...document.querySelectorAll("a, button, summary, select, input:not([type=hidden])")]
  .filter((element) => element.checkVisibility())
  .filter((element) => !element.closest(".notice-text, .part-note, .part-empty, .statement, .skip"))
  .map((element) => [element.outerHTML.slice(0, 90), element.getBoundingClientRect()])
  .filter(([, box]) => box.width < arguments[0] || box.height < arguments[0])
  .map(([html, box]) => `${html} ${box.width} x ${box.height}`);
"""


@pytest.mark.parametrize(
    ("size", "dark", "minimum"),
    [
        pytest.param(PHONE, False, 44, marks=pytest.mark.long),
        (PHONE, True, 44),
        pytest.param(NARROW, False, 44, marks=pytest.mark.long),
        (DESKTOP, False, 24),
    ],
    ids=["phone", "dark phone", "narrow", "desktop"],
)
def test_billing_pages_fit_and_are_readable(
    shop: Site, open_shop: Callable[..., Browser], email: str, size, dark, minimum
):
    browser = open_shop(size, dark=dark)
    browser.sign_up(email)
    browser.open("/billing/packages/")
    buy(browser, "Huge")
    browser.click("[value=pay]")
    wait_until(lambda: status(browser) == "Paid.", "paid")
    use(shop, email)
    order = browser.path.removeprefix("/billing/")
    for page in (*PAGES, order):
        browser.open(f"/billing/{page}")
        assert browser.run(OVERFLOW) == 0, page
        assert browser.run(SMALL, minimum) == [], page
        assert browser.run(LOW_CONTRAST) == [], page
        assert browser.run(NEARLY_FITTING) == [], page
        assert browser.complaints == [], page


def use(shop: Site, email: str) -> None:
    """Usage of several models on several days."""
    shop.execute(
        "INSERT INTO billing_usagerecord (run_id, attempt, step, purpose, user_id, model,"
        " assistant, input_tokens, cached_tokens, output_tokens, reasoning_tokens, source, cost,"
        " charged, shortfall, absorbed, finish, created_at)"
        " SELECT gen_random_uuid(), 1, 0, 'chat', u.id, 'a-model-with-a-long-name-' || n %% 7, 'parley',"
        " 100000, 5000, 20000, 0, 'provider', n * 300000, n * 300000, 0, 0, 'complete',"
        " now() - n * interval '20 hours'"
        " FROM accounts_user u, generate_series(1, 20) AS n WHERE u.email = %s",
        email,
    )
