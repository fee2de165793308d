"""Promo codes: what they give, to whom they refuse it, and that a race does not give more."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import connections
from django.utils import timezone

from accounts.models import User
from billing.ledger import promo_codes
from billing.models import Account, CreditLot, LedgerEntry, PromoCode, PromoRedemption

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def no_signup_credits(settings) -> None:
    settings.SIGNUP_CREDITS = 0


@pytest.fixture
def user() -> User:
    return User.objects.create_user("reader@example.org")


def make_code(**fields) -> PromoCode:
    fields = {"code": "WELCOME", "credits": 50_000_000, "max_redemptions": 5} | fields
    return PromoCode.objects.create(**fields)


def refusal(user: User, code: str = "WELCOME") -> str:
    with pytest.raises(promo_codes.PromoRefused) as refused:
        promo_codes.redeem(user_id=user.pk, code=code)
    return refused.value.message


def test_a_code_gives_its_credits_in_whatever_case_it_is_typed(user):
    code = make_code(lot_days=30)
    entry = promo_codes.redeem(user_id=user.pk, code="  wElcome\n")
    assert (entry.kind, entry.amount, entry.note) == ("promo", 50_000_000, "Code WELCOME")
    assert entry.idempotency_key == f"promo:{code.pk}:{user.pk}:1"
    lot = CreditLot.objects.get()
    assert lot.kind == "promo"
    assert lot.expires_at - timezone.now() > timedelta(days=29, hours=23)
    assert PromoRedemption.objects.get().entry == entry
    code.refresh_from_db()
    assert code.redeemed == 1
    assert Account.objects.get(user=user).balance == 50_000_000


def test_credits_of_a_code_without_days_never_expire(user):
    make_code(lot_days=None)
    promo_codes.redeem(user_id=user.pk, code="WELCOME")
    assert CreditLot.objects.get().expires_at is None


@pytest.mark.parametrize("typed", ["NOBODY", "", " ", "\0", "a b", "Ünder", "X" * 41])
def test_an_unknown_code_is_refused(user, typed):
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
def test_a_code_that_cannot_be_used_says_why(user, fields, words):
    code = make_code(**fields)
    assert words in refusal(user)
    assert not LedgerEntry.objects.exists()
    assert PromoCode.objects.get().redeemed == code.redeemed


def test_a_user_uses_a_code_as_often_as_it_says(user):
    make_code(per_user=2)
    promo_codes.redeem(user_id=user.pk, code="WELCOME")
    promo_codes.redeem(user_id=user.pk, code="WELCOME")
    assert refusal(user) == "You have used the code WELCOME already."
    assert PromoCode.objects.get().redeemed == 2
    assert set(PromoRedemption.objects.values_list("number", flat=True)) == {1, 2}


def test_who_used_the_last_one_is_told_that_it_was_them(user):
    make_code(max_redemptions=1)
    promo_codes.redeem(user_id=user.pk, code="WELCOME")
    assert refusal(user) == "You have used the code WELCOME already."


def test_twenty_at_once_on_a_code_for_five(user):
    make_code(max_redemptions=5)
    people = [User.objects.create_user(f"reader{number}@example.org") for number in range(20)]
    outcomes = at_once([person.pk for person in people])
    assert outcomes.count("given") == 5
    assert outcomes.count("The code WELCOME has been used up.") == 15
    assert PromoCode.objects.get().redeemed == 5
    assert LedgerEntry.objects.count() == PromoRedemption.objects.count() == 5


def test_the_same_user_at_once_gets_it_once(user):
    make_code()
    outcomes = at_once([user.pk] * 6)
    assert outcomes.count("given") == 1
    assert outcomes.count("You have used the code WELCOME already.") == 5
    assert Account.objects.get().balance == 50_000_000
    assert PromoCode.objects.get().redeemed == 1


def at_once(user_ids: list[int]) -> list[str]:
    """What becomes of redemptions that begin at the same moment."""
    start = threading.Barrier(len(user_ids))
    outcomes: list[str] = []

    def redeem(user_id: int) -> None:
        start.wait(30)
        try:
            promo_codes.redeem(user_id=user_id, code="WELCOME")
            outcomes.append("given")
        except promo_codes.PromoRefused as refused:
            outcomes.append(refused.message)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=redeem, args=[user_id]) for user_id in user_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes
