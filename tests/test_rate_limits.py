"""Each named limit is reached at its seam: a page, a form, a socket."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_network
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
import redis
from allauth.account import app_settings
from allauth.mfa.models import Authenticator
from asgiref.sync import sync_to_async
from django.core import mail, signing
from django.test import AsyncClient, Client, RequestFactory
from django.urls import get_resolver, reverse
from django.utils import timezone

from accounts import api_keys, joining, sockets
from accounts.models import User
from billing.ledger import signup
from billing.metering import plan_limits
from billing.models import Plan
from chat.models import Conversation, Message, Run
from chat.runs import queue
from chat.runs.start import send as send_message
from chat.tools.registry import ToolError, builtin_tools
from chat.web import run_follower, socket_limits
from chat.webhooks import attempts, dispatch, editing
from chatproject.lib import db, encryption, metrics, rate_limits
from chatproject.lib.env import Limit
from chatproject.lib.http import client_network
from chatproject.lib.pubsub.raw import Attachment
from chatproject.lib.stored_limits import uses
from chatproject.lib.stored_limits.models import LimitUse
from chatproject.local.servers import BASE_DIR
from chatproject.ops import rate_limits as pages
from tests.accounts.test_pages import patterns
from tests.chat.tools.test_registry import context
from tests.support import money
from tests.support.conversations import begin, send
from tests.support.limits import limits_without_redis
from tests.support.people import assistant, conversation, owner, session_key, stranger
from tests.support.sockets import Closed, open_tab, refusal
from tests.support.webhook_receiver import webhook_receiver

__all__ = ["assistant", "conversation", "limits_without_redis", "owner", "stranger"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

PASSWORD = "correct horse battery"
WRONG = "wrong"
JSON = {"accept": "application/json"}

Use = Callable[..., Any]

REACHED: set[str] = set()


def reaches(name: str) -> Callable[[Any], Any]:
    """Note that a test reaches a limit."""
    REACHED.add(name)
    return lambda test: test


@pytest.fixture(autouse=True)
def only(settings) -> Callable[..., None]:
    """Set limits, while all others are off."""
    table = settings.RATE_LIMITS
    settings.RATE_LIMITS = {name: Limit((), limit.fails_closed) for name, limit in table.items()}

    def set_limits(**rates: tuple[int, int]) -> None:
        settings.RATE_LIMITS = settings.RATE_LIMITS | {
            name: Limit((rate,), table[name].fails_closed) for name, rate in rates.items()
        }

    return set_limits


@pytest_asyncio.fixture
async def socket_loop(valkey_url: str) -> AsyncIterator[None]:
    """Let the test's event loop serve sockets; close the shared clients afterwards."""
    yield
    await run_follower.close_clients()


def test_every_name_in_the_table_is_reached(settings):
    assert set(settings.RATE_LIMITS) == REACHED


def test_every_named_view_and_limit_exists(settings):
    names = {name for name, *_ in patterns(get_resolver())}
    limits = pages.LIMITS | pages.LIMITS_OF_POSTS
    assert set(limits) <= names
    assert set(limits.values()) <= set(settings.RATE_LIMITS)


# --- Pages and forms --------------------------------------------------------------------------


