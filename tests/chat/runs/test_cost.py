"""What messages cost: held before, charged after, by whatever way a run ends."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from accounts.models import User
from billing.ledger import audit, postings, signup
from billing.models import Account, Hold, ModelPrice, UsageRecord
from chat import protocol
from chat.errors import ChatError
from chat.generation import generate
from chat.generation.reply import Reply
from chat.llm.decoder import Usage
from chat.models import Conversation, Message, Run
from chat.recovery import sweeper
from chat.runs import describe, finish, start
from chat.runs.stop import stop_run
from chatproject.lib import db
from chatproject.lib.db import money_transaction
from tests.support.conversations import begin, client_id, send
from tests.support.fake_llm import reply_text
from tests.support.sockets import open_tab

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

USAGE = protocol.Usage(prompt_tokens=1_000, completion_tokens=500, cached_tokens=200)
# 800 tokens in at 20, 200 cached at 10, 500 out at 80 credits per million.
COST = 16_000 + 2_000 + 40_000


def account_of(user: User) -> Account:
    return Account.objects.get(user=user)


def set_available(user: User, credits: int) -> Account:
    """Bring what a user may spend to an amount of micro-credits, through the ledger."""
    account = signup.account_of(user.pk)
    difference = credits - account.available
    if difference:
        money_transaction(
            postings.adjust,
            account_id=account.pk,
            amount=difference,
            key=client_id(),
            actor_id=user.pk,
            note="for a test",
        )
    return account


def end(run: Run, status: Run.Status = Run.Status.DONE, text: str = "A reply", **fields) -> Run:
    """End a running run as its worker would."""
    fields.setdefault("usage", USAGE)
    ended = finish.end(
        run_id=run.pk,
        attempt=1,
        status=Run.Status.RUNNING,
        seq=5,
        outcome=finish.Outcome(status=status, text=text, **fields),
    )
    assert ended is not None
    return Run.objects.get(pk=run.pk)


def claimed(owner: User, conversation: Conversation, **fields) -> Run:
    run = generate.claim(send(owner, conversation, **fields).pk, 1)
    assert run is not None
    return run


@pytest.fixture(autouse=True)
def books_are_right():
    yield
    assert audit.check() == []


def test_a_message_holds_its_most_and_is_charged_what_it_cost(owner, conversation):
    before = account_of(owner).balance
    run = claimed(owner, conversation)
    hold = Hold.objects.get()
    assert hold.key == f"run:{run.pk}"
    assert hold.amount == run.most == account_of(owner).held
    assert hold.price == run.price == ModelPrice.objects.get()
    run = end(run)
    account = account_of(owner)
    assert (account.balance, account.held) == (before - COST, 0)
    assert (run.cost, run.charged) == (COST, COST)
    record = UsageRecord.objects.get()
    assert (record.charged, record.source, record.finish) == (COST, "provider", "complete")
    assert (record.input_tokens, record.cached_tokens, record.output_tokens) == (1_000, 200, 500)
    assert (record.run_id, record.conversation) == (run.pk, conversation.pk)


def test_a_run_is_charged_by_the_price_it_was_asked_under(owner, conversation):
    run = claimed(owner, conversation)
    ModelPrice.objects.create(
        model="stub-model", in_per_m=10**9, cached_in_per_m=10**9, out_per_m=10**9
    )
    assert end(run).charged == COST


def test_a_hold_covers_a_reply_of_full_length(owner, conversation):
    run = claimed(owner, conversation, text="語" * 3_000)
    usage = protocol.Usage(prompt_tokens=6_000, completion_tokens=run.max_tokens or 0)
    run = end(run, usage=usage)
    assert (run.cost or 0) <= run.most
    assert run.charged == run.cost


def test_without_the_providers_usage_it_is_counted_here(owner, conversation):
    run = claimed(owner, conversation)
    usage = finish.counted_usage(run.prompt_estimate, "A reply", "")
    assert end(run, usage=usage).usage_estimated
    assert UsageRecord.objects.get().source == "counted"


@pytest.mark.parametrize("status", [Run.Status.STOPPED, Run.Status.FAILED])
def test_what_was_delivered_is_paid_however_it_ended(owner, conversation, status):
    assert end(claimed(owner, conversation), status).charged == COST


@pytest.mark.parametrize("status", [Run.Status.STOPPED, Run.Status.FAILED])
def test_what_delivered_nothing_costs_nothing(owner, conversation, status):
    before = account_of(owner).balance
    run = end(claimed(owner, conversation), status, text="")
    assert run.charged == 0
    assert account_of(owner).balance == before
    assert not UsageRecord.objects.exists()
    assert Hold.objects.get().status == Hold.Status.RELEASED


def test_our_failures_can_be_free(owner, conversation, settings):
    settings.BILL_FAILED_PARTIAL = False
    run = end(claimed(owner, conversation), Run.Status.FAILED)
    assert (run.cost, run.charged) == (COST, 0)
    assert UsageRecord.objects.get().absorbed == COST


def test_a_run_stopped_in_the_queue_gives_its_credits_back(owner, conversation):
    run = send(owner, conversation)
    assert account_of(owner).held > 0
    stop_run(user=owner, run_id=run.pk)
    assert account_of(owner).held == 0


def test_a_run_whose_last_worker_is_gone_is_charged_for_what_its_log_holds(
    owner, conversation, valkey_client, settings
):
    settings.RUN_ATTEMPTS = 1
    run = claimed(owner, conversation)
    delta = protocol.TextDelta(run=run.pk, attempt=1, seq=1, text="Half a reply")
    valkey_client.xadd(f"run:{run.pk}:log", {"e": delta.encode()}, id="1-0")
    sweeper.recover([(run.pk, 1)])
    run = Run.objects.get(pk=run.pk)
    assert run.status == Run.Status.FAILED
    assert run.usage_estimated
    assert 0 < (run.charged or 0) < run.most
    assert Hold.objects.get().resolved_by == "sweeper"


def test_what_costs_more_than_there_is_leaves_a_shortfall_and_no_debt(owner, conversation):
    run = claimed(owner, conversation)
    set_available(owner, 0)
    usage = protocol.Usage(prompt_tokens=1_000_000, completion_tokens=1_000_000)
    run = end(run, usage=usage)
    assert run.charged == run.most
    assert run.cost == 100_000_000
    account = account_of(owner)
    assert (account.balance, account.held, account.debt) == (0, 0, 0)
    record = UsageRecord.objects.get()
    assert record.shortfall == Hold.objects.get().shortfall == 100_000_000 - run.most


def test_a_small_balance_shortens_the_reply_and_says_so(owner, conversation):
    set_available(owner, 60_000)  # 0.06 credits pay for some 700 tokens
    run = send(owner, conversation)
    assert run.shortened
    assert 256 <= run.max_tokens < 750
    assert run.most <= 60_000
    assert (
        "Your balance covers a reply of"
        in describe.queue_status(user=owner, run_id=run.pk).reply.html
    )


def test_credits_past_their_date_do_not_refuse_what_the_others_pay_for(owner, conversation):
    account = set_available(owner, 60_000)
    money_transaction(
        postings.grant,
        account_id=account.pk,
        amount=10_000_000,
        key="old",
        expires_at=timezone.now() + timedelta(milliseconds=1),
    )
    time.sleep(0.002)
    run = send(owner, conversation)
    assert run.shortened
    assert run.most <= 60_000
    assert account_of(owner).balance == 60_000


async def test_the_provider_is_asked_for_no_more_than_was_held(
    owner, conversation, provider, worker_loop
):
    await db.run(set_available, owner, 60_000)
    run = await db.run(send, owner, conversation, "[[tokens=5 rate=0]]")
    await generate.run(run.pk, 1)
    assert provider.requests[-1]["max_tokens"] == run.max_tokens


def test_too_little_is_refused_with_the_figures_and_nothing_is_stored(owner, conversation):
    set_available(owner, 20_000)
    with pytest.raises(ChatError) as refused:
        send(owner, conversation)
    assert refused.value.code == "insufficient_credits"
    credits = refused.value.credits
    assert credits.available == 20_000
    assert credits.required > 256 * 80
    assert credits.missing == credits.required - credits.available
    assert not Message.objects.exists()
    assert not Hold.objects.exists()


def test_a_model_without_a_price_is_not_offered(owner, conversation, assistant):
    assistant.model.provider_model = "unpriced"
    assistant.model.save()
    with pytest.raises(ChatError, match="no price"):
        send(owner, conversation)
    with pytest.raises(ChatError, match="No model is available"):
        start.send(user=owner, text="Hello", client_id="a")


def test_a_free_model_holds_and_costs_nothing(owner, conversation, assistant):
    assistant.model.provider_model = "free-model"
    assistant.model.save()
    ModelPrice.objects.create(model="free-model", in_per_m=0, cached_in_per_m=0, out_per_m=0)
    set_available(owner, 0)
    run = end(claimed(owner, conversation))
    assert run.charged == 0
    assert not Hold.objects.exists()
    assert UsageRecord.objects.get().cost == 0


def test_staff_run_at_the_operators_cost(conversation, owner):
    owner.is_staff = True
    owner.save()
    run = end(claimed(owner, conversation))
    assert (run.cost, run.charged) == (COST, 0)
    assert UsageRecord.objects.get().absorbed == COST


def test_an_assistants_fee_is_part_of_hold_and_charge(owner, conversation, assistant):
    assistant.message_fee = 5_000_000
    assistant.save()
    run = claimed(owner, conversation)
    assert run.most > 5_000_000
    assert end(run).charged == COST + 5_000_000


def test_with_billing_off_nothing_is_held_or_recorded(owner, conversation, settings):
    settings.BILLING = False
    before = account_of(owner).balance
    run = end(claimed(owner, conversation))
    assert run.charged is None
    assert account_of(owner).balance == before
    assert not UsageRecord.objects.exists()


def test_a_message_that_waited_until_its_hold_was_gone_fails_for_nothing(owner, conversation):
    run = send(owner, conversation)
    hold = Hold.objects.get()
    money_transaction(postings.release, hold_id=hold.pk, by=Hold.Resolver.EXPIRY)
    assert generate.claim(run.pk, 1) is None
    run = Run.objects.get(pk=run.pk)
    assert (run.status, run.charged) == (Run.Status.FAILED, 0)


def test_a_claimed_run_keeps_its_hold(owner, conversation):
    run = send(owner, conversation)
    Hold.objects.update(expires_at=timezone.now() + timedelta(seconds=1))
    generate.claim(run.pk, 1)
    assert Hold.objects.get().expires_at > timezone.now() + timedelta(minutes=30)


def test_a_run_that_waits_long_keeps_its_hold(owner, conversation):
    send(owner, conversation)
    now = timezone.now()
    Hold.objects.update(expires_at=now + timedelta(minutes=1))
    sweeper.Sweeper().sweep(now + timedelta(seconds=10))
    kept = Hold.objects.get().expires_at
    assert kept > now + timedelta(minutes=30)
    sweeper.Sweeper().sweep(now + timedelta(seconds=20))
    assert Hold.objects.get().expires_at == kept


def test_of_200_parallel_sends_on_credit_for_three_exactly_three_run(owner, assistant):
    conversations = [begin(owner, assistant) for _ in range(200)]
    most = send(owner, begin(owner, assistant)).most  # a hold of full length
    set_available(owner, 3 * most)
    refused: list[str] = []
    barrier = threading.Barrier(20)

    def work(part: list[Conversation]) -> None:
        barrier.wait()
        for conversation in part:
            try:
                send(owner, conversation)
            except ChatError as error:
                refused.append(error.code)
            finally:
                connection.close()

    threads = [
        threading.Thread(target=work, args=(conversations[number::20],)) for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == ["insufficient_credits"] * 197
    assert Run.objects.filter(conversation__in=conversations).count() == 3
    assert account_of(owner).available == 0


async def test_a_socket_hears_the_balance_and_the_cost(
    owner, conversation, socket_loop, worker_loop
):
    text = "[[tokens=20 rate=0]]"
    async with open_tab(owner) as tab:
        await tab.send(
            type="chat.send", client_id="a", conversation=str(conversation.pk), text=text
        )
        queued = await tab.until("run.queued")
        making = asyncio.create_task(generate.run(queued["run"], 1))
        end = await tab.end()
        await making
        # Nobody waits for the balance, so it may come later than what it follows from.
        balances = [event for event in tab.received if event["type"] == "balance"]
        while not balances or balances[-1]["held"] > 0:
            balances.append(await tab.until("balance"))
    assert balances[0]["held"] > 0
    balance = balances[-1]
    assert end["text"] == reply_text(20, text)
    assert end["cost"] > 0
    account = await db.run(account_of, owner)
    assert balance["balance"] == account.balance == 100_000_000 - end["cost"]


async def test_a_socket_is_told_what_is_missing(owner, conversation, socket_loop):
    await db.run(set_available, owner, 20_000)
    async with open_tab(owner) as tab:
        await tab.send(
            type="chat.send", client_id="a", conversation=str(conversation.pk), text="Hello"
        )
        error = await tab.until("error")
    assert error["code"] == "insufficient_credits"
    assert error["credits"]["available"] == 20_000


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ({"prompt_tokens": 12, "completion_tokens": 0}, True),
        ({"prompt_tokens": 0, "completion_tokens": 7}, True),
        ({"prompt_tokens": 12, "completion_tokens": 7, "cached_tokens": 99}, False),
    ],
)
def test_zeros_of_a_gateway_are_not_taken_for_usage(said, counted):
    reply = Reply(prompt_tokens=20)
    reply.text.append("A reply")
    reply.first_token_at = timezone.now()
    reply.usage = Usage(**{"cached_tokens": 0, "reasoning_tokens": 0, **said})
    usage = reply.outcome(Run.Status.DONE).usage
    assert usage.estimated is counted
    assert usage.prompt_tokens == (20 if counted else 12)
    assert usage.cached_tokens <= usage.prompt_tokens
