"""The cost of messages: a hold before, a charge after, however a run ends."""

from __future__ import annotations

import time
import unicodedata
from datetime import timedelta
from functools import partial
from uuid import UUID

import pytest
from django.utils import timezone

from accounts.models import User
from billing.ledger import audit, postings
from billing.metering import limits, pricing
from billing.models import Account, Hold, ModelPrice, Plan, UsageRecord
from chat import access, protocol
from chat.conversations import prompt_builder
from chat.errors import ChatError
from chat.generation import generate
from chat.generation.reply import Reply
from chat.llm.decoder import Usage
from chat.models import Conversation, LanguageModel, Message, Run
from chat.recovery import sweeper
from chat.runs import cost, describe, finish, start
from chat.runs.stop import stop_run
from chatproject.lib import db
from chatproject.lib.db import money_transaction, transactions
from chatproject.lib.env import Limit
from tests.support.conversations import begin, send
from tests.support.fake_llm import reply_text
from tests.support.locks import locked
from tests.support.money import set_available
from tests.support.runs import add_to_log, delta
from tests.support.sockets import open_tab
from tests.support.threads import race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

USAGE = protocol.Usage(prompt_tokens=1_000, completion_tokens=500, cached_tokens=200)
# 800 tokens in at 20, 200 cached at 10, 500 out at 80 credits per million.
COST = 16_000 + 2_000 + 40_000

SEND = {"type": "chat.send", "client_id": "a"}


def account_of(user: User) -> Account:
    return Account.objects.get(user=user)


def end(run: Run, status: Run.Status = Run.Status.DONE, text: str = "A reply", **fields) -> Run:
    """End a running run as its worker would."""
    fields.setdefault("usage", USAGE)
    outcome = finish.Outcome(status=status, text=text, **fields)
    assert finish.end(run_id=run.pk, attempt=1, status=Run.Status.RUNNING, seq=5, outcome=outcome)
    return Run.objects.get(pk=run.pk)


def claimed(owner: User, conversation: Conversation, **fields) -> Run:
    run = generate.claim(send(owner, conversation, **fields).pk, 1)
    assert run is not None
    return run


@pytest.fixture(autouse=True)
def ledger_is_consistent():
    yield
    assert audit.check() == []


def test_message_holds_maximum_and_charges_cost(owner, conversation):
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


def test_charge_uses_price_of_sending(owner, conversation):
    run = claimed(owner, conversation)
    ModelPrice.objects.create(
        model="stub-model", in_per_m=10**9, cached_in_per_m=10**9, out_per_m=10**9
    )
    assert end(run).charged == COST


def test_hold_covers_reply_of_full_length(owner, conversation):
    run = claimed(owner, conversation, text="語" * 3_000)
    usage = protocol.Usage(prompt_tokens=6_000, completion_tokens=run.max_tokens or 0)
    run = end(run, usage=usage)
    assert (run.cost or 0) <= run.most
    assert run.charged == run.cost


def test_missing_usage_is_counted_locally(owner, conversation):
    run = claimed(owner, conversation)
    usage = finish.counted_usage(run.prompt_estimate, "A reply", "")
    assert end(run, usage=usage).usage_estimated
    assert UsageRecord.objects.get().source == "counted"


@pytest.mark.parametrize("status", [Run.Status.STOPPED, Run.Status.FAILED])
def test_delivered_text_is_charged_after_any_end(owner, conversation, status):
    assert end(claimed(owner, conversation), status).charged == COST


def test_run_stopped_in_queue_releases_hold(owner, conversation):
    run = send(owner, conversation)
    assert account_of(owner).held > 0
    stop_run(user=owner, run_id=run.pk)
    assert account_of(owner).held == 0


def test_lost_run_is_charged_for_logged_text(owner, conversation, valkey_client, settings):
    settings.RUN_ATTEMPTS = 1
    run = claimed(owner, conversation)
    add_to_log(valkey_client, delta(run, 1, "Half a reply"))
    sweeper.recover([(run.pk, 1)])
    run = Run.objects.get(pk=run.pk)
    assert run.status == Run.Status.FAILED
    assert run.usage_estimated
    assert 0 < (run.charged or 0) < run.most
    assert Hold.objects.get().resolved_by == "sweeper"


