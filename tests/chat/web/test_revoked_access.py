"""Access of open sockets: it ends with the session, and no later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.management.commands import changepassword
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.utils import timezone

from accounts import sockets
from accounts.models import User
from billing.models import LedgerEntry
from chat import protocol
from chat.generation import generate
from chat.models import Conversation, Message, Run
from chat.streaming import groups
from chatproject.lib import db
from chatproject.lib.pubsub.layer import publish
from tests.support.conversations import send
from tests.support.fake_llm import reply_text
from tests.support.runs import fresh, generate_until_hold
from tests.support.sockets import Closed, Tab, open_tab

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("socket_loop", "worker_loop"),
]

PASSWORD = "correct horse battery"
OTHER_PASSWORD = "another-password-23"
NEVER = 3_600.0  # seconds


@dataclass
class People:
    """The owner in two browsers, a member of staff, and the session of the first browser."""

    owner: User
    here: Client
    there: Client
    staff: Client

    @property
    def key(self) -> str:
        return self.here.cookies["sessionid"].value


@pytest.fixture
def people(owner: User) -> People:
    admin = User.objects.create_superuser("admin@example.org", PASSWORD)
    here, there, staff = Client(), Client(), Client()
    here.force_login(owner, "django.contrib.auth.backends.ModelBackend")
    there.force_login(owner, "django.contrib.auth.backends.ModelBackend")
    staff.force_login(admin, "django.contrib.auth.backends.ModelBackend")
    return People(owner, here, there, staff)


def sign_out(people: People) -> None:
    assert people.here.post("/accounts/logout/").status_code == 302


def change_password_there(people: People) -> None:
    form = {"oldpassword": PASSWORD, "password1": OTHER_PASSWORD, "password2": OTHER_PASSWORD}
    assert people.there.post("/accounts/password/change/", form).status_code == 302


def change_password_as_staff(people: People) -> None:
    form = {"password1": OTHER_PASSWORD, "password2": OTHER_PASSWORD, "usable_password": "true"}
    url = f"/admin/accounts/user/{people.owner.pk}/password/"
    assert people.staff.post(url, form).status_code == 302


def change_password_by_command(people: People) -> None:
    def answer(self: object, prompt: str = "") -> str:
        return OTHER_PASSWORD

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changepassword.Command, "_get_pass", answer)
        call_command("changepassword", people.owner.email)


def deactivate(people: People) -> None:
    people.owner.is_active = False
    people.owner.save()


def deactivate_in_bulk(people: People) -> None:
    User.objects.filter(pk=people.owner.pk).update(is_active=False)


def set_password_in_bulk(people: People) -> None:
    User.objects.filter(pk=people.owner.pk).update(password="!")


def flush_session(people: People) -> None:
    people.here.session.flush()


def delete_session(people: People) -> None:
    Session.objects.filter(pk=people.key).delete()


def delete_session_by_sql(people: People) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_session WHERE session_key = %s", [people.key])


def expire_session(people: People) -> None:
    past = timezone.now() - timedelta(seconds=1)
    Session.objects.filter(pk=people.key).update(expire_date=past)


def clear_session_of_user(people: People) -> None:
    session = people.here.session
    del session["_auth_user_id"]
    session.save()


# What each revocation ends: the socket of the session `here`, or also that of `there`. All other
# sockets stay open and receive what follows.
ANNOUNCED = [
    (sign_out, "here"),
    (flush_session, "here"),
    (change_password_there, "here there"),
    (change_password_as_staff, "here there"),
    (change_password_by_command, "here there"),
    (deactivate, "here there"),
]
UNANNOUNCED = [
    (deactivate_in_bulk, "here there"),
    (set_password_in_bulk, "here there"),
    (delete_session, "here"),
    (delete_session_by_sql, "here"),
    (expire_session, "here"),
    (clear_session_of_user, "here"),
]

Revoke = Callable[[People], None]


async def revoke_with_open_sockets(
    revoke: Revoke, ends: str, people: People, stranger: User
) -> None:
    """Revoke access while sockets are open; check whose are closed, and who receives events then."""
    there = people.there.cookies["sessionid"].value
    async with (
        open_tab(people.owner, session=people.key) as here_tab,
        open_tab(people.owner, session=there) as there_tab,
        open_tab(stranger) as elsewhere,
    ):
        tabs = {"here": here_tab, "there": there_tab}
        await db.run(revoke, people)
        ended = [tabs.pop(name) for name in ends.split()]
        for tab in ended:
            await expect_end(tab)
        event = protocol.Balance(balance=1, held=0, available=1, shown="1")
        await db.run(publish, groups.user_group(people.owner.pk), event.encode())
        for tab in tabs.values():
            assert (await tab.until("balance"))["shown"] == "1"
        assert await elsewhere.is_silent()
        for tab in ended:
            assert await tab.is_quiet()


async def expect_end(tab: Tab) -> None:
    """The server closes the socket with 4401 within 5 seconds."""
    async with asyncio.timeout(5):
        assert (await tab.until("error"))["code"] == "not_signed_in"
    assert await tab.close_code() == 4401


@pytest.mark.parametrize(("revoke", "ends"), ANNOUNCED)
async def test_announced_revocation_closes_sockets_at_once(
    revoke, ends, people, stranger, monkeypatch
):
    """By the event alone: no regular check comes in time."""
    monkeypatch.setattr(sockets, "RECHECK", NEVER)
    await revoke_with_open_sockets(revoke, ends, people, stranger)


@pytest.mark.parametrize(("revoke", "ends"), UNANNOUNCED)
async def test_unannounced_revocation_closes_sockets_soon(revoke, ends, people, stranger):
    await revoke_with_open_sockets(revoke, ends, people, stranger)


@pytest.mark.parametrize(("revoke", "ends"), ANNOUNCED[:3])
async def test_lost_event_delays_the_close(revoke, ends, people, stranger, monkeypatch):
    monkeypatch.setattr("chat.streaming.user_channel.publish", lambda *args: None)
    await revoke_with_open_sockets(revoke, ends, people, stranger)


async def test_deleted_user_loses_socket(people):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("django.conf.settings.BILLING", False)
        guest = await db.run(User.objects.create_user, "guest@example.org", PASSWORD)
    async with open_tab(guest) as tab:
        await db.run(guest.delete)
        await expect_end(tab)


# --- Commands ---------------------------------------------------------------------------------


def stored() -> dict[str, int]:
    return {
        "messages": Message.objects.count(),
        "runs": Run.objects.count(),
        "conversations": Conversation.objects.count(),
        "entries": LedgerEntry.objects.count(),
    }


@pytest.fixture
async def frames(owner: User, conversation: Conversation) -> dict[str, dict[str, Any]]:
    """A frame of each command that stores something."""
    run = await db.run(send, owner, conversation, "[[tokens=3 rate=0]]")
    await generate.run(run.pk, 1)
    queued = await db.run(send, owner, conversation, "[[tokens=3 rate=0]]")
    return {
        "chat.send": {"client_id": "a", "text": "x"},
        "run.regenerate": {"client_id": "a", "message": str(run.message_id)},
        "message.edit": {"client_id": "a", "message": str(run.message.parent_id), "text": "x"},
        "run.stop": {"run": str(queued.pk)},
    }


@pytest.mark.parametrize("revoke", [delete_session, expire_session, deactivate_in_bulk])
@pytest.mark.parametrize("command", ["chat.send", "run.regenerate", "message.edit", "run.stop"])
async def test_command_after_revocation_stores_nothing(
    command, revoke, people, frames, monkeypatch
):
    monkeypatch.setattr(sockets, "RECHECK", NEVER)
    fields = frames[command]
    async with open_tab(people.owner, session=people.key) as tab:
        await db.run(revoke, people)
        before = await db.run(stored)
        await tab.send(type=command, **fields)
        error = await tab.until("error")  # a balance may arrive before
        assert (error["code"], error["ref"]) == (
            "not_signed_in",
            fields.get("client_id") or fields["run"],
        )
        assert await tab.close_code() == 4401
        assert await db.run(stored) == before
        statuses = await db.run(lambda: set(Run.objects.values_list("status", flat=True)))
        assert statuses == {"done", "queued"}


async def test_changed_session_keeps_its_socket(people, conversation, monkeypatch):
    """A page stores something in the session, or the user's row changes: access goes on."""
    monkeypatch.setattr(sockets, "RECHECK", 0.05)

    def change() -> None:
        session = people.here.session
        session["theme"] = "dark"
        session.save()
        people.owner.first_name = "Another"
        people.owner.save()

    async with open_tab(people.owner, session=people.key) as tab:
        await db.run(change)
        await asyncio.sleep(0.3)
        await tab.send(type="chat.send", client_id="a", text="x", conversation=str(conversation.pk))
        assert (await tab.until("run.queued"))["client_id"] == "a"


