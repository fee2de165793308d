"""A model's fallback: asked before the first word when the model's provider fails, and then named."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from accounts import api_keys
from billing.ledger import audit
from billing.models import Hold, ModelPrice, UsageRecord
from chat import protocol
from chat.conversations.api_prompt import ApiRequest
from chat.generation import generate
from chat.models import LanguageModel, Provider, Run
from chat.recovery import sweeper
from chat.runs import api_calls, fallback, finish
from chat.runs.stop import stop_run
from chat.streaming.leases import lease_key
from chatproject.lib import db
from tests.support.conversations import send
from tests.support.fake_llm import FakeLLM, reply_text
from tests.support.runs import fresh, generate_until_hold, held_text, logged, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker_loop")]


@pytest.fixture
def backup(assistant, other) -> LanguageModel:
    """The fallback of the assistant's model, at another provider."""
    spare = Provider(name="Spare", base_url=other.url)
    spare.key = "sk-spare"
    spare.save()
    backup = LanguageModel.objects.create(
        name="Backup", provider_model="backup-model", provider=spare, context_tokens=100_000
    )
    LanguageModel.objects.exclude(pk=backup.pk).update(fallback=backup)
    return backup


async def make(owner, conversation, text: str) -> Run:
    run = await db.run(send, owner, conversation, text)
    await generate.run(run.pk, 1)
    return await db.run(fresh, run.pk)


FAILURES = [
    "status=401 code=invalid_api_key",
    "status=402 code=insufficient_quota",
    "status=404 code=model_not_found",
    "status=400",
    "status=429 retry_after=60",
    "status=503 retry_after=20",
    "garbage=0",
    "cut=0",
    "error=0",
    "reset=1",
]


@pytest.mark.parametrize("fault", FAILURES)
async def test_fallback_answers_where_provider_fails(
    owner, conversation, provider, other, backup, valkey_client, fault, caplog
):
    text = f"[[tokens=5 rate=0 {fault} only=stub-model]]"
    run = await make(owner, conversation, text)
    assert (run.status, run.message.text) == ("done", reply_text(5, text)), run.error_message
    assert (run.answered_by_id, run.provider_id) == (backup.pk, backup.provider_id)
    end = logged(valkey_client, run.pk)[-1]
    assert (end["type"], end["answered_by"]) == ("run.done", "Backup")
    assert "Backup, as Stub was unavailable" in end["html"]
    assert provider.requests
    assert "Backup is asked instead" in caplog.text
    (request,) = other.requests
    assert (request["model"], other.headers[0]["Authorization"]) == (
        "backup-model",
        "Bearer sk-spare",
    )
    assert request["max_tokens"] <= run.max_tokens


async def test_silent_provider_is_left_for_the_fallback(
    owner, conversation, provider, other, backup
):
    """Without a second wait for it, which could last as long as the run may."""
    await db.run(Provider.objects.create, name="Environment", first_byte_seconds=1)
    run = await make(owner, conversation, "[[tokens=5 rate=0 silent=0 only=stub-model]]")
    assert (run.status, run.answered_by_id) == ("done", backup.pk)
    assert len(provider.requests) == 1


async def test_unreachable_provider_is_left_for_the_fallback(
    owner, conversation, settings, backup, other
):
    settings.OPENAI_BASE_URL = "http://127.0.0.1:9/v1"
    run = await make(owner, conversation, "[[tokens=5 rate=0]]")
    assert (run.status, run.answered_by_id) == ("done", backup.pk)


async def test_key_that_cannot_be_decrypted_uses_the_fallback(
    owner, conversation, backup, settings, other
):
    broken = await db.run(
        lambda: Provider.objects.create(
            name="Broken", base_url="http://127.0.0.1:9/v1", encrypted_key="damaged"
        )
    )
    first = LanguageModel.objects.exclude(pk=backup.pk)
    await db.run(first.update, provider=broken)
    run = await make(owner, conversation, "[[tokens=5 rate=0]]")
    assert (run.status, run.answered_by_id) == ("done", backup.pk)


