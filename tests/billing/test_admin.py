"""The admin pages of billing, requested by URL."""

from __future__ import annotations

import html
import re
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission
from django.contrib.contenttypes.models import ContentType
from django.contrib.messages import get_messages
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from billing.credits import MICRO
from billing.models import (
    Account,
    AuditRecord,
    CreditLot,
    CreditPackage,
    LedgerEntry,
    ModelPrice,
    Plan,
    PromoCode,
    ProviderEvent,
    Refund,
    SpendingLimit,
)
from chat.models import LanguageModel
from chatproject.lib.admin import NOTHING
from tests.support import billing_rows, money, purchases

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey_url")]

MODELS: list[Any] = list(apps.get_app_config("billing").get_models())
CHANGEABLE = {"Plan", "PromoCode", "CreditPackage", "SpendingLimit"}
READ_ONLY = [model for model in MODELS if model.__name__ not in {*CHANGEABLE, "ModelPrice"}]


@pytest.fixture
def all_rows() -> None:
    """A row in every table of billing."""
    billing_rows.make()


@pytest.fixture
def clerk(client) -> User:
    """A staff user, signed in, with the right to view everything of billing and change nothing."""
    user = User.objects.create_user("clerk@example.org", is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(content_type__app_label="billing", codename__startswith="view_")
    )
    client.force_login(user)
    return user


def change_url(row) -> str:
    return reverse(f"admin:billing_{row._meta.model_name}_change", args=[row.pk])


def said(response) -> str:
    return " ".join(str(message) for message in get_messages(response.wsgi_request))


# --- Reading ------------------------------------------------------------------------------------


def test_every_table_opens_and_is_searchable(client, boss, all_rows):
    for model in MODELS:
        assert admin.site.is_registered(model)
        url = reverse(f"admin:billing_{model._meta.model_name}_changelist")
        for words in ({}, {"q": "hello"}, {"q": str(uuid.uuid4())}, {"q": "12"}):
            assert client.get(url, words).status_code == 200, (model, words)
        assert client.get(change_url(model.objects.first())).status_code == 200, model


def test_records_cannot_be_added_changed_or_deleted(client, boss, all_rows):
    for model in READ_ONLY:
        name = f"admin:billing_{model._meta.model_name}"
        before = list(model.objects.order_by("pk").values())
        row = model.objects.first()
        fields = {field.name: "1" for field in model._meta.fields}
        delete = reverse(f"{name}_delete", args=[row.pk])
        answers = [
            client.get(reverse(f"{name}_add")),
            client.post(reverse(f"{name}_add"), fields),
            client.post(change_url(row), fields),
            client.post(delete, {"post": "yes"}),
        ]
        assert [answer.status_code for answer in answers] == [403] * 4, model
        client.post(
            reverse(f"{name}_changelist"),
            {"action": "delete_selected", "_selected_action": row.pk, "post": "yes"},
        )
        assert list(model.objects.order_by("pk").values()) == before, model


def test_amounts_are_shown_in_credits(client, boss):
    account = money.open_account(12_345_678)
    page = client.get(reverse("admin:billing_account_changelist"), {"q": account.user.email})
    assert "12.34" in page.text
    assert "12345678" not in page.text
    page = client.get(change_url(account))
    assert "12.345678" in page.text
    assert "12345678" not in page.text


def test_webhook_is_shown_as_text(client, boss, all_rows):
    page = client.get(change_url(ProviderEvent.objects.get()))
    assert "&lt;b&gt;café&lt;/b&gt;" in page.text
    assert "<b>café" not in page.text


# --- Giving and taking --------------------------------------------------------------------------


def give(client, account: Account, **fields):
    url = reverse("admin:billing_account_give", args=[account.pk])
    fields = {"amount": "5", "reason": "For the outage", "nonce": uuid.uuid4()} | fields
    return client.post(url, fields)