# --- Runs in flight ---------------------------------------------------------------------------


@pytest.mark.parametrize("revoke", [sign_out, deactivate])
async def test_reply_goes_on_without_revoked_socket(revoke, people, owner, conversation, provider):
    """An accepted message is answered, stored and charged; the revoked socket receives no more of it."""
    text = "[[tokens=40 rate=0 hold=20 key=revoked]]"
    async with open_tab(owner, session=people.key) as tab:
        await tab.send(
            type="chat.send", client_id="a", text=text, conversation=str(conversation.pk)
        )
        queued = await tab.until("run.queued")
        run = await db.run(fresh, UUID(queued["run"]))
        generating = await generate_until_hold(run, provider)
        await tab.until("text.delta")
        await db.run(revoke, people)
        assert (await tab.until("error"))["code"] == "not_signed_in"
        before = len(tab.received)
        await asyncio.to_thread(provider.release, "revoked")
        await generating
        with pytest.raises(Closed, match="4401"):
            await tab.receive()
        assert len(tab.received) == before
    ended = await db.run(fresh, run.pk)
    assert (ended.status, ended.message.text) == ("done", reply_text(40, text))
    assert ended.charged


async def test_revoked_socket_receives_nothing_from_elsewhere(people, owner, conversation):
    there = people.there.cookies["sessionid"].value
    async with (
        open_tab(owner, session=people.key) as tab,
        open_tab(owner, session=there) as other,
    ):
        await db.run(sign_out, people)
        await expect_end(tab)
        before = len(tab.received)
        await other.send(
            type="chat.send", client_id="a", text="x", conversation=str(conversation.pk)
        )
        await other.until("run.queued")
        await db.run_deferred()
        await asyncio.sleep(0.1)
        assert await tab.is_quiet()
        assert len(tab.received) == before