def test_cost_above_hold_becomes_shortfall_without_debt(owner, conversation):
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


def test_small_balance_shortens_reply(owner, conversation):
    set_available(owner, 60_000)  # 0.06 credits pay for some 700 tokens
    run = send(owner, conversation)
    assert run.shortened
    assert 256 <= run.max_tokens < 750
    assert run.most <= 60_000
    html = describe.queue_status(access.run(owner, run.pk)).reply.html
    assert "Your balance covers a reply of" in html


def test_expired_credits_are_ignored(owner, conversation):
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


async def test_provider_request_is_limited_to_hold(owner, conversation, provider, worker_loop):
    await db.run(set_available, owner, 60_000)
    run = await db.run(send, owner, conversation, "[[tokens=5 rate=0]]")
    await generate.run(run.pk, 1)
    assert provider.requests[-1]["max_tokens"] == run.max_tokens


def test_too_small_balance_is_refused_with_figures(owner, conversation):
    set_available(owner, 20_000)
    with pytest.raises(ChatError, match="insufficient_credits:") as refused:
        send(owner, conversation)
    credits = refused.value.credits
    assert credits.available == 20_000
    assert credits.required > 256 * 80
    assert credits.missing == credits.required - credits.available
    assert not Message.objects.exists()
    assert not Hold.objects.exists()


def test_model_without_price_is_not_offered(owner, conversation, assistant):
    assistant.model.provider_model = "unpriced"
    assistant.model.save()
    with pytest.raises(ChatError, match="model_unavailable"):
        send(owner, conversation)
    with pytest.raises(ChatError, match="No model is available"):
        start.send(user=owner, text="Hello", client_id="a")


def test_free_model_holds_and_charges_nothing(owner, conversation, assistant):
    assistant.model.provider_model = "free-model"
    assistant.model.save()
    ModelPrice.objects.create(model="free-model", in_per_m=0, cached_in_per_m=0, out_per_m=0)
    set_available(owner, 0)
    run = end(claimed(owner, conversation))
    assert run.charged == 0
    assert not Hold.objects.exists()
    assert UsageRecord.objects.get().cost == 0


@pytest.fixture
def free_model(owner, assistant) -> None:
    """Let the assistant's model cost nothing, and the owner have no credits and two messages a month."""
    assistant.model.provider_model = "free-model"
    assistant.model.save()
    ModelPrice.objects.create(model="free-model", in_per_m=0, cached_in_per_m=0, out_per_m=0)
    set_available(owner, 0)
    Plan.objects.create(slug="two", name="Two", monthly_messages=2, is_default=True)


@pytest.mark.usefixtures("free_model")
def test_free_messages_count_for_monthly_quota(owner, conversation):
    end(claimed(owner, conversation))
    end(claimed(owner, conversation), Run.Status.FAILED, text="")  # nothing said: does not count
    assert limits.quota(account_of(owner)) == limits.Quota(limit=2, used=1)
    end(claimed(owner, conversation), Run.Status.STOPPED, text="")
    with pytest.raises(ChatError, match="2 messages a month, and all are used"):
        send(owner, conversation)
    assert not Hold.objects.exists()


@pytest.mark.usefixtures("free_model")
def test_concurrent_free_messages_keep_monthly_quota(owner, assistant):
    conversations = [begin(owner, assistant) for _ in range(12)]
    results = race([partial(send, owner, each) for each in conversations], threads=12)
    refused = [result.code for result in results if isinstance(result, ChatError)]
    assert refused == ["limit_reached"] * 10
    assert Run.objects.count() == 2


def test_messages_of_staff_count_for_monthly_quota(owner, conversation):
    Plan.objects.create(slug="one", name="One", monthly_messages=1, is_default=True)
    owner.is_staff = True
    owner.save()
    assert end(claimed(owner, conversation)).charged == 0
    with pytest.raises(ChatError, match="1 message a month"):
        send(owner, conversation)