def test_granted_credits_have_reason_and_audit_record(client, boss):
    account = money.open_account(2 * MICRO)
    page = client.get(reverse("admin:billing_account_give", args=[account.pk]))
    nonce = page.context["form"]["nonce"].value()
    tomorrow = timezone.localdate() + timedelta(days=1)
    response = give(client, account, amount="1,000.5", nonce=nonce, expires_on=tomorrow.isoformat())
    assert response.url == change_url(account)
    assert "1,000.50 credits were given to" in said(response)
    assert "2 before, 1,002.50 after" in said(response)
    entry = LedgerEntry.objects.latest("id")
    assert (entry.kind, entry.amount, entry.actor) == ("grant", 1_000_500_000, boss)
    assert entry.note == "For the outage"
    assert entry.idempotency_key == f"grant:{nonce}"
    lot = CreditLot.objects.latest("id")
    assert timezone.localtime(lot.expires_at).date() == tomorrow + timedelta(days=1)
    record = AuditRecord.objects.get()
    assert (record.actor, record.action, record.ip) == (boss, "give credits", "127.0.0.1")
    assert record.reason == "For the outage"
    assert record.target == f"account of {account.user}"
    assert record.before == {"balance": 2 * MICRO}
    assert record.after["balance"] == 1_002_500_000


def test_form_sent_twice_counts_once(client, boss):
    account = money.open_account()
    nonce = uuid.uuid4()
    give(client, account, nonce=nonce)
    assert "counted once" in said(give(client, account, nonce=nonce))
    changed = give(client, account, nonce=nonce, amount="6")
    assert "sent before with other figures" in changed.text
    assert money.state(account) == (5 * MICRO, 0, 0)
    assert AuditRecord.objects.count() == 1


def test_only_free_credits_can_be_taken(client, boss):
    account = money.open_account(100 * MICRO)
    money.hold(account, 30 * MICRO)
    response = give(client, account, amount="-70.1")
    assert response.status_code == 200
    assert "Only 70 credits are free on this account; 70.10 were to be taken." in response.text
    assert not AuditRecord.objects.exists()
    give(client, account, amount="\N{MINUS SIGN}70")
    assert money.state(account) == (30 * MICRO, 30 * MICRO, 0)
    entry = LedgerEntry.objects.latest("id")
    assert (entry.kind, entry.amount) == ("adjust_down", -70 * MICRO)
    assert AuditRecord.objects.get().action == "take credits"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"reason": " "}, "This field is required"),
        ({"amount": ""}, "This field is required"),
        ({"amount": "0"}, "other than zero"),
        ({"amount": "ten"}, "Enter a number of credits"),
        ({"amount": "0.0000001"}, "at most six decimals"),
        ({"amount": "1e30"}, "Enter a number of credits"),
        ({"amount": "nan"}, "Enter a number of credits"),
        ({"expires_on": "2020-01-01"}, "This day has passed"),
        ({"amount": "-1", "expires_on": "2999-01-01"}, "do not expire"),
        ({"nonce": "again"}, "Correct the errors below"),
    ],
)
def test_invalid_grant_is_refused_in_words(client, boss, fields, words):
    account = money.open_account()
    response = give(client, account, **fields)
    assert response.status_code == 200
    assert words in response.text
    assert money.state(account) == (0, 0, 0)
    assert not AuditRecord.objects.exists()


def test_staff_grants_respect_the_daily_limit(client, boss, settings):
    settings.STAFF_DAILY_CREDITS = 8 * MICRO
    account = money.open_account()
    give(client, account)
    response = give(client, account)
    assert "You may give 8 credits a day, and have given 5 today." in response.text
    give(client, account, amount="3")
    # Taking credits is not limited, and does not raise the limit.
    give(client, account, amount="-8")
    assert "You may give" in give(client, account, amount="1").text
    assert money.state(account) == (0, 0, 0)


def hidden_fields(page) -> dict[str, str]:
    """The values of a page's hidden inputs, as a browser sends them."""
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.text)
    return {name: html.unescape(value) for name, value in found if name != "csrfmiddlewaretoken"}


