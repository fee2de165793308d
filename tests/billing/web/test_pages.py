"""The pages about credits, as HTML and as JSON, and the mail about a low balance."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.core import mail
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from billing.ledger import postings
from billing.metering import limits
from billing.models import (
    Account,
    AutoTopUp,
    CreditPackage,
    Order,
    Plan,
    PromoCode,
    Refund,
    SpendingLimit,
)
from billing.payments import receipts, refunds
from billing.reports import balances, low_balance_mail, statements
from chatproject.lib import rate_limits
from chatproject.lib.db import money_transaction
from tests.support import money, purchases
from tests.support.limits import limits_without_redis

__all__ = ["limits_without_redis"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

CREDIT = 1_000_000


@pytest.fixture
def inside(client: Client, account: Account) -> Client:
    client.force_login(account.user)
    return client


@pytest.fixture
def stranger(account: Account) -> Client:
    other = Client()
    other.force_login(money.open_account().user)
    return other


@pytest.fixture
def package() -> CreditPackage:
    return purchases.package({"USD": 1_000, "JPY": 1_500}, bonus=250 * CREDIT, popular=True)


@pytest.fixture
def sandbox(settings) -> None:
    settings.DEBUG = settings.PAYMENTS_SANDBOX = True
    settings.CURRENCIES = ["USD", "JPY"]


def bought(account: Account, credits: int = 100 * CREDIT, **fields) -> Order:
    """Create an order that was paid just now."""
    fields = {"paid_at": timezone.now(), "invoice_no": Order.objects.count() + 1} | fields
    return money.order(account, credits, **fields)


def text(response) -> str:
    return " ".join(response.content.decode().split())


def queries(client: Client, path: str) -> int:
    with CaptureQueriesContext(connection) as captured:
        assert client.get(path).status_code == 200
    return len(captured)


PAGES = ["overview", "history", "usage", "packages", "limits"]


@pytest.mark.parametrize("name", PAGES)
def test_page_opens_for_new_users_not_visitors(inside, name):
    path = reverse(f"billing:{name}")
    response = inside.get(path)
    assert response.status_code == 200
    assert 'aria-current="page"' in text(response)
    assert "no-store" in response["Cache-Control"]
    assert Client().get(path)["Location"].startswith("/accounts/login/?next=/billing/")


@pytest.mark.parametrize("name", PAGES)
def test_page_takes_a_fixed_number_of_queries(inside, account, package, name):
    path = reverse(f"billing:{name}")

    def live() -> None:
        money.grant(account, 100 * CREDIT, expires_at=timezone.now() + timedelta(days=9))
        money.spend(account, CREDIT, model="stub-model")
        money.hold(account, CREDIT)
        bought(account)

    live()
    few = queries(inside, path)
    for _ in range(5):
        live()
    assert queries(inside, path) == few
    assert few <= 12


# --- The overview -----------------------------------------------------------------------------


def test_overview_shows_the_balance_and_its_parts(inside, account):
    money.grant(account, 1_000 * CREDIT)
    expiry = timezone.now() + timedelta(days=20)
    money.grant(account, 200 * CREDIT, kind=postings.Kind.PROMO, expires_at=expiry)
    money.hold(account, 14 * CREDIT)
    page = text(inside.get("/billing/"))
    assert "<strong>1,186</strong> credits available" in page
    day = timezone.localtime(expiry)
    assert f"Next to expire 200 on {day:%-d %b}" in page
    assert "Balance 1,200" in page
    assert "Reserved 14" in page
    assert page.index("Promo code</td>") < page.index("Given</td>")


@pytest.mark.parametrize(
    ("bills_partial", "words"),
    [
        (True, "If an error cuts a reply off, you pay for what you received."),
        (False, "A reply that an error cuts off is free."),
    ],
)
def test_overview_explains_what_is_charged(inside, settings, bills_partial, words):
    settings.BILL_FAILED_PARTIAL = bills_partial
    page = text(inside.get("/billing/"))
    assert words in page
    assert "A reply without text is free" in page
    assert "even if you see no text yet" in page


def test_user_without_an_account_gets_one(client, settings):
    settings.SIGNUP_CREDITS = 5 * CREDIT
    user = User.objects.bulk_create([User(email="imported@example.org")])[0]
    client.force_login(user)
    assert "<strong>5</strong> credits available" in text(client.get("/billing/"))


def test_overview_explains_freeze_and_debt(inside, account):
    order = bought(account, credits=10 * CREDIT)
    money.spend(account, 10 * CREDIT)
    money_transaction(postings.set_status, account_id=account.pk, status=Account.Status.FROZEN)
    money.refund(order, 4 * CREDIT)
    page = text(inside.get("/billing/"))
    assert "Your credits are frozen" in page
    assert "You owe 4 credits" in page


def test_balance_as_json_is_exact(inside, account):
    money.grant(account, 1_234_567)
    money.hold(account, 234_567)
    assert inside.get("/billing/balance").json() == {
        "available": "1",
        "balance": "1.234567",
        "held": "0.234567",
        "low": "",
    }
    assert Client(headers={"accept": "application/json"}).get("/billing/balance").status_code == 401


def test_chat_bar_shows_the_balance(inside, account, settings):
    money.grant(account, 1_234_500_000)
    money.hold(account, CREDIT)
    page = text(inside.get("/"))
    assert "<span data-balance-available>1,233.50</span>" in page
    assert 'title="Balance 1,234.50 · reserved 1"' in page
    settings.BILLING = False
    assert "data-balance" not in text(inside.get("/"))


# --- Promo codes ------------------------------------------------------------------------------


def test_promo_code_counts_once_and_errors_are_explained(inside, account):
    PromoCode.objects.create(code="HELLO", credits=50 * CREDIT, max_redemptions=2)
    response = inside.post("/billing/redeem/", {"code": "hello"}, follow=True)
    assert "50 credits were added." in text(response)
    account.refresh_from_db()
    assert account.balance == 50 * CREDIT
    again = inside.post("/billing/redeem/", {"code": "hello"})
    assert again.status_code == 400
    assert "You have used the code HELLO already." in text(again)
    for code in ("nothing", "", "<b>", "x" * 5_000):
        refused = inside.post("/billing/redeem/", {"code": code})
        assert refused.status_code == 400
        assert "There is no code" in text(refused)
        assert "<b>" not in text(refused)
    assert inside.get("/billing/redeem/")["Location"] == "/billing/"


def test_guessing_of_codes_is_throttled(inside, account):
    for _ in range(10):
        assert "There is no code" in text(inside.post("/billing/redeem/", {"code": "guess"}))
    PromoCode.objects.create(code="RIGHT", credits=CREDIT, max_redemptions=2)
    refused = inside.post("/billing/redeem/", {"code": "RIGHT"})
    assert (refused.status_code, "Retry-After" in refused) == (429, True)
    assert "You have tried too many codes. Try again in an hour." in text(refused)
    account.refresh_from_db()
    assert account.balance == 0
    rate_limits.clear("promo_codes", account.user_id)
    assert "1 credits were added." in text(
        inside.post("/billing/redeem/", {"code": "RIGHT"}, follow=True)
    )


def test_codes_are_redeemed_without_redis(inside, account, limits_without_redis):
    PromoCode.objects.create(code="RIGHT", credits=CREDIT, max_redemptions=2)
    page = inside.post("/billing/redeem/", {"code": "RIGHT"}, follow=True)
    assert "1 credits were added." in text(page)


# --- History and usage ------------------------------------------------------------------------


def test_history_shows_amounts_balances_and_causes(inside, account):
    money.grant(account, 100 * CREDIT, note="Welcome")
    chat = uuid.uuid4()
    money.spend(account, 2 * CREDIT, model="stub-model", conversation=chat)
    money.hold(account, 3 * CREDIT, model="stub-model")
    page = text(inside.get("/billing/history/"))
    assert (
        '<td role="cell" class="number amount in">+100.00</td> <td role="cell" class="number after">100.00</td>'
        in page
    )
    minus = "\N{MINUS SIGN}"
    assert f'<td role="cell" class="number amount">{minus}2.00</td>' in page
    assert f'<a href="/c/{chat}/">Chat</a>' in page
    assert "10 tokens in, 5 out" in page
    assert "(3.00)" in page
    assert "for a reply in progress" in page
    assert page.index("(3.00)") < page.index(f"{minus}2.00<") < page.index("+100.00<")


def test_empty_history_is_explained(inside):
    assert "appear here" in text(inside.get("/billing/history/"))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("before=x", "That link is not valid."),
        ("before=0", "That link is not valid."),
        ("before=99999999999999999999999", "That link is not valid."),
        ("kind=bribes", "This type does not exist."),
        ("first=yesterday", "Enter a date as year, month and day"),
        ("first=0001-01-01", "greater than or equal to"),
        ("last=9999-12-31", "less than or equal to"),
        ("first=2026-02-30", "Enter a date as year, month and day"),
        ("first=2026-02-03&last=2026-02-01", "The first day is after the last one"),
    ],
)
def test_wrong_filter_is_reported_and_hides_nothing(inside, account, query, words):
    money.grant(account, 100 * CREDIT)
    response = inside.get(f"/billing/history/?{query}")
    assert response.status_code == 200
    assert words in text(response)
    if "first=2026-02-03" not in query:
        assert "+100" in text(response)
    assert inside.get(f"/billing/history.csv?{query}")["Location"].startswith("/billing/history/?")


@pytest.fixture
def two_pages_of_history(account, monkeypatch) -> None:
    monkeypatch.setattr(statements, "PAGE", 2)
    for _ in range(4):
        money.grant(account, CREDIT)


def test_filters_stay_in_all_links(inside, two_pages_of_history):
    page = text(inside.get("/billing/history/?kind=given"))
    assert 'href="?kind=given&amp;before=3"' in page
    assert "/billing/history.csv?kind=given" in page
    older = text(inside.get("/billing/history/?kind=given&before=3"))
    assert "Newest" in older
    assert "before=" not in older.replace("kind=given&before", "")


def test_history_page_continues_from_the_previous_balance(inside, two_pages_of_history):
    first = inside.get("/billing/history/").context["statement"]
    second = inside.get("/billing/history/?before=3").context["statement"]
    assert first.opening == second.closing == 2 * CREDIT


def test_usage_is_drawn_by_day(inside, account):
    money.grant(account, 100 * CREDIT)
    for amount in (2, 3):
        money.spend(account, amount * CREDIT, model="stub-model")
    response = inside.get("/billing/usage/")
    page = text(response)
    assert "<strong>5</strong> credits used" in page
    today = timezone.localtime()
    assert f"{today:%-d %B}: 5 credits" in page
    assert 'role="img"' in page
    assert "style=" not in page
    chart = response.context["chart"]
    [bar] = [bar for bar in chart.bars if bar.parts]
    assert len(chart.bars) in {28, 29, 30, 31}
    assert chart.scale == ["6", "3", "0"]
    assert bar.parts[0].height == pytest.approx(chart.height * 5 / 6, abs=0.01)
    assert bar.parts[0].y + bar.parts[0].height == pytest.approx(chart.height)


def test_usage_csv_has_rows_by_day_and_model(inside, account):
    money.grant(account, 100 * CREDIT)
    money.spend(account, CREDIT, model="stub-model")
    response = inside.get("/billing/usage.csv")
    lines = response.content.decode().splitlines()
    assert len(lines) == 2
    assert lines[1].endswith(",stub-model,1,10,0,5,0,1")


@pytest.mark.parametrize("month", ["x", "2026-13", "0000-01", "9999-12", "2026-1", "2026-01-05"])
def test_wrong_month_is_reported(inside, month):
    response = inside.get("/billing/usage/", {"month": month})
    assert response.status_code == 200
    assert "Enter a month as year and month" in text(response)
    assert inside.get("/billing/usage.csv", {"month": month}).status_code == 200


def test_month_links_end_at_this_month(inside):
    page = text(inside.get("/billing/usage/?month=2026-01"))
    assert "?month=2025-12" in page
    assert "?month=2026-02" in page
    assert "No usage in January 2026." in page
    assert 'rel="next"' not in text(inside.get("/billing/usage/"))


# --- Limits -----------------------------------------------------------------------------------


def test_limits_by_staff_and_plan_are_shown(inside, account):
    SpendingLimit.objects.create(period="day", amount=5 * CREDIT, model="gpt-large")
    SpendingLimit.objects.create(account=account, period="conversation", amount=2 * CREDIT)
    Plan.objects.create(slug="free", name="Free", monthly_messages=30, is_default=True)
    page = text(inside.get("/billing/limits/"))
    assert "5 credits per day with gpt-large" in page
    assert "2 credits per chat" in page
    assert "Your plan includes 30 messages per month; 0 used." in page


def test_own_limits_are_set_and_removed(inside, account):
    inside.post("/billing/limits/", {"day": "12.5", "month": " 1,000 ", "conversation": ""})
    assert {limit.period: limit.amount for limit in limits.own(account.pk)} == {
        "day": 12_500_000,
        "month": 1_000 * CREDIT,
    }
    page = text(inside.get("/billing/limits/"))
    assert 'value="12.5"' in page
    assert 'value="1000"' in page
    inside.post("/billing/limits/", {"day": "", "month": "", "conversation": ""})
    assert limits.own(account.pk) == []


@pytest.mark.parametrize("amount", ["many", "-1", "1e99", "NaN", "0.0000001", "∞"])
def test_limit_that_is_no_amount_is_refused(inside, account, amount):
    response = inside.post("/billing/limits/", {"day": amount})
    assert response.status_code == 400
    assert limits.own(account.pk) == []
    page = text(response)
    assert "Enter a number of credits" in page or "not negative" in page


# --- Buying -----------------------------------------------------------------------------------


def test_packages_without_a_provider_cannot_be_bought(inside, package, settings):
    settings.PAYMENTS_SANDBOX = False
    page = text(inside.get("/billing/packages/"))
    assert "Purchases are not set up here yet." in page
    assert "Ask the people who run" in page
    assert "<form method" not in page.split("<main")[1].split("</main>")[0]


def test_packages_show_prices_in_the_chosen_currency(inside, package, sandbox):
    page = text(inside.get("/billing/packages/"))
    assert "USD 10.00" in page
    assert "USD 8.00 per 1,000 credits" in page
    assert "+ 250 bonus" in page
    assert "Popular" in page
    assert "JPY 1,200 per 1,000 credits" in text(inside.get("/billing/packages/?currency=jpy"))
    assert "USD 10.00" in text(inside.get("/billing/packages/?currency=XXX"))


def test_packages_as_json_are_public_and_cached(package, sandbox):
    response = Client().get("/billing/packages.json")
    assert "public" in response["Cache-Control"]
    assert "Cookie" not in response.headers.get("Vary", "")
    found = response.json()["packages"]
    assert [(entry["currency"], entry["price"]) for entry in found] == [
        ("JPY", "JPY 1,500"),
        ("USD", "USD 10.00"),
    ]
    assert found[0]["credits"] == "1000"


def test_inactive_package_is_not_shown(inside, package, sandbox):
    CreditPackage.objects.update(active=False)
    assert "No credits are for sale" in text(inside.get("/billing/packages/"))
    assert Client().get("/billing/packages.json").json() == {"packages": []}


def basket(of: CreditPackage, **fields) -> dict[str, object]:
    return {
        "package": of.pk,
        "currency": "USD",
        "provider": "sandbox",
        "nonce": "abcdefgh1234",
        "next": "/c/new/",
    } | fields


def test_payment_page_has_the_site_address(inside, package, sandbox, settings):
    settings.SITE_URL = "https://chat.example.org"
    left = inside.post("/billing/buy/", basket(package))
    assert left["Location"].startswith("https://chat.example.org/billing/sandbox/")


def test_double_click_makes_one_order(inside, package, sandbox):
    first = inside.post("/billing/buy/", basket(package))
    second = inside.post("/billing/buy/", basket(package))
    assert first.status_code == 302
    assert first["Location"] == second["Location"]
    order = Order.objects.get()
    assert (order.amount_minor, order.currency, order.return_to) == (1_000, "USD", "/c/new/")


@pytest.mark.parametrize(
    "next",
    ["https://evil.example/", "//evil.example", "javascript:alert(1)", "/\\evil.example", "\0"],
)
def test_return_path_stays_on_this_site(inside, package, sandbox, next):
    assert "evil" not in text(inside.get("/billing/packages/", {"next": next}))
    inside.post("/billing/buy/", basket(package, next=next))
    assert [order.return_to for order in Order.objects.all()] in ([], [""])


@pytest.mark.parametrize(
    "wrong",
    [
        {"package": ""},
        {"package": "x"},
        {"package": 0},
        {"package": 2**70},
        {"package": 999_999},
        {"currency": "usd1"},
        {"currency": "EUR"},
        {"provider": "nobody"},
        {"nonce": ""},
        {"nonce": "x" * 100},
    ],
)
def test_wrong_order_is_refused_with_a_notice(inside, package, sandbox, wrong):
    response = inside.post("/billing/buy/", basket(package, **wrong), follow=True)
    assert response.status_code == 200
    assert 'class="notice notice-error"' in text(response)
    assert not Order.objects.exists()
    assert inside.get("/billing/buy/")["Location"] == "/billing/packages/"


# --- One order --------------------------------------------------------------------------------


def test_order_opens_for_its_owner_only(inside, stranger, account):
    order = bought(account)
    for name in ("order", "receipt", "order_return"):
        path = reverse(f"billing:{name}", args=[order.pk])
        assert inside.get(path).status_code in {200, 302}
        assert stranger.get(path).status_code == 404
        assert inside.get(reverse(f"billing:{name}", args=[uuid.uuid4()])).status_code == 404
    for name in ("pay", "refund"):
        path = reverse(f"billing:{name}", args=[order.pk])
        assert stranger.post(path).status_code == 404
    assert not Refund.objects.exists()


def test_files_answer_head_without_being_made(inside, account, monkeypatch):
    order = bought(account)
    made: list[bytes] = []

    def make(*_: object, **__: object) -> bytes:
        made.append(b"%PDF")
        return made[-1]

    monkeypatch.setattr(receipts, "pdf", make)
    monkeypatch.setattr(statements, "csv_part", make)
    receipt = f"/billing/orders/{order.pk}/receipt.pdf"
    for path in (receipt, "/billing/history.csv", "/billing/usage.csv"):
        head = inside.head(path)
        assert head.status_code == 200
        assert head.getvalue() == b""
        assert made == []
        page = inside.get(path)
        for name in ("Content-Type", "Content-Disposition"):
            assert head[name] == page[name]
        made.clear()
    unpaid = bought(account, status=Order.Status.PENDING)
    assert inside.head(f"/billing/orders/{unpaid.pk}/receipt.pdf").status_code == 404


@pytest.mark.parametrize("status", Order.Status)
def test_order_page_shows_its_status(inside, account, status):
    order = bought(account, status=status)
    page = text(inside.get(f"/billing/orders/{order.pk}/"))
    assert ('http-equiv="refresh"' in page) == (status in Order.OPEN)
    assert ("Continue to payment" in page) == (status in Order.OPEN)
    assert ("receipt.pdf" in page) == (status in Order.SETTLED)
    assert inside.get("/billing/").status_code == 200


def test_old_open_order_stops_refreshing(inside, account):
    order = bought(account, status=Order.Status.PENDING)
    old = timezone.now() - timedelta(hours=3)
    Order.objects.filter(pk=order.pk).update(updated_at=old)
    assert 'http-equiv="refresh"' not in text(inside.get(f"/billing/orders/{order.pk}/"))


def test_return_by_post_passes_through_sign_in(inside, account):
    order = bought(account)
    path = f"/billing/orders/{order.pk}/return/"
    # Another site's form brings neither the session's cookie nor our CSRF token.
    posted = Client(enforce_csrf_checks=True).post(path, {"razorpay_payment_id": "pay_1"})
    assert posted["Location"] == f"/accounts/login/?next={path}"
    assert inside.get(posted["Location"])["Location"] == path
    assert inside.get(path)["Location"] == f"/billing/orders/{order.pk}/"


def test_razorpay_is_reached_by_a_form(inside, package, fakepay):
    response = inside.post("/billing/buy/", basket(package, provider="razorpay"))
    page = text(response)
    assert f'action="{fakepay.url}/v1/checkout/embedded"' in page
    [order] = Order.objects.all()
    assert f'name="order_id" value="{order.provider_order_id}"' in page
    assert f"/billing/orders/{order.pk}/return/" in page
    assert "Continue to Razorpay" in page
    assert "<script" not in page.split("<main")[1]  # no script of Razorpay's


def test_unreachable_provider_leaves_the_order_open(inside, package, settings, fakepay):
    inside.post("/billing/buy/", basket(package, provider="razorpay"))
    order = Order.objects.get()
    settings.RAZORPAY_API_BASE = "http://127.0.0.1:9"
    page = text(inside.get(f"/billing/orders/{order.pk}/return/", follow=True))
    assert "Razorpay is not responding." in page
    assert "Not paid yet" in page
    again = text(inside.post(f"/billing/orders/{order.pk}/pay/", follow=True))
    assert "Nothing was charged. Try again in a minute." in again


def test_buyer_refunds_an_order_once(inside, account, sandbox):
    order = purchases.paid(account)
    path = f"/billing/orders/{order.pk}/"
    assert "Request a refund" in text(inside.get(path))
    sent = {"nonce": "abcdefgh1234", "reason": "Not needed"}
    for _ in range(2):
        inside.post(f"{path}refund/", sent)
    refund = Refund.objects.get()
    assert (refund.amount_minor, refund.reason) == (order.amount_minor, "Not needed")
    page = text(inside.get(path))
    assert "Refunded" in page
    assert "sent back to you" in page
    assert "Request a refund" not in page


@pytest.mark.parametrize("nonce", ["", "short", "x" * 65])
def test_refund_needs_the_nonce_of_its_form(inside, account, sandbox, nonce):
    order = purchases.paid(account)
    page = text(inside.post(f"/billing/orders/{order.pk}/refund/", {"nonce": nonce}, follow=True))
    assert "This form is out of date." in page
    assert not Refund.objects.exists()


def test_refund_is_offered_while_credits_are_unused(inside, account, sandbox):
    order = bought(account, credits=100 * CREDIT)
    assert refunds.eligible(order) == ""
    assert "Request a refund" in text(inside.get(f"/billing/orders/{order.pk}/"))
    money.spend(account, 50 * CREDIT)
    assert "Request a refund" not in text(inside.get(f"/billing/orders/{order.pk}/"))
    refused = inside.post(
        f"/billing/orders/{order.pk}/refund/", {"nonce": "abcdefgh1234"}, follow=True
    )
    assert "notice-error" in text(refused)
    assert not Refund.objects.exists()


# --- Automatic top-up -------------------------------------------------------------------------


def terms(of: CreditPackage, **fields) -> dict[str, str]:
    return {"offer": f"{of.pk}-USD", "threshold": "100", "cap": "25.50", "consent": "on"} | fields


def test_top_up_page_needs_the_setting(inside, package, sandbox):
    assert inside.get("/billing/top-up/").status_code == 404
    assert "automatic top-up" not in text(inside.get("/billing/limits/"))


def test_top_up_needs_consent_and_can_be_withdrawn(inside, account, package, sandbox, settings):
    settings.AUTO_TOP_UP = True
    assert "automatic top-up" in text(inside.get("/billing/limits/"))
    refused = inside.post("/billing/top-up/", terms(package, consent=""))
    assert refused.status_code == 400
    assert "need your consent" in text(refused)
    assert not AutoTopUp.objects.exists()
    agreed = inside.post("/billing/top-up/", terms(package), follow=True)
    assert "Automatic top-up is on." in text(agreed)
    found = AutoTopUp.objects.get(user=account.user)
    assert (found.threshold, found.monthly_cap_minor) == (100 * CREDIT, 2_550)
    inside.post("/billing/top-up/", {"withdraw": "1"})
    found.refresh_from_db()
    assert not found.enabled
    assert "Turn on" in text(inside.get("/billing/top-up/"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"offer": "x"}, "no longer available"),
        ({"threshold": ""}, "Enter a number of credits"),
        ({"threshold": "many"}, "Enter a number of credits"),
        ({"threshold": "5000"}, "Choose a lower one"),
        ({"cap": "1"}, "lower than the price"),
        ({"cap": "much"}, "Enter an amount of money"),
        ({"cap": "NaN"}, "Enter an amount of money"),
    ],
)
def test_wrong_top_up_terms_are_reported(inside, package, sandbox, settings, wrong, words):
    settings.AUTO_TOP_UP = True
    response = inside.post("/billing/top-up/", terms(package, **wrong))
    assert response.status_code == 400
    assert words in text(response)


# --- Low balance ------------------------------------------------------------------------------


def spend(account: Account, credits: int) -> None:
    money.spend(account, credits * CREDIT)


def low_of(account: Account) -> str:
    """Return how low a balance is, after checking that the socket's figures are the same."""
    found, brief = balances.of_account(account.pk), balances.brief(account.pk)
    expected = (account.user_id, found.balance, found.held, found.low)
    assert (brief.user_id, brief.balance, brief.held, brief.low) == expected
    return found.low


