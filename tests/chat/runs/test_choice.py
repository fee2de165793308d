"""The model, effort and temperature of a conversation: chosen with a message, kept, refused with words."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group
from django.db import connection
from django.test.utils import CaptureQueriesContext

from billing.models import ModelPrice
from chat.conversations import branches, offers, prompt_builder
from chat.conversations.offers import Choice
from chat.errors import ChatError
from chat.generation import generate
from chat.models import Assistant, ChatPreference, Conversation, LanguageModel, Message, Provider
from chat.runs import start
from tests.support.conversations import begin, client_id, send
from tests.support.runs import fresh, mark_done

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


@pytest.fixture
def second(assistant: Assistant) -> LanguageModel:
    """A priced model of another provider, with three reasoning efforts."""
    provider = Provider.objects.create(name="Second", base_url="https://second.example.org/v1")
    model = LanguageModel.objects.create(
        provider=provider, name="Thinker", provider_model="thinker", efforts=["low", "high"]
    )
    add_price(model)
    return model


def add_price(model: LanguageModel) -> None:
    first = ModelPrice.objects.get(model="stub-model")
    ModelPrice.objects.create(
        model=model.provider_model,
        in_per_m=2 * first.in_per_m,
        cached_in_per_m=first.cached_in_per_m,
        out_per_m=first.out_per_m,
        effective_from=first.effective_from,
    )


def refused(owner, conversation, choice: Choice) -> ChatError:
    with pytest.raises(ChatError) as caught:
        send(owner, conversation, choice=choice)
    assert not Message.objects.exists()
    return caught.value


def test_choice_is_kept_until_it_changes(owner, conversation, second):
    first = conversation.assistant.model
    run = send(owner, conversation, choice=Choice(second.pk, "high", 0.2))
    assert (run.model, run.price.model) == (second, "thinker")
    assert run.model_snapshot["effort"] == "high"
    assert run.model_snapshot["temperature"] == 0.2
    work = generate.claim(run.pk, 1)
    assert work is not None
    request = generate.completion_request(work, prompt_builder.build(work))
    assert (request.model, request.temperature) == ("thinker", 0.2)
    assert request.extra == {"reasoning_effort": "high"}
    mark_done(run)
    run = send(owner, conversation)
    assert (run.model, run.model_snapshot["effort"]) == (second, "high")
    mark_done(run)
    run = send(owner, conversation, choice=Choice(first.pk))
    assert run.model == first
    assert "effort" not in run.model_snapshot  # the model has none
    mark_done(run)
    run = send(owner, conversation, choice=Choice(second.pk, None, None))
    assert "effort" not in run.model_snapshot
    assert run.model_snapshot["temperature"] is None
    mark_done(run)
    assert send(owner, conversation, choice=Choice(None)).model == first
    assert Conversation.objects.get().model is None


def test_choice_adds_no_statement_to_a_message(owner, assistant, second):
    def statements(**fields) -> int:
        conversation = begin(owner, assistant)
        with CaptureQueriesContext(connection) as captured:
            send(owner, conversation, **fields)
        return len(captured)

    statements()  # opens the account
    before = statements()
    assert statements(choice=Choice(second.pk, "low", 1.0)) == before


def test_copy_of_a_chat_keeps_the_choice(owner, conversation, second):
    run = mark_done(send(owner, conversation, choice=Choice(second.pk, "low", 0.5)))
    copy = branches.fork(user=owner, message_id=run.message_id, client_id=client_id())
    assert (copy.model_id, copy.reasoning_effort, copy.temperature) == (second.pk, "low", 0.5)


def test_new_chat_begins_with_the_users_model(owner, assistant, second):
    offers.prefer(user=owner, model_id=second.pk)
    started = start.send(user=owner, text="Hello", client_id=client_id())
    assert (started.run.model, started.event.model) == (second, second.pk)
    chosen = Choice(assistant.model_id)
    started = start.send(user=owner, text="Hello", client_id=client_id(), choice=chosen)
    assert started.run.model == assistant.model
    LanguageModel.objects.filter(pk=second.pk).update(enabled=False)
    started = start.send(user=owner, text="Hello", client_id=client_id())
    assert started.run.model == assistant.model
    offers.prefer(user=owner, model_id=None)
    assert ChatPreference.objects.get().model is None


def test_new_chat_has_the_chosen_model_and_assistant(owner, assistant, second):
    other = Assistant.objects.create(slug="other", name="Other", model=second, position=9)
    choice = Choice(assistant.model_id, assistant_id=other.pk)
    run = start.send(user=owner, text="Hello", client_id=client_id(), choice=choice).run
    assert (run.assistant, run.model) == (other, assistant.model)
    choice = Choice(assistant_id=other.pk)
    run = start.send(user=owner, text="Hello", client_id=client_id(), choice=choice).run
    assert (run.assistant, run.model, run.conversation.model) == (other, second, None)
    Assistant.objects.filter(pk=other.pk).update(enabled=False)
    with pytest.raises(ChatError, match="not_found: This assistant"):
        start.send(user=owner, text="Hello", client_id=client_id(), choice=choice)


def test_unusable_model_is_refused_and_another_named(owner, conversation, second):
    def words(choice: Choice) -> str:
        error = refused(owner, conversation, choice)
        assert error.code == "model_unavailable"
        return error.message

    choice = Choice(second.pk)
    for table, column in ((LanguageModel, "enabled"), (Provider, "enabled")):
        table.objects.filter(name__in=("Thinker", "Second")).update(**{column: False})
        assert "Thinker" in (text := words(choice))
        assert "for example Stub" in text
        table.objects.update(**{column: True})
    LanguageModel.objects.filter(pk=second.pk).update(provider_model="unpriced")
    assert "for example Stub" in words(choice)
    assert "Contact" not in words(Choice(2**40))
    assert "Thinker" not in words(Choice(2**40))
    LanguageModel.objects.update(enabled=False)
    assert "contact the staff" in words(Choice())


def test_restricted_model_is_for_its_groups(owner, stranger, conversation, second):
    LanguageModel.objects.filter(pk=second.pk).update(restricted=True)
    group = Group.objects.create(name="Research")
    second.groups.add(group)
    assert refused(owner, conversation, Choice(second.pk)).code == "model_unavailable"
    assert [offer.model.name for offer in offers.offered(owner)] == ["Stub"]
    with pytest.raises(ChatError, match="model_unavailable"):
        offers.prefer(user=owner, model_id=second.pk)
    owner.groups.add(group)
    assert [one.model.name for one in offers.offered(owner)] == ["Thinker", "Stub"]
    run = mark_done(send(owner, conversation, choice=Choice(second.pk)))
    owner.groups.clear()
    with pytest.raises(ChatError, match="model_unavailable"):
        send(owner, conversation)
    with pytest.raises(ChatError, match="model_unavailable"):
        start.regenerate(
            user=owner, message_id=run.message_id, client_id=client_id(), model_id=second.pk
        )
    stranger.is_staff = True
    assert offers.is_usable(stranger, LanguageModel.objects.get(pk=second.pk))


@pytest.mark.parametrize("temperature", [-0.1, 2.1, float("nan"), float("inf")])
def test_impossible_setting_is_refused(owner, conversation, second, temperature):
    assert refused(owner, conversation, Choice(effort="low")).code == "bad_setting"
    choice = Choice(second.pk, "low", temperature)
    assert refused(owner, conversation, choice).code == "bad_setting"


def test_other_model_regenerates_one_reply_only(owner, conversation, second):
    run = mark_done(send(owner, conversation))
    started = start.regenerate(
        user=owner, message_id=run.message_id, client_id=client_id(), model_id=second.pk
    )
    assert (started.run.model, started.event.model) == (second, conversation.assistant.model_id)
    mark_done(started.run)
    assert send(owner, conversation).model == conversation.assistant.model
    assert fresh(started.run.pk).model_snapshot["name"] == "Thinker"


def test_edit_changes_the_model(owner, conversation, second):
    run = mark_done(send(owner, conversation))
    prompt = run.message.parent_id
    assert prompt is not None
    edited = start.edit(
        user=owner, message_id=prompt, text="Again", client_id=client_id(), choice=Choice(second.pk)
    )
    assert edited.run.model == second
    assert Conversation.objects.get().model == second