def test_large_gift_is_confirmed_on_second_page(client, boss, settings):
    settings.STAFF_CONFIRM_CREDITS = 1_000 * MICRO
    account = money.open_account(2 * MICRO)
    tomorrow = timezone.localdate() + timedelta(days=1)
    page = give(
        client, account, amount="1,000.5", reason="<b>A</b> prize", expires_on=f"{tomorrow}"
    )
    assert page.status_code == 200
    for words in ("1,000.50", str(account.user), "2 now", "1,002.50", "&lt;b&gt;A&lt;/b&gt; prize"):
        assert words in page.text
    assert money.state(account) == (2 * MICRO, 0, 0)
    assert not AuditRecord.objects.exists()

    url = reverse("admin:billing_account_give", args=[account.pk])
    fields = hidden_fields(page)
    response = client.post(url, fields)
    assert "1,000.50 credits were given" in said(response)
    assert "counted once" in said(client.post(url, fields))
    assert money.state(account) == (1_002_500_000, 0, 0)
    record = AuditRecord.objects.get()
    assert (record.reason, record.after["confirmed"]) == ("<b>A</b> prize", True)
    assert CreditLot.objects.latest("id").expires_at is not None


def test_confirmation_holds_for_its_amount_alone(client, boss, settings):
    settings.STAFF_CONFIRM_CREDITS = 10 * MICRO
    account = money.open_account()
    fields = hidden_fields(give(client, account, amount="11"))
    url = reverse("admin:billing_account_give", args=[account.pk])
    page = client.post(url, fields | {"amount": "1100"})
    assert "1,100" in page.text
    assert money.state(account) == (0, 0, 0)
    give(client, account, amount="10")
    give(client, account, amount="-10")
    assert money.state(account) == (0, 0, 0)
    assert LedgerEntry.objects.count() == 2


def test_gift_beyond_daily_limit_is_not_asked_for(client, boss, settings):
    settings.STAFF_CONFIRM_CREDITS, settings.STAFF_DAILY_CREDITS = 5 * MICRO, 8 * MICRO
    assert "You may give 8 credits a day" in give(client, money.open_account(), amount="9").text


def test_large_promo_code_is_saved_twice(client, boss, settings):
    settings.STAFF_CONFIRM_CREDITS = 100 * MICRO
    url = reverse("admin:billing_promocode_add")
    fields = {
        "code": "GIFT",
        "credits": "20",
        "max_redemptions": "6",
        "per_user": "1",
        "active": "on",
    }
    page = client.post(url, fields)
    assert "can give out 120 credits in all" in page.text
    assert not PromoCode.objects.exists()
    confirmed = page.context["adminform"].form["confirmed"].value()
    more = client.post(url, fields | {"confirmed": confirmed, "max_redemptions": "7"})
    assert "can give out 140 credits in all" in more.text
    client.post(url, fields | {"confirmed": confirmed})
    code = PromoCode.objects.get()
    change = reverse("admin:billing_promocode_change", args=[code.pk])
    client.post(change, fields | {"max_redemptions": "5", "note": "fewer"})
    code.refresh_from_db()
    assert (code.max_redemptions, code.note) == (5, "fewer")


# --- Accounts -----------------------------------------------------------------------------------


def test_account_is_frozen_and_unfrozen(client, boss):
    account = money.open_account()
    url = reverse("admin:billing_account_freeze", args=[account.pk])
    assert client.get(url).status_code == 200
    assert client.post(url, {"reason": ""}).status_code == 200
    assert Account.objects.get(pk=account.pk).status == "active"
    client.post(url, {"reason": "A stolen card"})
    client.post(url, {"reason": "Once more"})
    assert Account.objects.get(pk=account.pk).status == "frozen"
    client.post(reverse("admin:billing_account_unfreeze", args=[account.pk]), {"reason": "Cleared"})
    assert Account.objects.get(pk=account.pk).status == "active"
    actions = AuditRecord.objects.order_by("id").values_list("action", "reason")
    assert list(actions) == [("freeze account", "A stolen card"), ("unfreeze account", "Cleared")]


def test_several_accounts_are_frozen_with_one_reason(client, boss):
    accounts = [money.open_account() for _ in range(3)]
    url = reverse("admin:billing_account_changelist")
    fields = {"action": "freeze", "_selected_action": [account.pk for account in accounts[:2]]}
    page = client.post(url, fields)
    assert page.status_code == 200
    assert "Freeze 2 accounts" in page.text
    assert not Account.objects.filter(status="frozen").exists()
    response = client.post(url, fields | {"reason": "Card testing"})
    assert "2 accounts frozen" in said(response)
    assert Account.objects.filter(status="frozen").count() == 2
    assert AuditRecord.objects.filter(reason="Card testing").count() == 2


