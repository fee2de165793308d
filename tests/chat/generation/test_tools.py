"""Runs that call tools: requests and calls by turns, limits, lost workers, money."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from django.test import Client
from django.urls import reverse

from billing.ledger import audit
from chat.conversations import sharing
from chat.generation import generate
from chat.models import Assistant, Run, UserNote
from chat.recovery import sweeper
from chat.runs import approve, handover
from chat.runs.stop import stop_run
from chat.streaming.ticker import current_ticker
from chat.tools.models import RunStep
from chatproject.lib import db, rq_asyncio
from tests.support.conversations import send
from tests.support.effects import ADD, make, parts_of
from tests.support.fake_llm import reply_text
from tests.support.runs import fresh, logged

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop", "with_tools"),
]


async def test_model_answers_after_calls(owner, conversation, provider, valkey_client):
    text = f"[[use={ADD}&current_time;{ADD} said=4 tokens=12 rate=0]]"
    run = await make(owner, conversation, text)
    assert (run.status, run.steps) == ("done", 5)
    assert run.message.text.endswith(reply_text(12, text))
    first, clock, second = await db.run(parts_of, run)
    assert (first["name"], first["arguments"], first["result"]) == (
        "calculate",
        {"expression": "40+2"},
        "42",
    )
    assert [one["status"] for one in (first, clock, second)] == ["done"] * 3
    assert 0 < first["at"] == clock["at"] < second["at"] < len(run.message.text)
    last = provider.requests[-1]["messages"]
    assert [one["role"] for one in last[-5:]] == ["assistant", "tool", "tool", "assistant", "tool"]
    assert last[-1]["content"] == "42"
    assert last[-2]["tool_calls"][0]["id"] == last[-1]["tool_call_id"]
    kinds = [one["type"] for one in logged(valkey_client, run.pk)]
    assert kinds.count("tool.started") == kinds.count("tool.done") == 3
    assert not await db.run(RunStep.objects.exists)
    html = run.message.html
    assert html.index('data-tool="2"') < html.index('data-tool="3"') < html.index('data-tool="5"')


async def test_run_without_tools_offers_none(owner, conversation, provider, assistant):
    await db.run(Assistant.objects.filter(pk=assistant.pk).update, tools=[])
    run = await make(owner, conversation, f"[[use={ADD} tokens=5 rate=0]]")
    assert run.status == "done"
    assert "tools" not in provider.requests[-1]
    assert run.steps == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("nonsense:{}", "There is no tool named 'nonsense'"),
        ('calculate:{"expression":7}', "Expected `str`"),
        ("calculate:{oops", "not a JSON object"),
        ('calculate:{"expression":"1/0"}', "divides by zero"),
        ("broken:{}", "The tool failed"),
        ("slow:{}", "took longer than 1 seconds"),
        ("audit:{}", "There is no tool named 'audit'"),  # its user lacks the permission
    ],
)
async def test_failure_of_call_is_its_result(owner, conversation, provider, call, words):
    run = await make(owner, conversation, f"[[use={call} tokens=5 rate=0]]")
    assert run.status == "done"
    [part] = await db.run(parts_of, run)
    assert part["status"] == "failed"
    assert words in provider.requests[-1]["messages"][-1]["content"]
    assert "ZeroDivision" not in str(part)


async def test_parallel_calls_run_together(owner, conversation, effects):
    run = await db.run(send, owner, conversation, "[[use=wait&wait&wait tokens=5 rate=0]]")
    generating = asyncio.create_task(generate.run(run.id, 1))
    for _ in range(3):
        assert await asyncio.to_thread(effects.waiting.acquire, timeout=10)
    effects.may_go_on.set()
    await generating
    assert (await db.run(fresh, run.pk)).status == "done"


@pytest.mark.parametrize(("most", "tokens"), [(2, 20_000), (10, 5)], ids=["requests", "tokens"])
async def test_last_request_must_answer(owner, conversation, settings, provider, most, tokens):
    settings.RUN_MAX_REQUESTS, settings.RUN_MAX_TOKENS = most, tokens
    text = f"[[use={ADD};{ADD} said=9 tokens=5 rate=0]]"
    run = await make(owner, conversation, text)
    assert run.status == "done"
    assert run.message.text.endswith(reply_text(5, text))
    assert [one.get("tool_choice") for one in provider.requests] == [None, "none"]
    assert len(await db.run(parts_of, run)) == 1


@pytest.mark.parametrize(
    ("most", "tokens", "words"),
    [(2, 20_000, "more steps"), (10, 5, "more tokens")],
    ids=["requests", "tokens"],
)
async def test_calls_after_last_request_end_run(
    owner, conversation, settings, provider, most, tokens, words
):
    settings.RUN_MAX_REQUESTS, settings.RUN_MAX_TOKENS = most, tokens
    run = await make(
        owner, conversation, f"[[use={ADD};{ADD};{ADD} said=9 tokens=5 rate=0 insists=1]]"
    )
    assert (run.status, run.error_code) == ("failed", "limit_reached")
    assert words in run.error_message
    assert run.message.text
    assert len(provider.requests) == 2
    assert len(await db.run(parts_of, run)) == 2


async def test_later_turn_remembers_beginning_of_result(owner, conversation, provider):
    run = await make(owner, conversation, '[[use=leak:{"length":2000} tokens=5 rate=0]]')
    [part] = await db.run(parts_of, run)
    assert len(part["result"]) == 2000
    assert len(part["memory"]) == 500
    assert len(provider.requests[-1]["messages"][-1]["content"]) > 2000
    await db.run(conversation.refresh_from_db)
    await make(owner, conversation, "And? [[tokens=5 rate=0]]")
    earlier = provider.requests[-1]["messages"][-2]["content"]
    assert part["memory"] in earlier
    assert len(earlier) < 1500


async def test_stored_note_is_shown_and_taken_back(owner, conversation, settings):
    await db.run(Assistant.objects.update, tools=["remember"])
    run = await make(
        owner, conversation, '[[use=remember:{"note":"Likes%20owls"} said=2 tokens=5 rate=0]]'
    )

    def use_pages() -> None:
        settings.SHARE_BY_LINK = True
        page, reader = Client(), Client()
        page.force_login(owner)
        path = conversation.get_absolute_url()
        link = sharing.publish(user=owner, conversation_id=conversation.pk)
        note = UserNote.objects.get(user=owner)
        undo = f"/settings/memory/{note.pk}/delete/"
        html = page.get(path).content.decode()
        assert "Stored a note about you" in html
        assert f'formaction="{undo}"' in html
        assert "Likes owls" in html
        shared = reader.get(reverse("chat:public", args=[link.token])).content.decode()
        assert "Stored a note about you" in shared
        assert "Likes owls" not in shared
        answer = page.post(undo, {"back": "1"})
        assert answer["Location"] == f"{path}#m-{run.message_id}"
        assert not UserNote.objects.exists()
        html = page.get(path).content.decode()
        assert undo not in html
        assert "The note is deleted." in html

    await db.run(use_pages)


# --- Lost workers -----------------------------------------------------------------------------


async def lose(run: Run, generating: asyncio.Task[Run | None]) -> None:
    """Let a run's worker die as far as a task can: it neither ends the run nor hands it over."""
    writer = current_ticker()._writers[run.pk]
    writer.mark_lost()
    current_ticker().forget(writer)
    await asyncio.wait_for(generating, 10)