PAGES: dict[str, list[tuple[str, Use]]] = {
    "estimates": [("chat:estimate", lambda c, u, **h: c.post("/c/estimate/", {"text": "Hi"}, **h))],
    "orders": [
        (name, lambda c, u, name=name, **h: c.get(reverse(name, args=[uuid4()]), **h))
        for name in ("billing:order", "billing:order_return")
    ],
    "receipts": [
        ("", lambda c, u, **h: c.get(reverse("billing:receipt", args=[uuid4()]), **h)),
    ],
    "searches": [
        (name, lambda c, u, name=name, **h: c.get(reverse(name), {"q": "word"}, **h))
        for name in ("chat:search", "chat:search_results")
    ],
    "exports": [
        (name, lambda c, u, name=name, **h: c.get(reverse(name), **h))
        for name in ("billing:history_csv", "billing:usage_csv")
    ]
    + [
        (name, lambda c, u, name=name, **h: c.get(reverse(name, args=[uuid4()]), **h))
        for name in ("chat:export", "chat:export_file", "chat:print")
    ],
    "full_exports": [
        ("chat:export_all", lambda c, u, **h: c.post(reverse("chat:export_all"), **h))
    ],
    "uploads": [("chat:attach", lambda c, u, **h: c.post(reverse("chat:attach"), **h))],
    "assistants": [
        ("chat:new_assistant", lambda c, u, **h: c.post(reverse("chat:new_assistant"), **h)),
        (
            "chat:edit_assistant",
            lambda c, u, **h: c.post(reverse("chat:edit_assistant", args=[1]), **h),
        ),
    ],
    "projects": [("chat:projects", lambda c, u, **h: c.post(reverse("chat:projects"), **h))],
    "copies": [
        (
            "chat:copy_shared",
            lambda c, u, **h: c.post(reverse("chat:copy_shared", args=[uuid4()]), **h),
        ),
        ("chat:copy_public", lambda c, u, **h: c.post("/s/none/copy/", **h)),
        ("", lambda c, u, **h: c.post(f"/c/{uuid4()}/actions/", {"fork": str(uuid4())}, **h)),
    ],
    "shares": [
        (name, lambda c, u, name=name, args=args, **h: c.post(reverse(name, args=args), **h))
        for name, args in (
            ("chat:share", [uuid4()]),
            ("chat:share_statistics", [uuid4()]),
            ("chat:shared_by_me", []),
        )
    ],
    "public_pages": [
        (name, lambda c, u, name=name, **h: c.get(reverse(name, args=["none"]), **h))
        for name in ("chat:public", "chat:public_statistics")
    ],
    "public_files": [
        (name, lambda c, u, name=name, **h: c.get(reverse(name, args=["none", uuid4()]), **h))
        for name in ("chat:public_file", "chat:public_thumbnail")
    ]
    + [
        (
            "chat:statistics_card",
            lambda c, u, **h: c.get(reverse("chat:statistics_card", args=["none"]), **h),
        )
    ],
    "reports": [
        ("", lambda c, u, **h: c.post(reverse("chat:report", args=[uuid4()]), **h)),
    ],
    "link_reports": [("", lambda c, u, **h: c.post("/s/none/report/", **h))],
    "documents": [
        ("chat:documents", lambda c, u, **h: c.post(reverse("chat:documents"), **h)),
        (
            "chat:retry_document",
            lambda c, u, **h: c.post(reverse("chat:retry_document", args=[uuid4()]), **h),
        ),
    ],
    "insights": [
        (name, lambda c, u, name=name, args=args, **h: c.post(reverse(name, args=args), **h))
        for name, args in (
            ("chat:insight_category", [uuid4(), "portrait"]),
            ("chat:retry_insight", [uuid4()]),
        )
    ],
    "pictures": [("", lambda c, u, **h: c.get(reverse("chat:chart_picture", args=[1]), **h))],
    "imports": [("chat:import", lambda c, u, **h: c.post(reverse("chat:import"), **h))],
    "invitations": [("", lambda c, u, **h: c.get("/accounts/invitation/x/", **h))],
    "api_keys": [("", lambda c, u, **h: c.post(reverse("api_keys"), **h))],
    "webhooks": [
        (name, lambda c, u, name=name, args=args, **h: c.post(reverse(name, args=args), **h))
        for name, args in (
            ("chat:webhooks", []),
            ("chat:webhook", [uuid4()]),
            ("chat:webhook_secret", [uuid4()]),
            ("chat:test_webhook", [uuid4()]),
            ("chat:resend_delivery", [uuid4()]),
        )
    ],
    "notes": [
        (name, lambda c, u, name=name, args=args, **h: c.post(reverse(name, args=args), **h))
        for name, args in (("chat:notes", []), ("chat:note", [uuid4()]))
    ],
    "devices": [("", lambda c, u, **h: c.post(reverse("chat:add_device"), **h))],
    "checkouts": [
        ("billing:buy", lambda c, u, **h: c.post(reverse("billing:buy"), **h)),
        *(
            (name, lambda c, u, name=name, **h: c.post(reverse(name, args=[uuid4()]), **h))
            for name in ("billing:pay", "billing:refund")
        ),
    ],
    "promo_codes": [("", lambda c, u, **h: c.post(reverse("billing:redeem"), {"code": "x"}, **h))],
    "password_checks": [
        (path, lambda c, u, path=path, **h: c.post(path, {"password": "wrong"}, **h))
        for path in ("/accounts/reauthenticate/", "/accounts/password/change/")
    ],
    "email_changes": [
        ("", lambda c, u, **h: c.post("/accounts/email/", {"action_add": "", "email": "x"}, **h))
    ],
}
REACHED.update(PAGES)


@pytest.mark.parametrize(
    ("name", "use"),
    [(name, use) for name, uses in PAGES.items() for _, use in uses],
    ids=[f"{name}-{where}" for name, uses in PAGES.items() for where, _ in uses],
)
def test_page_beyond_its_limit_is_refused(only, client, owner, stranger, name, use):
    owner.is_staff = owner.is_superuser = True  # for the admin's page
    owner.save()
    client.force_login(owner)
    only(**{name: (2, 600)})
    for left in (1, 0):
        accepted = use(client, owner)
        assert accepted.status_code != 429
        assert (accepted["RateLimit-Limit"], accepted["RateLimit-Remaining"]) == ("2", str(left))
        assert 1 <= int(accepted["RateLimit-Reset"]) <= 600
    refused = use(client, owner)
    assert refused.status_code == 429
    assert 1 <= int(refused["Retry-After"]) <= 600
    assert (refused["RateLimit-Limit"], refused["RateLimit-Remaining"]) == ("2", "0")
    assert int(refused["RateLimit-Reset"]) == int(refused["Retry-After"])
    assert "ry again in" in refused.content.decode()
    as_json = use(client, owner, headers=JSON)
    assert as_json.status_code == 429
    assert as_json.json()["code"] == "rate_limited"
    assert as_json.json()["retry_after"] == int(as_json["Retry-After"])
    # Other users have a limit of their own.
    client.force_login(stranger)
    assert use(client, stranger).status_code != 429


@reaches("share_mails")
@reaches("share_mails_address")
def test_mails_about_shares_are_limited(only, client, settings, owner, conversation, assistant):
    """By sender, who is refused, and by address, whose further shares are stored without a mail."""
    settings.SHARE_WITH_USERS = True
    only(share_mails=(3, 600), share_mails_address=(1, 600))
    other = begin(owner, assistant)
    client.force_login(owner)

    def share(chat: Conversation, email: str) -> int:
        form = {"action": "share", "email": email}
        return int(client.post(reverse("chat:share", args=[chat.pk]), form).status_code)

    answers = [
        share(conversation, "one@example.org"),
        share(other, "One@example.org"),
        share(other, "two@example.org"),
        share(conversation, "three@example.org"),
    ]
    assert answers == [302, 302, 302, 429]
    assert [one.to for one in mail.outbox] == [["one@example.org"], ["two@example.org"]]
    assert (conversation.shares.count(), other.shares.count()) == (1, 2)