def test_message_count_is_reset_with_a_reason(client, boss):
    account = money.open_account()
    url = reverse("admin:billing_account_messages", args=[account.pk])
    client.post(url, {"reason": ""})
    assert Account.objects.get(pk=account.pk).messages_from is None
    client.post(url, {"reason": "Our fault"})
    assert Account.objects.get(pk=account.pk).messages_from is not None
    assert AuditRecord.objects.get().action == "reset messages"


def test_plan_of_an_account_is_changed(client, boss):
    account = money.open_account()
    plan = Plan.objects.create(slug="school", name="School", monthly_credits=5)
    url = reverse("admin:billing_account_plan", args=[account.pk])
    assert client.get(url).status_code == 200
    client.post(url, {"plan": plan.pk, "reason": "Joined the school"})
    assert Account.objects.get(pk=account.pk).plan == plan
    client.post(url, {"plan": "", "reason": "Left"})
    assert Account.objects.get(pk=account.pk).plan is None
    assert list(AuditRecord.objects.order_by("id").values_list("before", "after")) == [
        ({"plan": None}, {"plan": "school"}),
        ({"plan": "school"}, {"plan": None}),
    ]


def test_plans_of_many_accounts_are_changed(client, boss):
    """Until a day, with a reason; the plan's page counts its members, and its group follows."""
    group = Group.objects.create(name="Pupils")
    fields = {"group": group, "monthly_credits": 5 * MICRO}
    plan = Plan.objects.create(slug="school", name="School", **fields)
    accounts = [money.open_account() for _ in range(3)]
    url = reverse("admin:billing_account_changelist")
    chosen = {"action": "change_plan", "_selected_action": [one.pk for one in accounts[:2]]}
    assert "Change the plan of 2 accounts" in client.post(url, chosen).text
    day = timezone.localdate() + timedelta(days=3)
    wrong = {"plan": "", "last_day": day, "reason": "No"}
    assert "has no end" in client.post(url, chosen | wrong).text
    past = {"plan": plan.pk, "last_day": day - timedelta(days=9), "reason": "No"}
    assert "has passed" in client.post(url, chosen | past).text
    assert not AuditRecord.objects.exists()
    done = client.post(url, chosen | {"plan": plan.pk, "last_day": day, "reason": "A class"})
    assert said(done) == "The plans of 2 accounts were changed."
    for account in accounts[:2]:
        membership = account.memberships.get()
        assert membership.until is not None
        assert timezone.localdate(membership.until - timedelta(seconds=1)) == day
        assert (membership.actor, membership.reason) == (boss, "A class")
        assert account.user.groups.get() == group
    assert AuditRecord.objects.filter(action="change plan", reason="A class").count() == 2
    one = client.get(reverse("admin:billing_account_plan", args=[accounts[0].pk]))
    assert str(day) in one.text
    plans = client.get(reverse("admin:billing_plan_changelist")).text
    assert f'?plan__id__exact={plan.pk}">2</a>' in plans
    page = client.get(reverse("admin:billing_plan_change", args=[plan.pk])).text
    assert f'plan__id__exact={plan.pk}&amp;ended_at__isempty=1">2</a>' in page
    assert '<div class="readonly">10</div>' in page
    listed = client.get(reverse("admin:billing_membership_changelist"), {"plan": plan.pk})
    assert listed.status_code == 200


def test_plan_takes_no_group_with_permissions(client, boss):
    """Members of staff would get by it what only superusers give."""
    group = Group.objects.create(name="Finance")
    group.permissions.add(Permission.objects.latest("pk"))
    form = {"name": "X", "slug": "x", "monthly_credits": "0", "position": "0", "group": group.pk}
    page = client.post(reverse("admin:billing_plan_add"), form)
    assert "Choose one that has none" in page.text
    none = {**form, "group": "", "messages_per_minute": "0"}
    assert "greater than or equal to 1" in client.post(reverse("admin:billing_plan_add"), none).text
    assert not Plan.objects.exists()


