"""Comparing models: one message, a reply of each model with its own hold and cost, all or none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

from billing.ledger import audit
from billing.metering import settlement
from billing.models import Account, Hold, ModelPrice, UsageRecord
from chat.conversations import branches, lifecycle, transcript
from chat.errors import ChatError
from chat.generation import generate
from chat.models import Conversation, LanguageModel, Message, Run
from chat.recovery import sweeper
from chat.runs import start
from chat.runs.stop import stop_run
from chat.streaming.leases import lease_key
from chat.streaming.ticker import current_ticker
from chatproject.lib import db
from tests.support import money
from tests.support.conversations import client_id, send
from tests.support.fake_llm import reply_text
from tests.support.runs import fresh, generate_until_hold
from tests.support.threads import race

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop"),
]

TEXT = "[[tokens=12 rate=0]] Which one?"


@pytest.fixture
def models(assistant) -> list[LanguageModel]:
    """Three models with prices; the last one is ten times as dear."""
    [price] = ModelPrice.objects.all()
    made = [assistant.model]
    for name, factor in (("second", 1), ("dear", 10)):
        made.append(
            LanguageModel.objects.create(
                name=name, provider_model=name, context_tokens=8_000, max_output_tokens=2_000
            )
        )
        ModelPrice.objects.create(
            model=name,
            in_per_m=factor * price.in_per_m,
            cached_in_per_m=factor * (price.cached_in_per_m or 0),
            out_per_m=factor * price.out_per_m,
            effective_from=price.effective_from,
        )
    return made


def compare(owner, conversation, models: Sequence[LanguageModel], **fields) -> list[Run]:
    fields = {"text": TEXT, "client_id": client_id(), "conversation_id": conversation.pk} | fields
    ids = [model.pk for model in models]
    return [one.run for one in start.compare(user=owner, model_ids=ids, **fields)]


def excerpt(conversation: Conversation) -> transcript.Excerpt:
    return transcript.excerpt(Conversation.objects.get(pk=conversation.pk))


def test_each_model_has_reply_hold_and_lane(owner, conversation, models):
    runs = compare(owner, conversation, models)
    [prompt] = Message.objects.filter(role="user")
    assert [(run.lane, run.model, run.compared) for run in runs] == [
        (lane, model, 3) for lane, model in enumerate(models)
    ]
    assert {run.message.parent_id for run in runs} == {prompt.pk}
    assert {hold.pk: hold.amount for hold in Hold.objects.all()} == {
        run.pk: run.most for run in runs
    }
    shown = excerpt(conversation)
    assert [one.pk for one in shown.messages] == [prompt.pk, *[run.message_id for run in runs]]
    assert [one.is_compared for one in shown.messages] == [False, True, True, True]
    assert {*shown.runs} == {run.pk for run in runs}
    assert lifecycle.active_runs(conversation) == runs
    with pytest.raises(ChatError, match="run_active:"):
        send(owner, conversation)
    with pytest.raises(ChatError, match="run_active:"):
        compare(owner, conversation, models[:2])


async def test_replies_end_apart_and_one_is_chosen(owner, conversation, models, provider):
    runs = await db.run(compare, owner, conversation, models)
    await db.run(stop_run, user=owner, run_id=runs[1].pk)
    for run in (runs[2], runs[0]):
        await generate.run(run.pk, 1)
    ended = [await db.run(fresh, run.pk) for run in runs]
    assert [run.status for run in ended] == ["done", "stopped", "done"]
    assert ended[0].message.text == ended[2].message.text == reply_text(12, TEXT)
    assert {body["model"] for body in provider.requests} == {"stub-model", "dear"}
    assert ended[2].charged == 10 * ended[0].charged > 0 == ended[1].charged

    def check() -> None:
        assert [one.is_compared for one in excerpt(conversation).messages[1:]] == [True] * 3
        assert UsageRecord.objects.count() == 2
        assert not audit.check()
        branches.select(user=owner, message_id=runs[2].message_id)
        *_, last = excerpt(conversation).messages
        assert (last.pk, last.is_compared) == (runs[2].message_id, False)
        assert last.siblings is not None
        assert (last.siblings.position, last.siblings.count) == (3, 3)
        follow_up = send(owner, conversation, "Go on")
        assert follow_up.message.parent is not None
        assert follow_up.message.parent.parent_id == last.pk
        assert follow_up.model == models[2]

    await db.run(check)


def test_choice_during_comparison_stays_shown(owner, conversation, models):
    runs = compare(owner, conversation, models)
    branches.select(user=owner, message_id=runs[1].message_id)
    shown = excerpt(conversation)
    assert shown.messages[-1].pk == runs[1].message_id
    assert {*shown.runs} == {run.pk for run in runs}
    for run in (runs[0], runs[2]):
        stop_run(user=owner, run_id=run.pk)
    assert excerpt(conversation).messages[-1].pk == runs[1].message_id


def test_next_message_without_choice_follows_first(owner, conversation, models):
    runs = compare(owner, conversation, models[:2])
    for run in runs:
        stop_run(user=owner, run_id=run.pk)
    send(owner, conversation, "Go on")
    shown = excerpt(conversation).messages
    assert [one.pk for one in shown[:2]] == [runs[0].message.parent_id, runs[0].message_id]
    assert not any(one.is_compared for one in shown)


def test_all_runs_are_stored_or_none(owner, conversation, models):
    leave(owner, 100_000)  # enough for the cheap ones
    with pytest.raises(ChatError, match="insufficient_credits:") as refused:
        compare(owner, conversation, models)
    credits = refused.value.credits
    assert credits is not None
    assert credits.available < credits.required == credits.available + credits.missing
    assert not Run.objects.exists()
    assert not Message.objects.exists()
    runs = compare(owner, conversation, models[:2])
    # They share the credits.
    assert all(run.shortened for run in runs)
    assert 90_000 < sum(run.most for run in runs) <= 100_000
    assert abs(runs[0].most - runs[1].most) < 1_000
    assert Account.objects.get(user=owner).available == 100_000 - sum(run.most for run in runs)
    assert not audit.check()


def leave(owner, amount: int) -> None:
    """Hold all credits of a user but this amount."""
    account = settlement.account_of(owner.pk)
    money.hold(account, account.available - amount)


@pytest.mark.parametrize(
    ("chosen", "code"),
    [([], "bad_json"), ([0], "bad_json"), ([0, 0], "bad_json"), ([0, 99], "model_unavailable")],
)
def test_other_choices_are_refused(owner, conversation, models, chosen, code):
    ids = [models[one].pk if one < 3 else 2**64 for one in chosen]
    with pytest.raises(ChatError, match=f"{code}:"):
        start.compare(
            user=owner, text=TEXT, client_id="a", model_ids=ids, conversation_id=conversation.pk
        )
    LanguageModel.objects.filter(pk=models[1].pk).update(enabled=False)
    with pytest.raises(ChatError, match="model_unavailable:"):
        compare(owner, conversation, models)
    unpriced = LanguageModel.objects.create(name="unpriced", provider_model="unpriced")
    with pytest.raises(ChatError, match="model_unavailable:"):
        compare(owner, conversation, [models[0], unpriced])
    assert not Run.objects.exists()


@pytest.mark.parametrize("is_first", [False, True])
def test_ten_concurrent_comparisons_have_one_effect(owner, conversation, models, is_first):
    same = partial(
        start.compare,
        user=owner,
        text=TEXT,
        client_id="same",
        model_ids=[model.pk for model in models],
        conversation_id=None if is_first else conversation.pk,
    )
    results = race([same] * 10)
    assert len({tuple(one.run.pk for one in found) for found in results}) == 1
    assert (Run.objects.count(), Message.objects.count(), Hold.objects.count()) == (3, 4, 3)


async def test_comparison_survives_its_worker(owner, conversation, models, provider, valkey_client):
    text = "[[tokens=20 rate=0 hold=5 key=first]]"
    runs = await db.run(partial(compare, owner, conversation, models[:2], text=text))
    generating = await generate_until_hold(runs[0], provider)
    writer = current_ticker()._writers[runs[0].pk]
    writer.mark_lost()  # as dead as a task can be
    current_ticker().forget(writer)
    await asyncio.wait_for(generating, 10)
    valkey_client.delete(lease_key(runs[0].pk))
    await asyncio.to_thread(provider.release, "first")
    await generate.run(runs[1].pk, 1)
    await db.run(sweeper.recover, [(runs[0].pk, 1)])
    await generate.run(runs[0].pk, 2)

    def check() -> None:
        for run in map(fresh, [run.pk for run in runs]):
            assert (run.status, run.message.text) == ("done", reply_text(20, text))
            charges = UsageRecord.objects.filter(run_id=run.pk, charged__gt=0)
            assert [one.charged for one in charges] == [run.charged]
            assert Hold.objects.get(pk=run.pk).settled == run.charged
        assert not audit.check()

    await db.run(check)


def test_regeneration_by_another_model_is_possible(owner, conversation, models):
    run = send(owner, conversation)
    stop_run(user=owner, run_id=run.pk)
    other = start.regenerate(
        user=owner, message_id=run.message_id, client_id="b", model_id=models[2].pk
    ).run
    assert (other.model, other.model_snapshot["provider_model"]) == (models[2], "dear")
    with pytest.raises(ChatError, match="model_unavailable:"):
        start.regenerate(user=owner, message_id=run.message_id, client_id="c", model_id=-1)