async def hand_over(run: Run) -> None:
    [again] = await db.run(handover.hand_over, [handover.LostAttempt(run.pk, 1, "", "")])
    assert again.status == "queued"


async def test_next_attempt_goes_on_after_finished_step(owner, conversation, provider, effects):
    text = f'[[use=pay:{{"amount":5}};wait;{ADD} said=2 tokens=8 rate=0]]'
    run = await db.run(send, owner, conversation, text)
    first = asyncio.create_task(generate.run(run.id, 1))
    assert await asyncio.to_thread(effects.waiting.acquire, timeout=10)
    await hand_over(run)
    second = asyncio.create_task(generate.run(run.id, 2))
    assert await asyncio.to_thread(effects.waiting.acquire, timeout=10)
    effects.may_go_on.set()
    await asyncio.gather(first, second)
    run = await db.run(fresh, run.pk)
    assert run.status == "done"
    assert run.message.text.endswith(reply_text(8, text))
    assert len(effects.paid) == 1
    assert effects.waited == 2
    assert [one["name"] for one in await db.run(parts_of, run)] == ["pay", "wait", "calculate"]
    # The first worker asked twice, the second one went on after that.
    assert len(provider.requests) == 4


async def test_call_with_effect_is_never_repeated(owner, conversation, provider, effects):
    text = '[[use=pay:{"amount":5} tokens=8 rate=0]]'
    run = await make(owner, conversation, text)

    def begin_again() -> Run:
        again = send(owner, conversation, text)
        Run.objects.filter(pk=again.pk).update(steps=2, attempt=1)
        common = {"run": again, "attempt": 1, "model": "fake"}
        RunStep.objects.create(**common, number=1, request=0, kind="request", status="done")
        RunStep.objects.create(
            **common,
            number=2,
            request=1,
            kind="call",
            status="running",
            name="pay",
            call="call_1",
            arguments='{"amount": 5}',
            has_effect=True,
        )
        return again

    paid = len(effects.paid)
    await db.run(conversation.refresh_from_db)
    run = await db.run(begin_again)
    await generate.run(run.id, 2)
    run = await db.run(fresh, run.pk)
    assert run.status == "done"
    assert len(effects.paid) == paid
    assert "outcome is unknown" in provider.requests[-1]["messages"][-1]["content"]