def test_clerk_changes_no_account(client, clerk):
    account = money.open_account()
    Plan.objects.create(slug="school", name="School")
    for page in ("give", "plan", "messages", "freeze", "unfreeze"):
        url = reverse(f"admin:billing_account_{page}", args=[account.pk])
        fields = {"amount": "5", "reason": "No", "nonce": uuid.uuid4(), "plan": "1"}
        assert client.get(url).status_code == 403
        assert client.post(url, fields).status_code == 403
        assert url not in client.get(change_url(account)).text
    assert not LedgerEntry.objects.exists()
    assert not AuditRecord.objects.exists()


def test_clerk_has_no_bulk_actions(client, clerk, all_rows):
    bulk = {"account": "change_plan", "order": "ask_again", "providerevent": "process_again"}
    for name, action in bulk.items():
        model = apps.get_model("billing", name)
        before = list(model.objects.values())
        recorded = AuditRecord.objects.count()
        client.post(
            reverse(f"admin:billing_{name}_changelist"),
            {"action": action, "_selected_action": model.objects.first().pk, "reason": "No"},
        )
        assert list(model.objects.values()) == before
        assert AuditRecord.objects.count() == recorded


def test_clerk_refunds_nothing(client, clerk, all_rows):
    for page in ("refund", "ask"):
        url = reverse(f"admin:billing_order_{page}", args=[billing_rows.an_order().pk])
        assert client.get(url).status_code == 403
        assert client.post(url, {"reason": "No", "nonce": uuid.uuid4()}).status_code == 403


def test_non_staff_users_are_redirected(client):
    account = money.open_account()
    client.force_login(account.user)
    assert client.get(reverse("billing_report")).status_code == 302
    assert give(client, account).status_code == 302
    assert not LedgerEntry.objects.exists()


# --- Prices and packages ------------------------------------------------------------------------


def add_price(client, **fields):
    moment = timezone.localtime() + timedelta(minutes=1)
    fields = {
        "model": "new-model",
        "effective_from_0": f"{moment:%Y-%m-%d}",
        "effective_from_1": f"{moment:%H:%M:%S}",
        "in_per_m": "15",
        "cached_in_per_m": "7.5",
        "out_per_m": "60",
        "reasoning_per_m": "",
        "request_fee": "0",
        "tiers": "",
        "source": "The provider's page",
    } | fields
    return client.post(reverse("admin:billing_modelprice_add"), fields)


def test_price_is_entered_in_credits(client, boss):
    assert client.get(reverse("admin:billing_modelprice_add")).status_code == 200
    response = add_price(client, tiers="200,000: input 30, output 90.000001\n")
    assert response.status_code == 302
    price = ModelPrice.objects.get()
    per_m = (price.in_per_m, price.cached_in_per_m, price.out_per_m, price.reasoning_per_m)
    assert per_m == (15 * MICRO, 7_500_000, 60 * MICRO, None)
    assert price.tiers == [{"above": 200_000, "in_per_m": 30 * MICRO, "out_per_m": 90_000_001}]
    assert price.created_by == boss
    record = AuditRecord.objects.get()
    assert (record.action, record.reason) == ("set price", "The provider's page")
    page = client.get(change_url(price))
    assert "200000: input 30, output 90.000001" in page.text


def test_price_replaces_another_after_confirmation_only(client, boss, all_rows):
    response = add_price(client, model="stub-model")
    assert response.status_code == 200
    assert "replaces the price of stub-model: input 15, cached 7.5, output 60" in response.text
    assert add_price(client, model="stub-model", replace="on").status_code == 302
    assert ModelPrice.objects.filter(model="stub-model").count() == 2