def test_operator_pays_for_staff(conversation, owner):
    owner.is_staff = True
    owner.save()
    run = end(claimed(owner, conversation))
    assert (run.cost, run.charged) == (COST, 0)
    assert UsageRecord.objects.get().absorbed == COST


def test_assistants_fee_is_held_and_charged(owner, conversation, assistant):
    assistant.message_fee = 5_000_000
    assistant.save()
    run = claimed(owner, conversation)
    assert run.most > 5_000_000
    assert end(run).charged == COST + 5_000_000


def test_nothing_is_recorded_without_billing(owner, conversation, settings):
    settings.BILLING = False
    before = account_of(owner).balance
    run = end(claimed(owner, conversation))
    assert run.charged is None
    assert account_of(owner).balance == before
    assert not UsageRecord.objects.exists()


def test_run_with_expired_hold_fails_free(owner, conversation):
    run = send(owner, conversation)
    hold = Hold.objects.get()
    money_transaction(postings.release, hold_id=hold.pk, by=Hold.Resolver.EXPIRY)
    assert generate.claim(run.pk, 1) is None
    run = Run.objects.get(pk=run.pk)
    assert (run.status, run.charged) == (Run.Status.FAILED, 0)


def test_claim_extends_hold(owner, conversation):
    run = send(owner, conversation)
    Hold.objects.update(expires_at=timezone.now() + timedelta(seconds=1))
    generate.claim(run.pk, 1)
    assert Hold.objects.get().expires_at > timezone.now() + timedelta(minutes=30)


def test_sweeper_extends_hold_of_queued_run_once(owner, conversation):
    send(owner, conversation)
    now = timezone.now()
    Hold.objects.update(expires_at=now + timedelta(minutes=1))
    sweeper.Sweeper().sweep(now + timedelta(seconds=10))
    extended = Hold.objects.get().expires_at
    assert extended > now + timedelta(minutes=30)
    sweeper.Sweeper().sweep(now + timedelta(seconds=20))
    assert Hold.objects.get().expires_at == extended


def test_concurrent_sends_cannot_overspend(owner, assistant, settings):
    """Of 200 concurrent messages on credits for three, exactly three run."""
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"messages": Limit(())}
    conversations = [begin(owner, assistant) for _ in range(200)]
    most = send(owner, begin(owner, assistant)).most  # a hold of full length
    set_available(owner, 3 * most)

    def send_patiently(conversation: Conversation) -> Run:
        while True:
            try:
                return send(owner, conversation)
            except ChatError as error:
                if error.code != "busy":  # a slow machine: the account was locked for too long
                    raise

    results = race([partial(send_patiently, each) for each in conversations], threads=20)
    refused = [result.code for result in results if isinstance(result, ChatError)]
    assert refused == ["insufficient_credits"] * 197
    assert Run.objects.filter(conversation__in=conversations).count() == 3
    assert account_of(owner).available == 0


async def test_socket_receives_balance_and_cost(owner, conversation, socket_loop, worker_loop):
    text = "[[tokens=20 rate=0]]"
    async with open_tab(owner) as tab:
        await tab.send(**SEND, conversation=str(conversation.pk), text=text)
        queued = await tab.until("run.queued")
        # Balances are read and published after the response: this one must be read before the end.
        received = [event for event in tab.received if event["type"] == "balance"]
        held = received[0] if received else await tab.until("balance")
        await generate.run(UUID(queued["run"]), 1)
        end = await tab.end()
        balance = next((event for event in tab.received if event.get("held") == 0), None)
        while balance is None or balance["held"] > 0:
            balance = await tab.until("balance")
    assert held["held"] > 0
    assert end["text"] == reply_text(20, text)
    assert end["cost"] > 0
    account = await db.run(account_of, owner)
    assert balance["balance"] == account.balance == 100_000_000 - end["cost"]