async def test_disabled_provider_is_replaced_by_the_fallback(
    owner, conversation, provider, backup, other
):
    await db.run(Provider.objects.create, name="Environment", enabled=False)
    run = await make(owner, conversation, "[[tokens=5 rate=0]]")
    assert (run.status, run.answered_by_id, provider.requests) == ("done", backup.pk, [])


@pytest.mark.parametrize(
    "fault",
    [
        "status=400 code=content_filter",
        "status=400 code=context_length_exceeded",
        "cut=2",
        "error=2",
    ],
)
async def test_fallback_is_not_asked(owner, conversation, other, backup, fault):
    """For a message that is refused for its content or length, or after the first word."""
    run = await make(owner, conversation, f"[[tokens=5 rate=0 {fault} only=stub-model]]")
    assert (run.status, run.answered_by_id, other.requests) == ("failed", None, [])


async def test_refused_call_of_the_api_has_no_fallback(owner, assistant, other, backup):
    """Its caller could choose a field that the model refuses, for a dearer reply at the price of the model."""
    asked = [{"role": "user", "content": "[[tokens=5 rate=0 status=400 only=stub-model]]"}]
    key, _secret = await db.run(api_keys.create, owner, api_keys.Terms("Test"))
    request = ApiRequest(asked, fields={"verbosity": "?"})
    model = await db.run(lambda: LanguageModel.objects.get(pk=assistant.model_id))
    run = await db.run(api_calls.start_call, key, model, request, streamed=False)
    await generate.run(run.pk, 1)

    run = await db.run(fresh, run.pk)
    assert (run.status, run.error_cause, run.answered_by_id) == ("failed", "refused", None)
    assert other.requests == []


async def test_stop_asks_no_fallback(owner, conversation, provider, other, backup):
    run = await db.run(send, owner, conversation, "[[headers=60]]")
    generating = asyncio.create_task(generate.run(run.pk, 1))
    await until(lambda: provider.requests != [])
    await db.run(stop_run, user=owner, run_id=run.pk)
    await asyncio.wait_for(generating, 10)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.answered_by_id, other.requests) == ("stopped", None, [])


@pytest.mark.parametrize("disabled", [Provider, LanguageModel])
async def test_disabled_fallback_leaves_the_first_error(
    owner, conversation, other, backup, disabled
):
    pk = backup.provider_id if disabled is Provider else backup.pk
    await db.run(disabled.objects.filter(pk=pk).update, enabled=False)
    run = await make(owner, conversation, "[[status=401 code=invalid_api_key]]")
    assert (run.status, run.error_cause, other.requests) == ("failed", "key", [])


async def test_failing_fallback_is_asked_once(owner, conversation, other, backup):
    third = await db.run(LanguageModel.objects.create, name="Third", provider_model="third")
    await db.run(LanguageModel.objects.filter(pk=backup.pk).update, fallback=third)
    run = await make(owner, conversation, "[[status=404 code=model_not_found]]")
    assert (run.status, run.error_cause, len(other.requests)) == ("failed", "model", 1)
    assert run.charged == 0


async def test_fallback_is_waited_for_like_a_last_one(owner, conversation, other, backup):
    """Its own fallback, which is not asked, costs it no retry."""
    third = await db.run(LanguageModel.objects.create, name="Third", provider_model="third")
    await db.run(LanguageModel.objects.filter(pk=backup.pk).update, fallback=third)
    await db.run(Provider.objects.create, name="Environment", enabled=False)
    text = "[[tokens=5 rate=0 status=503 fail=1 retry_after=3 key=late]]"
    run = await make(owner, conversation, text)
    assert (run.status, run.answered_by_id, len(other.requests)) == ("done", backup.pk, 2)