def test_price_without_its_model_warns(client, boss):
    LanguageModel.objects.create(name="Small", provider_model="vendor/Small-4o")
    response = add_price(client, model="vendor/small4o")
    assert "so no reply uses this price yet. Did you mean vendor/Small-4o?" in said(response)
    prices = reverse("admin:billing_modelprice_changelist")
    client.get(prices)  # shows the message, and with it deletes it
    assert "uses this price yet. The" in said(add_price(client, model="another"))
    page = client.get(prices).text
    assert page.count("no: no model of that name") == 2
    assert "no reply" not in said(add_price(client, model="vendor/Small-4o"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"in_per_m": "-1"}, "Enter at least 0"),
        ({"out_per_m": "1000001"}, "A price above 1,000,000 credits"),
        ({"tiers": "200000 input 3"}, "cannot be read"),
        ({"tiers": "200000: tea 3"}, "cannot be read"),
        ({"tiers": "200000:"}, "cannot be read"),
        ({"tiers": "200000: input -3"}, "never negative"),
    ],
)
def test_invalid_price_is_refused(client, boss, fields, words):
    response = add_price(client, **fields)
    assert response.status_code == 200
    assert words in response.text
    assert not ModelPrice.objects.exists()


def test_price_is_never_changed(client, boss, all_rows):
    price = ModelPrice.objects.get()
    assert client.post(change_url(price), {"in_per_m": "1"}).status_code == 403
    url = reverse("admin:billing_modelprice_delete", args=[price.pk])
    assert client.post(url, {"post": "yes"}).status_code == 403


def package_fields(**fields) -> dict[str, str]:
    return {
        "slug": "starter",
        "name": "Starter",
        "credits": "1,000",
        "bonus": "50",
        "position": "0",
        "prices-TOTAL_FORMS": "2",
        "prices-INITIAL_FORMS": "0",
        "prices-0-currency": "usd",
        "prices-0-price": "9.99",
        "prices-1-currency": "JPY",
        "prices-1-price": "1500",
    } | fields


def test_package_is_created_with_its_prices(client, boss):
    url = reverse("admin:billing_creditpackage_add")
    assert client.get(url).status_code == 200
    assert client.post(url, package_fields()).status_code == 302
    package = CreditPackage.objects.get()
    assert (package.credits, package.bonus) == (1000 * MICRO, 50 * MICRO)
    prices = dict(package.prices.values_list("currency", "amount_minor"))
    assert prices == {"USD": 999, "JPY": 1500}
    page = client.get(change_url(package))
    assert 'value="9.99"' in page.text
    assert 'value="1500"' in page.text
    actions = set(AuditRecord.objects.values_list("action", flat=True))
    assert actions == {"add credit package", "price credit package"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prices-1-price": "1500.5"}, "JPY does not have that many decimals"),
        ({"prices-0-price": "0"}, "above 0"),
        ({"prices-0-currency": "KWD", "prices-0-price": "5.123"}, "last digit"),
        ({"prices-0-currency": "US1"}, "three capital letters"),
        ({"prices-1-currency": "USD"}, "duplicate"),
        ({"credits": "0"}, "violated"),
    ],
)
def test_invalid_package_is_refused(client, boss, fields, words):
    response = client.post(reverse("admin:billing_creditpackage_add"), package_fields(**fields))
    assert response.status_code == 200
    assert words in response.text
    assert not CreditPackage.objects.exists()


def test_package_that_nobody_can_buy_warns(client, boss, settings):
    settings.CURRENCIES, settings.STRIPE_SECRET_KEY = ["USD"], "sk_test_x"
    add, shown = (reverse(f"admin:billing_creditpackage_{name}") for name in ("add", "changelist"))
    response = client.post(add, package_fields())
    assert "in JPY: this site sells in USD" in said(response)
    page = client.get(shown).text
    assert "JPY 1,500</span> (not sold)" in page
    assert "USD 9.99</span> (not sold)" not in page
    settings.CURRENCIES = ["JPY", "USD"]
    assert "Nobody" not in said(client.post(add, package_fields(slug="second")))
    assert "not sold" not in client.get(shown).text
    unpriced = package_fields(slug="third") | {"prices-TOTAL_FORMS": "0"}
    assert "it has no price. Add one in JPY, USD" in said(client.post(add, unpriced))
    assert "none: not sold" in client.get(shown).text
    settings.STRIPE_SECRET_KEY = ""
    response = client.post(add, package_fields(slug="fourth"))
    assert "no payment provider is configured" in said(response)
    assert "USD 9.99</span> (not sold)" in client.get(shown).text