def test_stored_limits_hold_without_redis(
    only, client, settings, owner, stranger, conversation, limits_without_redis
):
    """Tries at codes, and mails to strangers, are counted in Postgres; the rows go with the limit's period."""
    settings.SHARE_WITH_USERS = True
    only(share_mails=(3, 600), share_mails_address=(1, 600), promo_codes=(2, 600))
    client.force_login(owner)
    url = reverse("chat:share", args=[conversation.pk])

    def share(email: str) -> int:
        answer = client.post(url, {"action": "share", "email": email})
        # The end of a share gives no use back.
        conversation.shares.all().delete()
        return int(answer.status_code)

    addresses = ["one@example.org", "One@example.org", "two@example.org", "three@example.org"]
    assert [share(email) for email in addresses] == [302, 302, 302, 429]
    assert [one.to for one in mail.outbox] == [["one@example.org"], ["two@example.org"]]

    def redeem() -> Any:
        return client.post(reverse("billing:redeem"), {"code": "GUESS"}, headers=JSON)

    assert [redeem().status_code for _ in range(3)] == [400, 400, 429]
    assert 1 <= redeem().json()["retry_after"] <= 600
    client.force_login(stranger)
    assert redeem().status_code == 400
    uses.clear_expired(timezone.now() + timedelta(seconds=590))
    assert LimitUse.objects.count() == 8
    uses.clear_expired(timezone.now() + timedelta(seconds=600))
    assert not LimitUse.objects.exists()


@reaches("api_requests")
def test_key_beyond_its_limit_is_refused(only, owner, stranger):
    only(api_requests=(2, 600))
    keys = [api_keys.create(user, api_keys.Terms(name="Test"))[0] for user in (owner, stranger)]
    for _ in range(2):
        api_keys.count_request(keys[0])
    with pytest.raises(rate_limits.RateLimited) as refused:
        api_keys.count_request(keys[0])
    assert 1 <= refused.value.retry_after <= 600
    api_keys.count_request(keys[1])


@reaches("webhook_deliveries")
def test_deliveries_beyond_the_limit_wait(only, owner, settings):
    settings.WEBHOOK_NETWORKS = [ip_network("127.0.0.0/8")]
    only(webhook_deliveries=(2, 3600))
    with webhook_receiver() as receiver:
        webhook = editing.create(owner, editing.Terms("Test", receiver.url, ["run.done"]))
        sent = [editing.send_test(webhook) for _ in range(3)]
        dispatch.hand_out(timezone.now())
        for one in sent:
            asyncio.run(attempts.make(one.pk, 0))
        assert len(receiver.requests) == 2
    waiting = webhook.deliveries.get(status="waiting")
    assert waiting.attempts == 0
    assert timedelta(minutes=50) < waiting.due_at - timezone.now() <= timedelta(hours=1)


@reaches("web_fetches")
@reaches("web_searches")
@pytest.mark.parametrize("name", ["fetch", "search"])
def test_web_beyond_its_limit_is_refused_to_the_model(only, owner, settings, name):
    settings.WEB_SEARCH_URL = "https://search.example:1/?q={query}"
    only(web_fetches=(1, 3600), web_searches=(1, 3600))
    tool = builtin_tools()[f"web_{name}"]
    arguments = {"url": "https://page.example/"} if name == "fetch" else {"query": "owls"}
    refusals = []
    for _turn in range(2):
        with pytest.raises(ToolError) as caught:
            asyncio.run(tool.call(context(user_id=owner.pk), arguments))  # type: ignore[arg-type] # is_async
        refusals.append(str(caught.value))
    assert "too often" not in refusals[0]
    assert "too often. Try again in 60 minutes" in refusals[1]


@reaches("approval_notices")
def test_notices_of_waiting_accounts_are_limited(only, owner, mailoutbox):
    User.objects.filter(pk=owner.pk).update(is_staff=True, is_superuser=True)
    only(approval_notices=(2, 60))
    for _ in range(5):
        joining.notify_staff()
    assert len(mailoutbox) == 2


@reaches("sign_up")
def test_sign_ups_of_one_address_are_limited(only, client):
    only(sign_up=(2, 60))
    form = {"password1": PASSWORD, "email": "not-an-address"}
    for _ in range(2):
        assert client.post("/accounts/signup/", form).status_code == 200
    refused = client.post("/accounts/signup/", form)
    assert (refused.status_code, "Retry-After" in refused) == (429, True)
    elsewhere = client.post("/accounts/signup/", form, REMOTE_ADDR="198.51.100.7")
    assert elsewhere.status_code == 200


@reaches("password_reset")
@reaches("password_reset_address")
@reaches("password_reset_account")
@pytest.mark.parametrize(
    ("name", "same_address", "same_account"),
    [
        ("password_reset", True, True),
        ("password_reset_address", True, False),
        ("password_reset_account", False, True),
    ],
)
def test_reset_mails_are_limited(only, client, owner, name, same_address, same_account):
    only(**{name: (2, 60)})

    def ask(number: int, **options: Any) -> Any:
        email = owner.email if same_account else f"person{number}@example.org"
        address = "192.0.2.1" if same_address else f"192.0.2.{number}"
        form = {"email": email}
        return client.post("/accounts/password/reset/", form, REMOTE_ADDR=address, **options)

    assert [ask(number).status_code for number in (1, 2)] == [302, 302]
    refused = ask(3)
    assert (refused.status_code, "Retry-After" in refused) == (429, True)
    assert ask(4, headers=JSON).json()["code"] == "rate_limited"
    assert len(mail.outbox) == 2