async def test_fallback_is_charged_at_the_quoted_price(owner, conversation, backup):
    await db.run(
        lambda: ModelPrice.objects.create(
            model="backup-model",
            in_per_m=900_000_000,
            cached_in_per_m=900_000_000,
            out_per_m=900_000_000,
            effective_from=datetime(2026, 1, 1, tzinfo=UTC),
        )
    )
    run = await make(owner, conversation, "[[tokens=5 rate=0 status=401 only=stub-model]]")
    quoted = (run.prompt_tokens * 20_000_000 + 5 * 80_000_000) // 1_000_000

    def check() -> None:
        record = UsageRecord.objects.get()
        assert (record.model, record.price_id) == ("backup-model", run.price_id)
        assert run.charged == record.charged == quoted
        assert Hold.objects.get().status == "settled"
        assert audit.check() == []

    await db.run(check)


def test_fallback_costs_no_more_than_was_held(owner, conversation, backup):
    """A provider that counts many more tokens than the quote allowed for is the operator's cost."""
    run = send(owner, conversation)
    work = generate.claim(run.pk, 1)
    assert work is not None
    asked = fallback.begin(work)
    assert asked.model == backup
    assert asked.model.context_tokens == work.model.context_tokens
    usage = protocol.Usage(prompt_tokens=1_000_000, completion_tokens=5)
    outcome = finish.Outcome(status=Run.Status.DONE, text="A reply", usage=usage)
    finish.end(run_id=run.pk, attempt=1, status=Run.Status.RUNNING, seq=9, outcome=outcome)
    record = UsageRecord.objects.get()
    assert record.charged == run.most
    assert record.absorbed == record.cost - run.most > 0
    assert record.shortfall == 0
    assert audit.check() == []


# --- A worker that dies while the fallback answers --------------------------------------------

TEXT = "[[tokens=9 rate=0 status=401 only=stub-model hold=4 key=held]]"


async def lose_worker(run: Run, other: FakeLLM, valkey_client) -> Run:
    """Generate until the fallback has sent some text, and hand the run over as the sweeper does."""
    generating = await generate_until_hold(run, other)
    valkey_client.delete(lease_key(run.pk))
    await db.run(sweeper.recover, [(run.pk, 1)])
    generating.cancel()
    await asyncio.gather(generating, return_exceptions=True)
    await asyncio.to_thread(other.release, "held")
    return await db.run(fresh, run.pk)


async def test_fallback_goes_on_with_its_own_text(
    owner, conversation, provider, other, backup, valkey_client
):
    await db.run(LanguageModel.objects.filter(pk=backup.pk).update, continuation="prefill")
    run = await lose_worker(await db.run(send, owner, conversation, TEXT), other, valkey_client)
    assert (run.status, run.prefix) == ("queued", held_text(TEXT))
    asked = len(provider.requests)
    await generate.run(run.pk, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text) == ("done", reply_text(9, TEXT))
    assert (run.answered_by_id, len(provider.requests)) == (backup.pk, asked)
    records = await db.run(lambda: [*UsageRecord.objects.order_by("attempt")])
    assert [one.model for one in records] == ["backup-model", "backup-model"]


async def test_next_attempt_begins_with_first_model(
    owner, conversation, provider, other, backup, valkey_client
):
    """Where the fallback cannot continue its text; the lost attempt is recorded as the fallback's."""
    text = TEXT.replace("status=401", "status=401 fail=1")
    run = await lose_worker(await db.run(send, owner, conversation, text), other, valkey_client)
    assert (run.status, run.prefix) == ("queued", "")
    generating = asyncio.create_task(generate.run(run.pk, 2))
    await asyncio.to_thread(provider.wait, held=1)
    await asyncio.to_thread(provider.release, "held")
    await asyncio.wait_for(generating, 10)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text) == ("done", reply_text(9, text))
    assert (run.answered_by_id, run.model_snapshot.get("answered_by")) == (None, None)
    assert "answered_by" not in logged(valkey_client, run.pk)[-1]
    records = await db.run(lambda: [*UsageRecord.objects.order_by("attempt")])
    assert [one.model for one in records] == ["backup-model", "stub-model"]
