"""API keys: the page, the command, and what a request with a key is permitted."""

from __future__ import annotations

import re
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.core import mail
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from accounts import api_keys
from accounts.api_keys import KeyRefused
from accounts.models import ApiKey, Scope, User
from chatproject.lib import metrics, rate_limits
from tests.support.limits import limits_without_redis

__all__ = ["limits_without_redis"]

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey_url")]

PASSWORD = "a-long-password-17"
KEY = re.compile(r"sk-parley-[\w-]{43}")
MICRO = 1_000_000


@pytest.fixture
def reader() -> User:
    return User.objects.create_user("reader@example.org", PASSWORD)


@pytest.fixture
def inside(client: Client, reader: User) -> Client:
    client.force_login(reader)
    return client


def new_key(user: User, **terms: Any) -> tuple[ApiKey, str]:
    return api_keys.create(user, api_keys.Terms(**{"name": "Test"} | terms))


def use(secret: str, scope: Scope = Scope.MODELS) -> ApiKey:
    return api_keys.authenticate(f"Bearer {secret}", scope)


def refusal(header: str, scope: Scope = Scope.MODELS) -> KeyRefused:
    with pytest.raises(KeyRefused) as refused:
        api_keys.authenticate(header, scope)
    return refused.value


def test_key_of_the_page_is_shown_once(inside: Client, reader: User):
    form = {"name": "Laptop", "days": "30", "scopes": ["models", "usage"], "limit_month": "2.5"}
    asked = inside.post("/accounts/keys/", form)
    assert asked["Location"].startswith(
        "/accounts/reauthenticate/"
    )  # a session alone is not enough
    assert not ApiKey.objects.exists()
    page = inside.post(asked["Location"], {"password": PASSWORD}, follow=True).content.decode()
    [secret] = set(KEY.findall(page))
    again = inside.get("/accounts/keys/").content.decode()
    assert not KEY.search(again)
    assert "Laptop" in again
    key = use(secret)
    assert key.user == reader
    assert (key.scopes, key.limit_month, key.limit_total) == (["models", "usage"], 2_500_000, None)
    assert key.expires_at is not None
    assert timedelta(days=29) < key.expires_at - timezone.now() < timedelta(days=31)
    stored = str(ApiKey.objects.filter(pk=key.pk).values().get())
    assert secret not in stored
    assert secret[-8:] not in stored
    assert [message.to for message in mail.outbox] == [[reader.email]]
    assert secret[:20] not in mail.outbox[0].body


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, "This field is required."),
        ({"scopes": []}, "Choose at least one."),
        ({"scopes": ["all"]}, "all is not one of the available choices"),
        ({"days": "31"}, "31 is not one of the available choices"),
        ({"limit_month": "-1"}, "Enter at least 0"),
        ({"limit_total": "many"}, "Enter a number of credits"),
        ({"rate": "0"}, "greater than or equal to 1"),
    ],
)
def test_wrong_terms_are_shown_beside_their_field(inside: Client, change, words):
    form = {"name": "Laptop", "days": "30", "scopes": ["models"]} | change
    response = inside.post("/accounts/keys/", form)
    assert response.status_code == 400
    assert words in response.content.decode()
    assert not ApiKey.objects.exists()


def test_revoked_key_is_refused_at_once(inside: Client, reader: User):
    key, secret = new_key(reader)
    stranger = User.objects.create_user("stranger@example.org", PASSWORD)
    other, others_secret = new_key(stranger)
    assert inside.post(f"/accounts/keys/{other.pk}/revoke/").status_code == 404
    assert use(others_secret) == other
    assert inside.post(f"/accounts/keys/{key.pk}/revoke/")["Location"] == "/accounts/keys/"
    assert refusal(f"Bearer {secret}").code == "invalid_api_key"
    assert "Revoked" in inside.get("/accounts/keys/").content.decode()