def test_known_browser_gets_reset_mail_during_attack(only, client, owner):
    sign_in(client, owner.email, PASSWORD)
    client.post("/accounts/logout/")
    only(password_reset=(2, 60), password_reset_address=(2, 60), password_reset_account=(2, 60))

    def ask(asking: Client) -> int:
        form = {"email": owner.email}
        return int(asking.post("/accounts/password/reset/", form).status_code)

    assert [ask(Client()) for _ in range(3)] == [302, 302, 429]
    assert [ask(client) for _ in range(3)] == [302, 302, 429]


@reaches("confirmation_mails")
def test_confirmation_mails_of_an_address_are_limited(client, settings):
    """The limit is allauth's own, with the rate of the table: further mails are left out."""
    settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
    settings.ACCOUNT_RATE_LIMITS = settings.ACCOUNT_RATE_LIMITS | {"confirm_email": "1/60s/key"}
    form = {"email": "new@example.org", "password1": PASSWORD}
    client.post("/accounts/signup/", form)
    for _ in range(3):
        client.post("/accounts/login/", {"login": form["email"], "password": PASSWORD})
    assert len(mail.outbox) == 1


def test_allauth_has_no_other_limits(settings):
    assert {name for name, rate in app_settings.RATE_LIMITS.items() if rate} == {"confirm_email"}
    assert app_settings.RATE_LIMITS["confirm_email"] == "1/180s/key"


# --- Signing in -------------------------------------------------------------------------------


def sign_in(client: Client, email: str, password: str = WRONG, **options: Any) -> Any:
    address = options.pop("address", "192.0.2.1")
    form = {"login": email, "password": password} | options.pop("form", {})
    return client.post("/accounts/login/", form, REMOTE_ADDR=address, **options)


def is_inside(client: Client) -> bool:
    return client.get("/").status_code == 200


@reaches("sign_in")
@pytest.mark.parametrize("email", ["owner@example.org", "nobody@example.org"])
def test_wrong_passwords_from_one_place_are_limited(only, client, owner, email):
    """The answers do not reveal whether there is an account."""
    only(sign_in=(3, 300))
    assert [sign_in(client, email).status_code for _ in range(3)] == [200] * 3
    refused = sign_in(client, email.upper())
    assert refused.status_code == 429
    assert 1 <= int(refused["Retry-After"]) <= 300
    assert (refused["RateLimit-Limit"], refused["RateLimit-Remaining"]) == ("3", "0")
    assert "Choose a new password" in refused.content.decode()
    assert sign_in(client, email, headers=JSON).json()["code"] == "rate_limited"
    assert sign_in(client, email, PASSWORD).status_code == 429
    assert not is_inside(client)


def test_wrong_passwords_elsewhere_do_not_lock_out(only, client, owner):
    only(sign_in=(3, 300), sign_in_address=(20, 300))
    attacker = Client()
    for _ in range(9):
        sign_in(attacker, owner.email, address="198.51.100.9")
    assert sign_in(client, owner.email, PASSWORD).status_code == 302
    assert is_inside(client)


def test_right_password_forgets_wrong_ones_of_owner(only, client, owner):
    only(sign_in=(3, 300))
    for _ in range(4):
        assert [sign_in(Client(), owner.email).status_code for _ in range(2)] == [200, 200]
        assert sign_in(Client(), owner.email, PASSWORD).status_code == 302


@reaches("sign_in_address")
def test_wrong_passwords_for_many_accounts_are_limited(only, client, owner):
    only(sign_in_address=(5, 300))
    emails = [f"person{number}@example.org" for number in range(6)]
    assert [sign_in(client, email).status_code for email in emails] == [200] * 5 + [429]
    assert sign_in(client, owner.email, PASSWORD).status_code == 429
    assert sign_in(client, owner.email, PASSWORD, address="192.0.2.2").status_code == 302


def test_right_passwords_do_not_count_against_address(only, owner, stranger):
    only(sign_in_address=(2, 300))
    for _ in range(3):
        for user in (owner, stranger):
            assert sign_in(Client(), user.email, PASSWORD).status_code == 302


@reaches("sign_in_account")
def test_guesses_from_many_addresses_spare_known_browser(only, client, owner):
    assert sign_in(client, owner.email, PASSWORD).status_code == 302
    client.post("/accounts/logout/")
    only(
        sign_in_account=(5, 300),
        sign_in=(2, 300),
        sign_in_address=(20, 300),
        sign_in_known=(2, 300),
    )
    guesses = [
        sign_in(Client(), owner.email, address=f"198.51.100.{number}").status_code
        for number in range(8)
    ]
    assert guesses == [200] * 5 + [429] * 3
    # An unknown browser is refused with the right password, the owner's own is not.
    assert sign_in(Client(), owner.email, PASSWORD).status_code == 429
    assert sign_in(client, owner.email, PASSWORD).status_code == 302


