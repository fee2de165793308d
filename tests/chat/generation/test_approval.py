"""Calls of tools that wait for their user's approval, without a worker."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
from django.utils import timezone

from accounts.models import User
from billing.models import Hold
from chat.conversations import sharing
from chat.errors import ChatError
from chat.generation import generate
from chat.models import Run
from chat.recovery import sweeper
from chat.runs import approve, queue
from chat.runs.stop import stop_run
from chat.tools.models import RunStep
from chatproject.lib import db
from tests.support.effects import make, parts_of
from tests.support.fake_llm import reply_text
from tests.support.runs import fresh, logged
from tests.support.threads import race

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop", "with_tools"),
]

PUBLISH = "[[use=publish:{} said=3 tokens=8 rate=0]]"


def decide(user: User, run: Run, *, allow: bool, call: str = "2") -> None:
    approve.decide(user=user, run_id=run.pk, call=call, allow=allow)


async def test_run_waits_without_worker_and_goes_on(
    owner, conversation, effects, valkey_client, provider
):
    run = await make(owner, conversation, PUBLISH)
    assert (run.status, run.attempt, effects.published) == ("queued", 1, [])
    assert run.waits_until is not None
    assert run.message.status == "pending"
    assert [one["type"] for one in logged(valkey_client, run.pk)].count("tool.waiting") == 1
    # Neither a worker nor the sweeper has work with it.
    later = timezone.now() + timedelta(minutes=30)
    await db.run(sweeper.Sweeper().sweep, later)
    await generate.run(run.pk, 2)
    assert (await db.run(fresh, run.pk)).status == "queued"
    assert not await db.run(queue.positions, [run])
    await db.run(partial(decide, owner, run, allow=True))
    await db.run(partial(decide, owner, run, allow=True))  # as of a second tab
    assert await db.run(queue.positions, [run])
    await generate.run(run.pk, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, len(effects.published)) == ("done", 1)
    assert run.message.text.endswith(reply_text(8, PUBLISH))
    [part] = await db.run(parts_of, run)
    assert (part["status"], part["result"]) == ("done", "published")
    assert len(provider.requests) == 2


@pytest.mark.parametrize(
    ("untrusted", "waits"), [("leak;pay:{}", True), ("current_time;pay:{}", False)]
)
async def test_effect_after_untrusted_text_waits(owner, conversation, effects, untrusted, waits):
    calls = untrusted.replace("pay:{}", 'pay:{"amount":5}')
    run = await make(owner, conversation, f"[[use={calls} tokens=8 rate=0]]")
    assert (run.status == "queued") is waits
    assert len(effects.paid) == (0 if waits else 1)


async def test_refused_call_is_not_made(owner, conversation, effects, provider):
    run = await make(owner, conversation, PUBLISH)
    await db.run(partial(decide, owner, run, allow=False))
    await generate.run(run.pk, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, effects.published) == ("done", [])
    assert "did not allow" in provider.requests[-1]["messages"][-1]["content"]
    assert [one["status"] for one in await db.run(parts_of, run)] == ["refused"]


async def test_unanswered_call_expires(owner, conversation, effects, provider, settings):
    settings.TOOL_APPROVAL_SECONDS = 600
    run = await make(owner, conversation, PUBLISH)
    await db.run(approve.expire, timezone.now() + timedelta(seconds=500))
    assert (await db.run(fresh, run.pk)).waits_until is not None
    await db.run(approve.expire, timezone.now() + timedelta(seconds=610))
    await generate.run(run.pk, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, effects.published) == ("done", [])
    assert "did not answer in time" in provider.requests[-1]["messages"][-1]["content"]
    assert [one["status"] for one in await db.run(parts_of, run)] == ["expired"]


async def test_of_opposite_answers_one_counts(owner, conversation):
    run = await make(owner, conversation, "[[use=publish:{}&publish:{} tokens=8 rate=0]]")
    answers = [
        partial(decide, owner, run, call=call, allow=allow)
        for call in ("2", "3")
        for allow in (True, False)
    ]
    results = await db.run(race, answers)
    refusals = [one for one in results if one is not None]
    assert [one.code for one in refusals if isinstance(one, ChatError)] == ["already_decided"] * 2
    assert len(refusals) == 2
    run = await db.run(fresh, run.pk)
    assert run.waits_until is None
    assert await db.run(queue.positions, [run])


async def test_run_goes_on_after_the_last_answer(owner, conversation, effects):
    run = await make(owner, conversation, "[[use=publish:{}&publish:{} tokens=8 rate=0]]")
    await db.run(partial(decide, owner, run, call="3", allow=True))
    assert (await db.run(fresh, run.pk)).waits_until is not None
    await db.run(partial(decide, owner, run, call="2", allow=False))
    await generate.run(run.pk, 2)
    assert (await db.run(fresh, run.pk)).status == "done"
    assert len(effects.published) == 1


@pytest.mark.parametrize("call", ["0", "1", "9", "99999999999999999999"])
async def test_unknown_call_is_not_decided(owner, conversation, call):
    run = await make(owner, conversation, PUBLISH)
    with pytest.raises(ChatError, match=r"not.found|not exist"):
        await db.run(partial(decide, owner, run, call=call, allow=True))
    assert (await db.run(fresh, run.pk)).waits_until is not None


async def test_only_the_author_decides(owner, stranger, conversation, settings):
    settings.SHARE_WITH_USERS = True
    run = await make(owner, conversation, PUBLISH)
    codes = []
    for _turn in range(2):
        with pytest.raises(ChatError) as refused:
            await db.run(partial(decide, stranger, run, allow=True))
        codes.append(refused.value.code)
        share = partial(sharing.share, user=owner, conversation_id=conversation.pk)
        await db.run(partial(share, email=stranger.email))
    assert codes[0] == "not_found"
    assert codes[1] in ("not_allowed", "not_found", "read_only")
    assert await db.run(RunStep.objects.filter(status="waiting").count) == 1


async def test_stop_ends_a_waiting_run(owner, conversation, effects):
    run = await make(owner, conversation, PUBLISH)
    await db.run(partial(stop_run, user=owner, run_id=run.pk))
    run = await db.run(fresh, run.pk)
    assert (run.status, run.waits_until) == ("stopped", None)
    assert run.message.text.strip()
    [part] = await db.run(parts_of, run)
    assert part["status"] == "failed"
    with pytest.raises(ChatError) as refused:
        await db.run(partial(decide, owner, run, allow=True))
    assert refused.value.code == "already_decided"
    await generate.run(run.pk, 2)
    assert effects.published == []
    assert not await db.run(Hold.objects.filter(status="active").exists)