async def test_stop_ends_run_during_call(owner, conversation, effects):
    run = await db.run(send, owner, conversation, "[[use=wait said=3 tokens=8 rate=0]]")
    generating = asyncio.create_task(generate.run(run.id, 1))
    assert await asyncio.to_thread(effects.waiting.acquire, timeout=10)
    await db.run(stop_run, user=owner, run_id=run.pk)
    await generating
    effects.may_go_on.set()
    run = await db.run(fresh, run.pk)
    assert run.status == "stopped"
    assert run.message.text
    [part] = await db.run(parts_of, run)
    assert part["status"] == "failed"


async def test_drained_run_goes_on_after_its_steps(owner, conversation, provider, effects):
    text = '[[use=pay:{"amount":5};wait said=2 tokens=8 rate=0]]'
    run = await db.run(send, owner, conversation, text)
    first = asyncio.create_task(generate.run(run.id, 1))
    assert await asyncio.to_thread(effects.waiting.acquire, timeout=10)
    first.cancel(rq_asyncio.DRAINED)
    again = await first
    assert again is not None
    assert (again.status, again.steps, effects.paid) == ("queued", 4, [f"{run.pk}:2"])
    effects.may_go_on.set()
    await generate.run(run.id, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, len(effects.paid), effects.waited) == ("done", 1, 2)
    assert run.message.text.endswith(reply_text(8, text))
    assert await db.run(audit.check) == []


async def test_last_lost_attempt_keeps_its_steps(owner, conversation, effects, settings):
    settings.RUN_ATTEMPTS = 1
    text = '[[use=publish:{};pay:{"amount":5};wait said=2 tokens=8 rate=0]]'
    run = await make(owner, conversation, text)
    allow = partial(approve.decide, user=owner, run_id=run.pk, call="2", allow=True)
    await db.run(allow)
    second = asyncio.create_task(generate.run(run.id, 2))
    assert await asyncio.to_thread(effects.waiting.acquire, timeout=10)
    await lose(run, second)
    await db.run(sweeper.recover, [(run.pk, 2)])
    effects.may_go_on.set()
    run = await db.run(fresh, run.pk)
    # The attempt that ended with the question was not a lost one, but this is.
    assert (run.status, run.error_code) == ("failed", "unavailable")
    assert run.message.text.strip()
    parts = await db.run(parts_of, run)
    assert [(one["name"], one["status"]) for one in parts] == [
        ("publish", "done"),
        ("pay", "done"),
        ("wait", "failed"),
    ]
    assert await db.run(audit.check) == []
    assert not await db.run(RunStep.objects.exists)