def test_balance_is_low_below_a_fifth(account):
    """A fifth of the credits that were last received."""
    assert low_of(account) == "empty"
    money.grant(account, 1_000 * CREDIT)
    for _ in range(3):
        spend(account, 1)
    spend(account, 797)
    assert low_of(account) == ""
    spend(account, 1)
    assert low_of(account) == "low"


def test_balance_below_a_typical_message_counts_as_empty(account):
    money.grant(account, 1_000 * CREDIT)
    for cost in (30, 30, 30, 895):
        spend(account, cost)
    found = balances.of_account(account.pk)
    assert (found.typical, found.low) == (30 * CREDIT, "empty")


def test_hold_alone_makes_no_low_balance(account):
    money.grant(account, 100 * CREDIT)
    money.hold(account, 95 * CREDIT)
    assert low_of(account) == ""


def test_low_balance_is_mailed_once_per_crossing(account, settings):
    settings.SITE_URL = "https://chat.example.org"
    money.grant(account, 100 * CREDIT)
    assert not low_balance_mail.notify_if_low(account.pk)
    spend(account, 85)
    assert low_balance_mail.notify_if_low(account.pk)
    assert not low_balance_mail.notify_if_low(account.pk)
    [message] = mail.outbox
    assert message.to == [account.user.email]
    assert "15 credits left" in message.body
    assert "https://chat.example.org/billing/packages/" in message.body
    money.grant(account, 100 * CREDIT)
    assert not low_balance_mail.notify_if_low(account.pk)
    spend(account, 115)
    assert low_balance_mail.notify_if_low(account.pk)
    assert "You have no credits left" in mail.outbox[-1].subject


