"""Promo codes: their credits, their refusals, and races that must not grant more."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
from django.utils import timezone

from accounts.models import User
from billing.ledger import promo_codes
from billing.models import Account, CreditLot, LedgerEntry, PromoCode, PromoRedemption
from tests.support.threads import race

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def user() -> User:
    return User.objects.create_user("reader@example.org")


def make_code(**fields) -> PromoCode:
    fields = {"code": "WELCOME", "credits": 50_000_000, "max_redemptions": 5} | fields
    return PromoCode.objects.create(**fields)


def redeem(user: User, code: str = "WELCOME") -> LedgerEntry:
    return promo_codes.redeem(user_id=user.pk, code=code)


def refusal(user: User, code: str = "WELCOME") -> str:
    with pytest.raises(promo_codes.PromoRefused) as refused:
        redeem(user, code)
    return refused.value.message


def test_code_grants_its_credits_in_any_case(user):
    code = make_code(lot_days=30)
    entry = redeem(user, "  wElcome\n")
    assert (entry.kind, entry.amount, entry.note) == ("promo", 50_000_000, "Code WELCOME")
    assert entry.idempotency_key == f"promo:{code.pk}:{user.pk}:1"
    lot = CreditLot.objects.get()
    assert lot.kind == "promo"
    assert lot.expires_at - timezone.now() > timedelta(days=29, hours=23)
    assert PromoRedemption.objects.get().entry == entry
    code.refresh_from_db()
    assert code.redeemed == 1
    assert Account.objects.get(user=user).balance == 50_000_000


def test_code_without_days_grants_lasting_credits(user):
    make_code(lot_days=None)
    redeem(user)
    assert CreditLot.objects.get().expires_at is None


@pytest.mark.parametrize("typed", ["NOBODY", "", " ", "\0", "a b", "Ünder", "X" * 41])
def test_unknown_code_is_refused(user, typed):
    make_code()
    assert refusal(user, typed).startswith("There is no code ")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"active": False}, "no longer valid"),
        ({"valid_from": timezone.now() + timedelta(days=1)}, "is valid from"),
        ({"valid_to": timezone.now() - timedelta(days=1)}, "was valid until"),
        ({"max_redemptions": 2, "redeemed": 2}, "has been used up"),
    ],
)
def test_unusable_code_is_refused_with_its_reason(user, fields, words):
    code = make_code(**fields)
    assert words in refusal(user)
    assert not LedgerEntry.objects.exists()
    assert PromoCode.objects.get().redeemed == code.redeemed


@pytest.mark.parametrize("fields", [{"per_user": 2}, {"max_redemptions": 1}])
def test_code_used_up_by_the_user_says_so(user, fields):
    make_code(**fields)
    times = fields.get("per_user", 1)
    for _ in range(times):
        redeem(user)
    assert refusal(user) == "You have used the code WELCOME already."
    assert PromoCode.objects.get().redeemed == times
    assert set(PromoRedemption.objects.values_list("number", flat=True)) == {*range(1, times + 1)}


def test_twenty_users_share_a_code_for_five():
    make_code(max_redemptions=5)
    users = [User.objects.create_user(f"reader{number}@example.org") for number in range(20)]
    outcomes = redeem_at_once(users)
    assert outcomes.count("granted") == 5
    assert outcomes.count("The code WELCOME has been used up.") == 15
    assert PromoCode.objects.get().redeemed == 5
    assert LedgerEntry.objects.count() == PromoRedemption.objects.count() == 5


def test_concurrent_redemptions_of_one_user_count_once(user):
    make_code()
    outcomes = redeem_at_once([user] * 6)
    assert outcomes.count("granted") == 1
    assert outcomes.count("You have used the code WELCOME already.") == 5
    assert Account.objects.get().balance == 50_000_000
    assert PromoCode.objects.get().redeemed == 1


def redeem_at_once(users: list[User]) -> list[str]:
    """Redeem the code for all users concurrently; returns "granted" or the refusal of each."""
    outcomes = race([partial(redeem, user) for user in users], threads=20)
    return ["granted" if isinstance(one, LedgerEntry) else str(one) for one in outcomes]