def test_keys_that_permit_nothing_are_refused(reader: User, django_assert_num_queries):
    key, secret = new_key(reader, scopes=["read"])
    wrong = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    for header in ("", "  "):
        assert (refusal(header).code, refusal(header).status) == ("missing_api_key", 401)
    for header in (f"Bearer {wrong}", f"Bearer {secret}x", f"Basic {secret}", secret, "Bearer é"):
        assert (refusal(header).code, refusal(header).status) == ("invalid_api_key", 401)
    lacking = refusal(f"Bearer {secret}")
    assert (lacking.code, lacking.status) == ("missing_scope", 403)
    assert "models" in lacking.message
    assert use(secret, Scope.READ) == key
    with django_assert_num_queries(1):
        assert use(secret, Scope.READ).user.email == reader.email
    ApiKey.objects.update(expires_at=timezone.now())
    assert refusal(f"Bearer {secret}", Scope.READ).code == "expired_api_key"
    ApiKey.objects.update(expires_at=None)
    reader.is_active = False
    reader.save()
    assert refusal(f"Bearer {secret}", Scope.READ).code == "account_inactive"


def test_last_use_is_noted_once_a_minute(reader: User):
    key, secret = new_key(reader)
    use(secret)
    key.refresh_from_db()
    first = key.last_used_at
    assert first is not None
    use(secret)
    key.refresh_from_db()
    assert key.last_used_at == first
    ApiKey.objects.update(last_used_at=first - timedelta(minutes=1))
    use(secret)
    key.refresh_from_db()
    assert key.last_used_at is not None
    assert key.last_used_at >= first


def test_rate_of_a_key_is_its_own(reader: User):
    slow, _ = new_key(reader, rate=2)
    fast, _ = new_key(reader)
    standings = [api_keys.count_request(slow) for _ in range(2)]
    assert [(one.amount, one.remaining) for one in standings] == [(2, 1), (2, 0)]
    assert 59 < standings[0].reset <= 60
    with pytest.raises(rate_limits.RateLimited) as refused:
        api_keys.count_request(slow)
    assert 1 <= refused.value.retry_after <= 60
    assert api_keys.count_request(fast).amount == 300


@pytest.mark.usefixtures("limits_without_redis")
def test_rate_without_redis_is_counted_as_accepted(reader: User):
    counter = metrics.RATE_LIMITS_UNCOUNTED.labels("api_requests", "accepted")
    before = counter._value.get()
    assert api_keys.count_request(new_key(reader, rate=1)[0]).amount is None
    assert counter._value.get() == before + 1


def test_command_prints_a_key_that_works(reader: User):
    out = StringIO()
    options = {"scope": ["models"], "expires_days": 7, "spending_limit": "3", "rate": 10}
    call_command("create_api_key", reader.email.upper(), stdout=out, name="CI", **options)
    key = use(out.getvalue().strip())
    assert (key.name, key.scopes, key.rate) == ("CI", ["models"], 10)
    assert (key.limit_month, key.limit_total) == (3 * MICRO, None)
    for wrong in ({"expires_days": 0}, {"spending_limit": "x"}, {"rate": 0}, {"name": " "}):
        with pytest.raises(CommandError):
            call_command("create_api_key", reader.email, **wrong)
    with pytest.raises(CommandError, match="There is no user"):
        call_command("create_api_key", "nobody@example.org")


def test_staff_revoke_a_key_with_an_entry(client: Client, reader: User):
    boss = User.objects.create_superuser("boss@example.org", PASSWORD)
    key, secret = new_key(reader)
    client.force_login(boss)
    page = client.get(f"/admin/accounts/apikey/{key.pk}/change/").content.decode()
    assert key.prefix in page
    assert key.hash not in page
    assert secret not in page
    form = {"action": "revoke", "_selected_action": [key.pk]}
    client.post("/admin/accounts/apikey/", form)
    assert refusal(f"Bearer {secret}").code == "invalid_api_key"
    assert LogEntry.objects.get().get_change_message() == "Revoked"


def test_number_of_usable_keys_is_limited(reader: User, monkeypatch):
    monkeypatch.setattr(api_keys, "MOST", 1)
    key, _ = new_key(reader)
    with pytest.raises(api_keys.TooManyKeys):
        new_key(reader)
    assert api_keys.revoke(key, by=reader)
    new_key(reader)