def test_account_without_credits_gets_no_mail(account):
    assert not low_balance_mail.notify_if_low(account.pk)
    assert mail.outbox == []


def test_mail_that_was_not_stored_is_sent_later(account, monkeypatch):
    money.grant(account, 100 * CREDIT)
    spend(account, 100)

    def fail(*_: object) -> None:
        raise OperationalError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr("django.core.mail.EmailMessage.send", fail)
        with pytest.raises(OperationalError):
            low_balance_mail.notify_if_low(account.pk)
    assert low_balance_mail.notify_if_low(account.pk)


def test_pages_warn_of_a_low_balance(inside, account):
    money.grant(account, 100 * CREDIT)
    for _ in range(9):
        spend(account, 9)
    page = text(inside.get("/billing/"))
    assert "less than a fifth of your last 100 credits is left" in page
    assert 'data-low="low"' in text(inside.get("/"))


def test_refused_invoice_details_stay_in_the_form(inside, package, sandbox):
    address = "Street\n" * 200
    answer = inside.post("/billing/invoice-address/", {"name": "Ada & Co", "address": address})
    assert answer.status_code == 400
    page = answer.content.decode()
    assert '<details class="fold" open>' in page
    assert "Ada &amp; Co" in page
    assert page.count("Street\n") >= 200
    assert "at most 1000 characters" in page