def test_session_checks_its_password_during_an_attack(only, client, owner):
    client.force_login(owner)
    only(sign_in_account=(1, 300), sign_in=(1, 300), password_checks=(3, 300))
    for number in range(3):
        sign_in(Client(), owner.email, address=f"198.51.100.{number}")
    url = "/accounts/reauthenticate/"
    assert client.post(url, {"password": PASSWORD}).status_code == 302
    statuses = [client.post(url, {"password": WRONG}).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


@reaches("codes")
def test_codes_beyond_their_limit_are_refused(only, client, owner):
    secret = encryption.encrypt("A" * 32)
    Authenticator.objects.create(user=owner, type="totp", data={"secret": secret})
    only(codes=(2, 300))
    sign_in(client, owner.email, PASSWORD)
    url = reverse("mfa_authenticate")
    # A recovery code, a code of an app and the answer of a passkey are counted together.
    answers = [{"code": "1"}, {"credential": '{"id": 1}'}, {"code": "2"}]
    assert [client.post(url, answer).status_code for answer in answers] == [200, 200, 429]
    # Also from another browser; and not those of another user.
    other = Client()
    sign_in(other, owner.email, PASSWORD)
    assert other.post(url, {"code": "3"}).status_code == 429


@reaches("passkeys")
def test_passkeys_beyond_their_limit_are_refused(only, client):
    only(passkeys=(2, 300))
    url = reverse("mfa_login_webauthn")
    assert [client.post(url, {"credential": "{}"}).status_code for _ in range(3)] == [302, 302, 429]


@reaches("provider_sign_ins")
def test_too_many_sign_ins_at_providers_are_refused(only, client):
    only(provider_sign_ins=(2, 300))
    begin = reverse("socialaccount_begin", args=["oidc"])
    back = reverse("socialaccount_callback", args=["oidc"])
    statuses = [client.post(begin).status_code, client.get(back).status_code]
    assert [*statuses, client.post(begin).status_code] == [404, 404, 429]


@reaches("sign_in_known")
def test_stolen_browser_cookie_allows_few_guesses(only, client, owner, stranger):
    sign_in(client, owner.email, PASSWORD)
    stolen = client.cookies["known_browser"].value
    only(sign_in_account=(1, 300), sign_in_known=(3, 300))
    thief = Client()
    thief.cookies["known_browser"] = stolen
    statuses = [sign_in(thief, owner.email).status_code for _ in range(5)]
    # After those of the browser, the one of the account.
    assert statuses == [200, 200, 200, 200, 429]
    # It helps with no other account.
    assert [sign_in(thief, stranger.email).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("forged", ["", "x", "eyIxIjoieCJ9:1abc:xyz", "\xe9"])
def test_forged_browser_cookie_is_ignored(only, owner, forged):
    only(sign_in=(1, 300))
    forger = Client()
    forger.cookies["known_browser"] = forged
    assert [sign_in(forger, owner.email).status_code for _ in range(2)] == [200, 429]


def test_browser_remembers_the_last_five_users(client):
    users = [
        User.objects.create_user(f"person{number}@example.org", PASSWORD) for number in range(6)
    ]
    for user in users:
        assert sign_in(client, user.email, PASSWORD).status_code == 302
        client.post("/accounts/logout/")
    known = signing.loads(client.cookies["known_browser"].value, salt="accounts.known_browsers")
    assert list(known) == [str(user.pk) for user in users[1:]]


def test_reset_lets_a_locked_out_owner_in(only, client, owner):
    only(sign_in=(1, 300), sign_in_account=(1, 300), sign_in_address=(1, 300))
    for _ in range(3):
        sign_in(client, owner.email)
    assert sign_in(client, owner.email, PASSWORD).status_code == 429
    client.post("/accounts/password/reset/", {"email": owner.email})
    [link] = re.findall(r"http://testserver(/\S+)", str(mail.outbox[0].body))
    address = client.get(link, follow=True).redirect_chain[-1][0]
    new = "another-password-23"
    client.post(address, {"password1": new, "password2": new})
    assert is_inside(client)
    client.post("/accounts/logout/")
    assert sign_in(client, owner.email, new).status_code == 302


def test_sign_in_is_refused_while_redis_is_unreachable(only, client, owner, limits_without_redis):
    only(sign_in=(3, 300), receipts=(1, 60))
    client.raise_request_exception = False
    before = metrics.RATE_LIMITS_UNCOUNTED.labels("sign_in", "refused")._value.get()
    answer = sign_in(client, owner.email, PASSWORD)
    assert (answer.status_code, answer["Retry-After"]) == (503, "5")
    assert metrics.RATE_LIMITS_UNCOUNTED.labels("sign_in", "refused")._value.get() == before + 1
    # A page without danger is served.
    client.force_login(owner)
    url = reverse("billing:receipt", args=[uuid4()])
    assert [client.get(url).status_code for _ in range(3)] == [404] * 3
    assert metrics.RATE_LIMITS_UNCOUNTED.labels("receipts", "accepted")._value.get() >= 3


# Those of signing in, with its codes and mails. `messages` are refused, as Redis has their queue.
CLOSED = {
    *("sign_in", "sign_in_address", "sign_in_account", "sign_in_known", "admin_sign_in", "sign_up"),
    *("password_reset", "password_reset_address", "password_reset_account", "password_checks"),
    *("codes", "passkeys", "provider_sign_ins", "email_changes", "confirmation_mails"),
}


def test_each_limit_fails_as_documented_without_redis(settings, limits_without_redis):
    for name, limit in settings.RATE_LIMITS.items():
        assert limit.fails_closed is (name in CLOSED), name
        settings.RATE_LIMITS = settings.RATE_LIMITS | {name: limit._replace(rates=((1, 60),))}
        outcome = "refused" if name in CLOSED else "accepted"
        counted = metrics.RATE_LIMITS_UNCOUNTED.labels(name, outcome)
        before = counted._value.get()
        for call in (rate_limits.hit, rate_limits.check):
            if name in CLOSED:
                with pytest.raises(redis.RedisError):
                    call(name, "someone")
            else:
                call(name, "someone")
        assert counted._value.get() == before + 2, name


# --- Limits of a plan ---------------------------------------------------------------------------


def share_form(client: Client, chat: Conversation) -> Any:
    return client.post(reverse("chat:share", args=[chat.pk]), {"action": "share", "email": "x"})


def test_limits_of_the_plan_replace_the_sites(
    only, client, owner, stranger, conversation, django_assert_num_queries
):
    only(messages=(1, 60), uploads=(1, 60), shares=(1, 60), api_requests=(1, 60))
    plan = Plan.objects.create(
        slug="school",
        name="School",
        messages_per_minute=2,
        uploads_per_hour=2,
        shares_per_hour=2,
        api_requests_per_minute=2,
    )
    money.give_plan(signup.account_of(owner.pk), plan)
    owner.refresh_from_db()
    plan_limits.limit_of("messages", owner.plan_id)
    with django_assert_num_queries(0):
        assert plan_limits.limit_of("messages", owner.plan_id).rates == ((2, 60),)
        assert plan_limits.parallel_runs(owner.plan_id) == plan_limits.parallel_runs(None)
    key, _secret = api_keys.create(owner, api_keys.Terms(name="Test"))
    uses: list[Callable[[], Any]] = [
        lambda: client.post(reverse("chat:attach"), headers=JSON),
        lambda: share_form(client, conversation),
        lambda: client.post(reverse("chat:create"), {"text": "Hi", "client_id": uuid4().hex}),
    ]
    for user, most in ((owner, 2), (stranger, 1)):
        client.force_login(user)
        for use in uses:
            assert [use().status_code == 429 for _ in range(most + 1)] == [False] * most + [True]
    assert [api_keys.count_request(key).amount for _ in range(2)] == [2, 2]
    with pytest.raises(rate_limits.RateLimited):
        api_keys.count_request(key)
    # A change by staff takes effect at once in this process, and in others within seconds.
    plan.shares_per_hour = 9
    plan.save()
    client.force_login(owner)
    assert share_form(client, conversation).status_code != 429
    Plan.objects.update(shares_per_hour=3)
    assert plan_limits.limit_of("shares", plan.pk).rates == ((9, 3600),)
    plan_limits.memory.due = 0
    plan_limits.limit_of("shares", plan.pk)
    assert plan_limits.limit_of("shares", plan.pk).rates == ((3, 3600),)


@pytest.mark.usefixtures("socket_loop")
async def test_open_socket_follows_a_new_plan(only, owner, assistant):
    only(messages=(9, 60))

    def give_plan() -> None:
        plan = Plan.objects.create(slug="one", name="One", messages_per_minute=1)
        money.give_plan(signup.account_of(owner.pk), plan)

    async with open_tab(owner) as tab:
        await tab.send(type="chat.send", client_id="m0", text="Hello")
        await tab.until("run.queued")
        await sync_to_async(give_plan)()
        for number, answer in ((1, "run.queued"), (2, "error")):
            await tab.send(type="chat.send", client_id=f"m{number}", text="Hello")
            assert (await tab.until("run.queued", "error"))["type"] == answer


# --- The admin's sign-in ----------------------------------------------------------------------


@pytest.fixture
def staff(transactional_db) -> User:
    return User.objects.create_superuser("staff@example.org", PASSWORD)


@reaches("admin_sign_in")
def test_wrong_passwords_of_the_admin_are_limited(only, client, staff):
    only(admin_sign_in=(4, 300))
    asked = client.get("/admin/billing/account/?q=x", follow=True)
    page, _ = asked.redirect_chain[-1]
    assert page.startswith("/accounts/login/?next=/admin/")
    form = {"next": "/admin/billing/account/?q=x"}
    statuses = [sign_in(client, f"s{n}@example.org", form=form).status_code for n in range(6)]
    assert statuses == [200] * 4 + [429] * 2
    elsewhere = sign_in(client, staff.email, PASSWORD, form=form, address="192.0.2.2")
    assert elsewhere["Location"] == form["next"]
    assert client.get("/admin/").status_code == 200


def test_admin_form_checks_no_password(client, staff):
    form = {"username": staff.email, "password": PASSWORD, "next": "/admin/"}
    for _ in range(3):
        assert client.post("/admin/login/", form)["Location"].startswith("/accounts/login/")
    assert not is_inside(client)
    # Neither does it for staff: they would try passwords of others without a limit.
    client.force_login(staff)
    other = User.objects.create_superuser("other@example.org", "another-password-23")
    client.post("/admin/login/", {"username": other.email, "password": "another-password-23"})
    assert client.get("/").wsgi_request.user == staff


def test_admin_login_leads_other_users_back(client, owner):
    client.force_login(owner)
    answer = client.get("/admin/billing/account/", follow=True)
    assert answer.status_code == 403
    assert len(answer.redirect_chain) == 1
    html = answer.content.decode()
    assert "not a staff account" in html
    assert 'action="/accounts/logout/"' in html


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/admin/billing/", "/admin/billing/"),
        ("", "/admin/"),
        ("https://elsewhere.example/", "/admin/"),
        ("//elsewhere.example/admin/", "/admin/"),
    ],
)
def test_admin_login_returns_staff_to_their_page(client, staff, target, expected):
    url = f"/admin/login/?next={target}"
    visitor = Client().get(url)["Location"]
    assert visitor == f"/accounts/login/?next={expected}"
    client.force_login(staff)
    assert client.get(url)["Location"] == expected


