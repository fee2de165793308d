"""Messages of a user whose account is locked by another transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from django.contrib.sessions.models import Session

from accounts import sockets
from accounts.models import User
from billing.models import Account
from chat.models import Message, Run
from chatproject.lib import db
from chatproject.lib.db import prepared
from tests.support.locks import locked, wait_for_blocked_session
from tests.support.money import open_account
from tests.support.programs import wait_until
from tests.support.sockets import open_tab

SEND = {"type": "chat.send", "client_id": "a", "text": "[[tokens=5 rate=0]]"}

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("socket_loop", "assistant"),
    pytest.mark.timeout(120),
]


@asynccontextmanager
async def lock_on(user: User) -> AsyncIterator[None]:
    """Keep the row of the user's account locked."""
    account = await db.run(Account.objects.get, user=user)
    lock = locked(account)
    await asyncio.to_thread(lock.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(lock.__exit__, None, None, None)


@pytest.fixture
async def payer() -> User:
    """A user with credits."""
    account = await db.run(open_account, 10**9)
    return await db.run(User.objects.get, pk=account.user_id)


async def test_send_to_locked_account_is_reported_and_refused(payer: User):
    async with open_tab(payer) as tab:
        async with lock_on(payer):
            began = time.monotonic()
            await tab.send(**SEND)
            delayed = await tab.receive()
            assert time.monotonic() - began < 3
            assert (delayed["type"], delayed["ref"]) == ("delayed", "a")
            assert (delayed["code"], delayed["message"].count(".") >= 2) == ("still_trying", True)
            error = await tab.receive()
            assert time.monotonic() - began < 11
            assert (error["type"], error["code"], error["ref"]) == ("error", "busy", "a")
            assert error["retry_after"] > 0
            assert "locked" in error["message"]
        assert await db.run(Message.objects.count) == 0
        await tab.send(**SEND)
        assert (await tab.until("run.queued"))["client_id"] == "a"
    assert await db.run(Run.objects.count) == 1


async def test_all_sends_to_locked_account_are_busy(payer: User):
    """Those that wait in a row wait twice: for their turn, then for the lock itself."""
    names = ("a", "b", "c")
    async with (
        open_tab(payer) as tab,
        open_tab(payer) as other,
        open_tab(payer) as third,
        lock_on(payer),
    ):
        began = time.monotonic()
        for client_id, sender in zip(names, (tab, other, third), strict=True):
            await sender.send(**SEND | {"client_id": client_id})
        errors = [await sender.until("error") for sender in (tab, other, third)]
        assert time.monotonic() - began < 11
    assert [(error["ref"], error["code"]) for error in errors] == [(name, "busy") for name in names]
    assert await db.run(Message.objects.count) == 0


async def test_send_is_accepted_when_the_lock_ends(payer: User):
    async with open_tab(payer) as tab:
        async with lock_on(payer):
            await tab.send(**SEND)
            assert (await tab.receive())["type"] == "delayed"
        event = await tab.until("run.queued", "error")
    assert event["type"] == "run.queued"


async def test_other_commands_continue_beside_a_locked_send(payer: User, owner: User):
    async with open_tab(payer) as tab, open_tab(owner) as other, lock_on(payer):
        await tab.send(**SEND)
        await tab.until("delayed")
        assert await other.is_silent()


def no_transaction_is_open() -> bool:
    others = "datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
    return not prepared.all(f"SELECT FROM pg_stat_activity WHERE {others}", ())


async def test_send_of_ended_session_is_not_committed(payer: User, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sockets, "RECHECK", 0.05)
    async with lock_on(payer), open_tab(payer) as tab:
        await tab.send(**SEND)
        await db.run(wait_for_blocked_session)
        await db.run(Session.objects.all().delete)
        assert (await tab.until("error"))["code"] == "not_signed_in"
        assert await tab.close_code() == 4401
    await db.run(wait_until, no_transaction_is_open, "the message's transaction ends", 10)
    assert await db.run(Message.objects.count) == 0
    assert await db.run(lambda: Account.objects.get(user=payer).held) == 0