def test_promo_code_is_saved_in_capitals(client, boss):
    fields = {"code": " spring-24 ", "credits": "10", "max_redemptions": "5", "per_user": "1"}
    response = client.post(reverse("admin:billing_promocode_add"), fields)
    assert response.status_code == 302
    code = PromoCode.objects.get()
    assert (code.code, code.credits) == ("SPRING-24", 10 * MICRO)


def test_saving_a_promo_code_keeps_concurrent_redemptions(client, boss, monkeypatch):
    code = PromoCode.objects.create(code="A", credits=1, max_redemptions=5)
    save = PromoCode.save

    def redeem_first(self, **options) -> None:
        PromoCode.objects.filter(pk=code.pk).update(redeemed=3)
        save(self, **options)

    monkeypatch.setattr(PromoCode, "save", redeem_first)
    fields = {"code": "A", "credits": "1", "max_redemptions": "9", "per_user": "1", "note": "x"}
    assert client.post(change_url(code), fields).status_code == 302
    code.refresh_from_db()
    assert (code.redeemed, code.max_redemptions, code.note) == (3, 9, "x")
    record = AuditRecord.objects.get()
    assert record.action == "change promo code"
    assert record.before["max_redemptions"] == 5
    assert record.after["max_redemptions"] == 9


@pytest.mark.parametrize("key", ["words", "NaN", "9" * 5_000, "\ufffd", "-1"])
def test_account_that_is_none_is_refused(client, boss, key):
    url = reverse("admin:billing_spendinglimit_add")
    page = client.post(url, {"account": key, "period": "day", "amount": "50"})
    assert "Select a valid choice" in page.content.decode()
    assert client.get(url, {"account": key}).status_code == 200
    account = money.open_account()
    known = client.get(url, {"account": account.pk}).content.decode()
    assert f'value="{account.pk}" selected' in known
    assert not SpendingLimit.objects.exists()


def test_staff_cannot_change_users_own_limits(client, boss):
    account = money.open_account()
    url = reverse("admin:billing_spendinglimit_add")
    fields = {"account": account.pk, "period": "day", "model": "", "amount": "12.5"}
    assert client.post(url, fields).status_code == 302
    limit = SpendingLimit.objects.get()
    assert (limit.set_by, limit.amount) == ("staff", 12_500_000)
    own = SpendingLimit.objects.create(account=account, set_by="user", period="month", amount=1)
    assert client.post(change_url(own), fields).status_code == 403
    delete = reverse("admin:billing_spendinglimit_delete", args=[own.pk])
    assert client.post(delete, {"post": "yes"}).status_code == 403


# --- Orders and webhooks ------------------------------------------------------------------------


def test_event_is_processed_again(client, boss, all_rows):
    event = ProviderEvent.objects.get()
    response = client.post(
        reverse("admin:billing_providerevent_changelist"),
        {"action": "process_again", "_selected_action": event.pk},
    )
    assert "1 event will be processed again" in said(response)
    event.refresh_from_db()
    assert (event.status, event.attempts, event.error) == ("received", 0, "")
    assert AuditRecord.objects.filter(action="process event").exists()


def test_unconfigured_provider_is_reported(client, boss, all_rows, settings):
    settings.PAYMENTS_SANDBOX = False
    order = billing_rows.an_order()
    order.provider_order_id = "sb_1"
    order.save()
    response = client.post(reverse("admin:billing_order_ask", args=[order.pk]))
    assert "could not be synced" in said(response)


def test_opened_page_asks_no_provider(client, boss, all_rows):
    before = AuditRecord.objects.count()
    url = reverse("admin:billing_order_ask", args=[billing_rows.an_order().pk])
    assert client.get(url).status_code == 302
    assert AuditRecord.objects.count() == before


def test_refund_is_limited_to_unused_credits(client, boss):
    account = money.open_account()
    order = money.order(account, 1000 * MICRO, paid_at=timezone.now())
    money.spend(account, 900 * MICRO)
    url = reverse("admin:billing_order_refund", args=[order.pk])
    page = client.get(url)
    assert "The unused credits are worth <strong>USD 0.50</strong>" in page.text
    for amount, words in (
        ("0.51", "are worth USD 0.50"),
        ("0.505", "USD does not have that many decimals"),
        ("0", "above zero"),
    ):
        fields = {"amount": amount, "reason": "Asked", "nonce": uuid.uuid4()}
        assert words in client.post(url, fields).text
    assert not Refund.objects.exists()