# --- Addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("", "unknown"),
        ("not-an-address", "unknown"),
    ],
)
def test_limits_count_by_address_or_network(address, network):
    assert client_network(RequestFactory().get("/", REMOTE_ADDR=address)) == network


def test_forged_header_does_not_change_the_address(only, client, owner):
    only(sign_in=(2, 300))
    statuses = [
        sign_in(client, owner.email, headers={"X-Forwarded-For": f"203.0.113.{n}"}).status_code
        for n in range(4)
    ]
    assert statuses == [200, 200, 429, 429]


# --- Messages and sockets ---------------------------------------------------------------------


def frame(number: int, conversation: Any, **fields: Any) -> dict[str, Any]:
    return {
        "type": "chat.send",
        "client_id": f"m{number}",
        "text": f"Text {number}",
        "conversation": str(conversation.pk),
    } | fields


@reaches("messages")
@pytest.mark.usefixtures("socket_loop")
async def test_message_beyond_the_limit_is_refused(only, owner, assistant, stranger):
    only(messages=(2, 60))
    async with open_tab(owner) as tab:
        runs = []
        for number in range(2):
            await tab.send(type="chat.send", client_id=f"m{number}", text="Hello")
            runs.append((await tab.until("run.queued"))["run"])
        await tab.send(type="chat.send", client_id="m2", text="Hello")
        refused = await tab.until("error")
        assert (refused["code"], refused["ref"]) == ("rate_limited", "m2")
        assert 1 <= refused["retry_after"] <= 60
        # A repeated frame is answered with its run, also beyond the limit.
        await tab.send(type="chat.send", client_id="m0", text="Hello")
        assert (await tab.until("run.queued", "error"))["run"] == runs[0]
    assert await sync_to_async(Run.objects.count)() == 2
    assert await sync_to_async(Message.objects.filter(role="user").count)() == 2


