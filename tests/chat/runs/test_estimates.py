"""The estimates of a message with each model, and the pages with the choice."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from billing.models import ModelPrice
from chat.models import Conversation, LanguageModel
from chat.runs import cost
from tests.support.conversations import add_turns, begin

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def add_models(first: int, last: int) -> None:
    price = ModelPrice.objects.get(model="stub-model")
    for number in range(first, last):
        LanguageModel.objects.create(
            name=f"Model {number}",
            provider_model=f"model-{number}",
            context_tokens=1_000 * (number + 2),
            max_output_tokens=500,
            efforts=["low"],
        )
        price.pk, price.model, price._state.adding = None, f"model-{number}", True
        price.save(force_insert=True)


def test_each_estimate_is_that_of_its_model(owner, assistant):
    add_models(0, 3)
    conversation = begin(owner, assistant)
    add_turns(owner, conversation, 60)
    each = cost.estimate_each(user=owner, text="Hello", conversation_id=conversation.pk)
    assert set(each) == set(LanguageModel.objects.values_list("pk", flat=True))
    for key, found in each.items():
        one = cost.estimate(user=owner, text="Hello", conversation_id=conversation.pk, model_id=key)
        assert found == one
    assert len({one.most for one in each.values()}) > 1


def test_queries_of_estimates_do_not_grow_with_models(owner, assistant):
    conversation = begin(owner, assistant)
    add_turns(owner, conversation, 120)
    add_models(0, 2)

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            cost.estimate_each(user=owner, text="Hello", conversation_id=conversation.pk)
        return len(captured)

    queries()  # opens the account
    before = queries()
    add_models(2, 8)
    assert queries() == before


def test_model_beyond_the_balance_is_noted(owner, assistant, client):
    add_models(0, 1)
    dear = LanguageModel.objects.get(name="Model 0")
    price = ModelPrice.objects.get(model="model-0")
    price.pk, price.out_per_m, price._state.adding = None, 10**12, True
    price.effective_from = price.effective_from.replace(month=2)
    price.save(force_insert=True)
    client.force_login(owner)
    answer = client.post(
        reverse("chat:estimate"),
        {"text": "Hello", "each": "1"},
        headers={"Accept": "application/json"},
    ).json()
    assert "Buy" in answer["models"][str(dear.pk)]["problem"]
    assert "credits" in answer["models"][str(assistant.model_id)]["shown"]


def test_pages_with_the_choice_need_constant_queries(owner, assistant, client):
    client.force_login(owner)
    conversation = begin(owner, assistant)
    add_models(0, 2)

    def queries(address: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert client.get(address).status_code == 200
        return len(captured)

    addresses = ["/", conversation.get_absolute_url(), reverse("chat:models")]
    counts = [queries(address) for address in addresses]
    counts = [queries(address) for address in addresses]
    add_models(2, 6)
    assert [queries(address) for address in addresses] == counts


def test_refused_form_keeps_text_and_choice(owner, assistant, client):
    add_models(0, 1)
    model = LanguageModel.objects.get(name="Model 0")
    client.force_login(owner)
    posted = {"text": "Hello", "model": str(model.pk), "effort": "high", "temperature": "0.7"}
    page = client.post(reverse("chat:create"), posted)
    assert (page.status_code, Conversation.objects.count()) == (400, 0)
    text = page.content.decode()
    assert "does not have this setting" in text
    assert f'<option value="{model.pk}" data-efforts="low" selected>' in text
    assert '<option value="0.7" selected>' in text
    for wrong in ({"model": "x"}, {"model": "9" * 30}, {"model": "999999"}):
        page = client.post(reverse("chat:create"), {"text": "Hello", **wrong})
        assert page.status_code == 409
        assert "Hello</textarea>" in page.content.decode()
    page = client.post(reverse("chat:create"), {"text": "Hello", "temperature": "hot"})
    assert page.status_code == 400