def test_order_without_unused_credits_is_not_refundable(client, boss):
    account = money.open_account()
    order = money.order(account, 1000 * MICRO, paid_at=timezone.now())
    money.adjust(account, -1000 * MICRO)
    page = client.get(reverse("admin:billing_order_refund", args=[order.pk]))
    assert "Nothing of this purchase can be refunded" in page.text


# --- The record of staff's changes --------------------------------------------------------------


def logged(row) -> list[str]:
    """The entries of a row in the admin's log, oldest first."""
    entries = LogEntry.objects.filter(
        object_id=str(row.pk), content_type=ContentType.objects.get_for_model(row)
    )
    return [entry.get_change_message() for entry in entries.order_by("pk")]


def test_account_actions_are_in_the_admins_log(client, boss):
    account = money.open_account(2 * MICRO)
    plan = Plan.objects.create(slug="school", name="School")
    give(client, account, nonce=(nonce := uuid.uuid4()))
    give(client, account, nonce=nonce)  # a double click
    for page, fields in (
        ("freeze", {"reason": "Fraud"}),
        ("freeze", {"reason": "Fraud"}),
        ("plan", {"reason": "A pupil", "plan": plan.pk}),
        ("messages", {"reason": "Our fault"}),
    ):
        client.post(reverse(f"admin:billing_account_{page}", args=[account.pk]), fields)
    entries = logged(account)
    assert entries[:3] == [
        "Give credits: 5 (balance 2 → 7). Reason: For the outage",
        "Freeze account: active → frozen. Reason: Fraud",
        "Change plan: default → school. Reason: A pupil",
    ]
    assert entries[3].startswith("Reset messages")
    assert len(entries) == AuditRecord.objects.count() == 4
    page = client.get(reverse("admin:admin_logentry_changelist"), {"q": str(account.user)})
    assert "Reason: For the outage" in page.text


@pytest.mark.usefixtures("sandbox")
def test_refund_and_sync_are_recorded_once(client, boss):
    order = purchases.paid(money.open_account())
    fields = {"amount": "2", "reason": "Asked", "nonce": uuid.uuid4()}
    url = reverse("admin:billing_order_refund", args=[order.pk])
    client.post(url, fields)
    client.post(url, fields)  # a double click
    client.post(reverse("admin:billing_order_ask", args=[order.pk]))
    assert Refund.objects.count() == 1
    assert logged(order) == [
        "Refund: USD 2.00. Reason: Asked",
        "Ask provider: partially_refunded → partially_refunded",
    ]
    actions = AuditRecord.objects.order_by("pk").values_list("action", "ip")
    assert list(actions) == [("refund", "127.0.0.1"), ("ask provider", "127.0.0.1")]


@pytest.mark.usefixtures("sandbox")
def test_many_orders_are_recorded_when_synced(client, boss):
    account = money.open_account()
    orders = [money.order(account) for _ in range(6)]
    client.post(
        reverse("admin:billing_order_changelist"),
        {"action": "ask_again", "_selected_action": [order.pk for order in orders]},
    )
    for order in orders:
        assert logged(order) == ["Ask provider: through the queue"]


def test_package_and_event_changes_are_logged_in_words(client, boss, all_rows):
    client.post(reverse("admin:billing_creditpackage_add"), package_fields(name="Big", slug="big"))
    package = CreditPackage.objects.get(slug="big")
    prices, added = logged(package)
    assert prices == f"Price credit package: {NOTHING} → JPY 1,500, USD 9.99"
    assert "Credits: 1000" in added
    event = ProviderEvent.objects.get()
    client.post(
        reverse("admin:billing_providerevent_changelist"),
        {"action": "process_again", "_selected_action": [event.pk]},
    )
    assert logged(event) == ["Process event"]
    client.post(reverse("billing_report_check"))
    assert LogEntry.objects.latest("pk").change_message == "Check ledger"