def test_message_by_form_beyond_limit_is_kept(only, client, owner, conversation):
    only(messages=(1, 60))
    send(owner, conversation)
    client.force_login(owner)
    url = reverse("chat:create")
    answer = client.post(url, {"text": "Keep this text", "client_id": "m1"})
    assert answer.status_code == 429
    assert 1 <= int(answer["Retry-After"]) <= 60
    assert (answer["RateLimit-Limit"], answer["RateLimit-Remaining"]) == ("1", "0")
    assert "Keep this text" in answer.content.decode()
    as_json = client.post(url, {"text": "Hi", "client_id": "m2"}, headers=JSON)
    assert (as_json.status_code, as_json.json()["code"]) == (429, "rate_limited")
    assert Run.objects.count() == 1


def test_message_costs_no_additional_round_trip(only, owner, assistant, monkeypatch):
    only(messages=(30, 60))
    send_message(user=owner, text="Load the scripts", client_id="m0")
    sent = []
    connection = queue.rq_queue().connection
    plain = connection.connection_pool.get_connection

    def counted(*args: Any, **kwargs: Any) -> Any:
        sent.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr(connection.connection_pool, "get_connection", counted)
    queue.count_message(owner.pk, rate_limits.limit_of("messages"))
    assert len(sent) == 1


def test_lost_scripts_are_loaded_again(only, owner, valkey_client):
    only(messages=(2, 60))
    assert not queue.count_message(owner.pk, rate_limits.limit_of("messages")).is_too_fast
    valkey_client.script_flush()
    assert not queue.count_message(owner.pk, rate_limits.limit_of("messages")).is_too_fast
    assert queue.count_message(owner.pk, rate_limits.limit_of("messages")).is_too_fast
    assert 1 <= rate_limits.retry_after("messages", owner.pk) <= 60


@reaches("handshakes")
@pytest.mark.usefixtures("socket_loop")
async def test_sockets_opened_too_often_are_refused(only, owner, stranger, monkeypatch):
    """The database is not asked for their session."""
    only(handshakes=(3, 60))
    monkeypatch.setattr(sockets, "_handshakes", rate_limits.Windows("handshakes"))
    found: list[str] = []
    find = sockets.find_session

    def note(key: str) -> Any:
        found.append(key)
        return find(key)

    monkeypatch.setattr(sockets, "find_session", note)
    session = await sync_to_async(session_key)(owner)
    for _ in range(3):
        async with open_tab(owner, session=session) as tab:
            assert await tab.is_silent()
    error, code = await refusal(owner, session=session)
    assert (error["code"], code) == ("rate_limited", 4429)
    assert 1 <= error["retry_after"] <= 60
    assert found == [session] * 3
    # Sockets without a valid session count by address, and leave known sessions alone.
    other = await sync_to_async(session_key)(stranger)
    async with open_tab(stranger, session=other) as tab:
        assert await tab.is_silent()
    for number in range(3):
        assert (await refusal(owner, session=f"{number:032}"))[1] == 4401
    assert (await refusal(owner, session=f"{4:032}"))[1] == 4429
    assert (await refusal(None))[1] == 4429
    async with open_tab(stranger, session=other) as tab:
        assert await tab.is_silent()
    assert len(found) == 3 + 1 + 3 + 1


def test_idle_windows_are_forgotten(only, monkeypatch):
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    only(handshakes=(3, 60))
    windows = rate_limits.Windows("handshakes")
    windows.hit("a")
    now += 59
    windows.hit("b")
    now += 2
    windows.hit("c")
    assert ["a" in windows, "b" in windows] == [False, True]