async def test_socket_receives_figures_of_refusal(owner, conversation, socket_loop):
    await db.run(set_available, owner, 20_000)
    async with open_tab(owner) as tab:
        await tab.send(**SEND, conversation=str(conversation.pk), text="Hello")
        error = await tab.until("error")
    assert error["code"] == "insufficient_credits"
    assert error["credits"]["available"] == 20_000


@pytest.mark.parametrize(
    "text",
    ["7" * 900, "\U00013000\u3400\U0001f468\u200d\U0001f469" * 60, "\ufdfa" * 100, "q+/Z9" * 300],
    ids=["digits", "rare characters", "ligatures", "base64"],
)
def test_amount_shown_before_sending_is_kept(owner, conversation, text):
    """The provider counts a token for each byte of the longest normal form, and a long template."""
    shown = cost.estimate(user=owner, text=text, conversation_id=conversation.pk)
    run = claimed(owner, conversation, text=text)
    sent = sum(len(unicodedata.normalize("NFKC", one).encode()) for one in ("Be brief.", text))
    usage = protocol.Usage(prompt_tokens=sent + 200, completion_tokens=run.max_tokens or 0)
    run = end(run, usage=usage)
    assert shown is not None
    assert 0 < (run.charged or 0) == run.cost <= run.most == shown.most


@pytest.mark.parametrize("price", [(20, 80), (80, 80)], ids=["usual", "equal"])
def test_continued_reply_stays_within_its_hold(owner, conversation, assistant, price):
    """The prefix is input of the next attempt, and the provider counts a token for each byte."""
    paid_in, paid_out = (amount * 1_000_000 for amount in price)
    ModelPrice.objects.create(
        model="stub-model", in_per_m=paid_in, cached_in_per_m=paid_in, out_per_m=paid_out
    )
    LanguageModel.objects.update(continuation="prefill")
    run = claimed(owner, conversation)
    run = Run.objects.select_related("assistant", "model", "price").get(pk=run.pk)
    run.prefix = "\u3400" * 300
    prompt = prompt_builder.build(run)
    assert run.price is not None
    most = pricing.max_cost(
        run.price,
        prompt_tokens=prompt.token_upper_bound,
        max_tokens=prompt.max_tokens - prompt_builder.SMALLEST_REPLY,
    )
    assert most <= run.most


@pytest.mark.parametrize(
    ("sent", "counted"),
    [
        ({"prompt_tokens": 12, "completion_tokens": 0}, True),
        ({"prompt_tokens": 0, "completion_tokens": 7}, True),
        ({"prompt_tokens": 12, "completion_tokens": 7, "cached_tokens": 99}, False),
    ],
)
def test_zeros_of_gateway_are_not_usage(sent, counted):
    reply = Reply(prompt_tokens=20)
    reply.text.append("A reply")
    reply.first_token_at = timezone.now()
    reply.usage = Usage(**{"cached_tokens": 0, "reasoning_tokens": 0, **sent})
    usage = reply.finished().usage
    assert usage.estimated is counted
    assert usage.prompt_tokens == (20 if counted else 12)
    assert usage.cached_tokens <= usage.prompt_tokens


def test_locked_account_uses_up_no_attempt(owner, conversation, monkeypatch):
    """A claim whose hold cannot be extended now leaves the run queued, for the next try."""
    monkeypatch.setattr(transactions, "MONEY_TRIES", 1)
    monkeypatch.setattr(transactions, "MONEY_SETTINGS", "SET LOCAL lock_timeout = '100ms'")
    run = send(owner, conversation)
    Hold.objects.filter(pk=run.pk).update(expires_at=timezone.now() + timedelta(minutes=1))
    with locked(Hold.objects.get(pk=run.pk)), pytest.raises(db.MoneyBusy):
        generate.claim(run.pk, 1)
    run.refresh_from_db()
    assert (run.status, run.attempt) == ("queued", 0)
    work = generate.claim(run.pk, 1)
    assert work is not None
    assert Hold.objects.get(pk=run.pk).expires_at > timezone.now() + timedelta(hours=1)
    assert generate.claim(run.pk, 1) is None
