"""Runs that call tools, whose worker process is killed: no effect twice, one charge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.db.models import Sum

from billing.ledger import audit
from billing.models import Hold, LedgerEntry, UsageRecord
from chat.models import Assistant, LanguageModel, Run, UserNote
from chat.tools.models import RunStep
from tests.support.conversations import send
from tests.support.effects import parts_of
from tests.support.fake_llm import FakeLLM, reply_text
from tests.support.locks import unwritable, wait_for_blocked_session
from tests.support.runs import fresh
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url"),
    pytest.mark.timeout(180),
    pytest.mark.long,
]

NOTE = 'remember:{"note":"Lives_in_Lisbon"}'
ADD = 'calculate:{"expression":"40+2"}'


@pytest.fixture
def stack(assistant: Assistant, provider: FakeLLM, server_folder: Path) -> Iterator[Stack]:
    """A worker and a clock, and an assistant with a tool that has an effect."""
    Assistant.objects.filter(pk=assistant.pk).update(tools=["remember", "calculate"])
    LanguageModel.objects.filter(pk=assistant.model_id).update(tools=True)
    with Stack(server_folder, provider_url=provider.url) as stack:
        stack.start("worker", "clock")
        yield stack


def until(condition: Callable[[], bool]) -> None:
    """Wait for an effect of other processes."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def kill_worker(stack: Stack) -> None:
    """Kill the worker, and start another one."""
    stack.kill("worker")
    stack.start("worker-2")


def has_status(run: Run, status: str) -> bool:
    run.refresh_from_db()
    return bool(run.status == status)


def check_charged_once(run: Run) -> None:
    """Check that the ledger, the records and the run agree on one charge for its steps."""
    assert audit.check() == []
    records = UsageRecord.objects.filter(run_id=run.pk)
    assert records.aggregate(sum=Sum("charged"))["sum"] == run.charged > 0
    [entry] = LedgerEntry.objects.filter(kind=LedgerEntry.Kind.USAGE)
    assert -entry.amount == run.charged
    [hold] = Hold.objects.all()
    assert (hold.status, hold.settled) == ("settled", run.charged)
    paid = [one.step for one in records if one.charged]
    assert len(paid) == len({*paid})  # no step twice


def test_run_goes_on_between_two_calls(stack, owner, conversation, provider):
    # The second answer alone has so many pieces that it is held: its calls come after the kill.
    text = f"[[use={NOTE};{ADD}&{ADD} said=1 tokens=4 hold=5 rate=0 key=held]]"
    run = send(owner, conversation, text)
    provider.wait(held=1, timeout=60)
    kill_worker(stack)
    provider.wait(held=1, aborted=1, timeout=60)
    provider.release("held")
    until(lambda: has_status(run, "done"))
    run = fresh(run.pk)
    assert run.attempt == 2
    assert run.message.text.endswith(reply_text(4, text))
    assert [(one["name"], one["status"]) for one in parts_of(run)] == [
        ("remember", "done"),
        ("calculate", "done"),
        ("calculate", "done"),
    ]
    assert UserNote.objects.filter(user=owner).count() == 1
    check_charged_once(run)


def test_effect_of_killed_call_is_not_repeated(stack, owner, conversation, provider):
    with unwritable(UserNote):
        run = send(owner, conversation, f"[[use={NOTE} said=2 tokens=8 rate=0]]")
        wait_for_blocked_session()
        assert RunStep.objects.filter(run=run.pk, status="running", name="remember").exists()
        kill_worker(stack)
        until(lambda: has_status(run, "done"))
    run = fresh(run.pk)
    assert run.attempt == 2
    [part] = parts_of(run)
    assert (part["status"], part["summary"]) == ("failed", "It is not known whether this was done.")
    assert "outcome is unknown" in provider.requests[-1]["messages"][-1]["content"]
    assert UserNote.objects.filter(user=owner).count() <= 1
    check_charged_once(run)