@reaches("sockets")
@pytest.mark.usefixtures("socket_loop")
async def test_socket_beyond_the_limit_is_closed(only, owner, stranger):
    only(sockets=(2, 0))
    async with open_tab(owner) as first:
        async with open_tab(owner), open_tab(stranger) as other:
            error, code = await refusal(owner)
            assert (error["code"], code) == ("rate_limited", 4429)
            assert error["retry_after"] == 30
            assert "too many tabs" in error["message"]
            assert await other.is_silent()
            assert await first.is_silent()
        async with open_tab(owner) as again:
            assert await again.is_silent()


@pytest.mark.usefixtures("socket_loop")
async def test_socket_that_ends_anyhow_is_not_counted(only, owner, monkeypatch):
    only(sockets=(1, 0))

    async def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    for _ in range(3):
        with suppress(asyncio.CancelledError, RuntimeError):
            async with open_tab(owner) as tab:
                monkeypatch.setattr(Attachment, "detach", fail)
                tab._communicator.future.cancel()
                await tab._communicator.future
        monkeypatch.undo()
    async with open_tab(owner) as tab:
        assert await tab.is_silent()


@reaches("streams")
@pytest.mark.usefixtures("socket_loop")
async def test_stream_beyond_the_limit_is_refused(only, owner, conversation):
    only(streams=(1, 0))
    run = await db.run(send, owner, conversation)
    page = AsyncClient()
    await page.aforce_login(owner)
    events, waits = f"/api/v1/runs/{run.pk}/events", f"/api/v1/runs/{run.pk}/wait"
    response: Any = await page.get(events)
    first = aiter(response.streaming_content)
    assert await anext(first)
    begun = asyncio.create_task(anext(first, None))
    await asyncio.sleep(0)
    for address in (events, waits):
        refused = await page.get(address)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert int(refused["Retry-After"]) > 0
    begun.cancel()
    with suppress(asyncio.CancelledError):
        await begun
    assert (await page.get(events)).status_code == 200


@reaches("frames")
@pytest.mark.usefixtures("socket_loop")
async def test_frames_beyond_limit_close_the_socket(only, owner, stranger, monkeypatch):
    only(frames=(5, 60))
    monkeypatch.setattr(socket_limits, "PAUSE", 0.001)
    async with open_tab(owner) as tab, open_tab(owner) as idle, open_tab(stranger) as other:
        for _ in range(50):
            await tab.send(type="ping")
        with pytest.raises(Closed, match="4429"):
            await tab.until("never")
        errors = [event for event in tab.received if event["type"] == "error"]
        # A warning, then the reason of the close code. Each frame in between was answered.
        assert [error["code"] for error in errors] == ["rate_limited"] * 2
        assert all(1 <= error["retry_after"] <= 60 for error in errors)
        assert tab.received[5] == errors[0]
        assert [event["type"] for event in tab.received].count("pong") == 5 + 20
        # No new socket until frames are accepted again; other users are not affected.
        assert (await refusal(owner))[1] == 4429
        assert await other.is_silent()
        await idle.send(type="ping")
        assert (await idle.receive())["type"] == "error"


@reaches("resumes")
@pytest.mark.usefixtures("socket_loop")
async def test_resumes_beyond_limit_are_refused(only, owner, conversation):
    only(resumes=(3, 60))
    run = await sync_to_async(send)(owner, conversation)
    async with open_tab(owner) as tab:
        for _ in range(5):
            await tab.send(type="resume", run=str(run.pk), after=0)
        errors = [await tab.until("error") for _ in range(2)]
        assert {(error["code"], error["ref"]) for error in errors} == {
            ("rate_limited", str(run.pk))
        }
        assert all(1 <= error["retry_after"] <= 60 for error in errors)
        assert await tab.is_silent()


def test_idle_users_are_forgotten(monkeypatch):
    monkeypatch.setattr(socket_limits, "_usages", {})
    monkeypatch.setattr(socket_limits, "FORGET_EVERY", 0.0)
    kept = socket_limits.Allowance(1)
    socket_limits.Allowance(2).end()
    socket_limits.Allowance(3)
    assert set(socket_limits._usages) == {1, 3}
    kept.end()
    kept.end()
    socket_limits.Allowance(3)
    assert set(socket_limits._usages) == {3}


# --- The table --------------------------------------------------------------------------------


def test_window_accepts_again_when_the_oldest_leaves(monkeypatch):
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    window = rate_limits.Window(Limit(((2, 10), (3, 60))))
    assert [window.hit() for _ in range(2)] == [0, 0]
    assert window.hit() == 10
    now += 10.5
    assert window.hit() == 0
    assert window.hit() == 49.5
    assert not window.is_idle
    now += 61
    assert window.is_idle
    assert window.hit() == 0


def test_limits_are_documented_with_their_defaults():
    settings_text = (BASE_DIR / "chatproject" / "settings.py").read_text()
    defaults = dict(re.findall(r'env\.limit\(\s*"LIMIT_(\w+)", "([^"]+)"', settings_text))
    example = dict(
        re.findall(r"^# LIMIT_(\w+)=(.+)$", (BASE_DIR / ".env.example").read_text(), re.MULTILINE)
    )
    table = (BASE_DIR / "docs" / "operations" / "limits.md").read_text()
    documented = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.MULTILINE)
    assert defaults == example == {name.upper(): value for name, value in documented}
