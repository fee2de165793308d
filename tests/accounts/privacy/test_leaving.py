"""A user who leaves: export, request, restoration, and a purge that leaves the anonymised ledger alone."""

from __future__ import annotations

import json
import re
import time
import zipfile
from datetime import timedelta

import pytest
from django.apps import apps
from django.contrib.sessions.models import Session
from django.core import mail
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import AccountDeletion, SignupGrant, User
from accounts.privacy import erase, jobs, leaving
from billing.models import Account, AutoTopUp, Invoice, LedgerEntry
from chat.models import ChatExport, Conversation, Run
from chat.transfer import archives
from chatproject.lib import personal_data, private_files
from tests.support import leaver, money
from tests.support.conversations import begin, send
from tests.support.leaver import ADDRESS, WORD
from tests.support.people import assistant, owner, stranger

__all__ = ["assistant", "owner", "stranger"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

PASSWORD = "correct horse battery"
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def folder(settings, tmp_path):
    settings.PRIVATE_ROOT = tmp_path / "private"
    return settings.PRIVATE_ROOT


@pytest.fixture
def leaving_user(assistant, stranger) -> User:
    return leaver.make(assistant, stranger)


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def expire(user: User) -> None:
    AccountDeletion.objects.filter(pk=user.pk).update(due_at=timezone.now() - DAY)


def text_of_tables() -> dict[str, str]:
    """All rows of all tables as text, by table."""
    found = {}
    with connection.cursor() as cursor:
        for model in apps.get_models(include_auto_created=True):
            if not model._meta.managed:
                continue
            table = connection.ops.quote_name(model._meta.db_table)
            cursor.execute(f"SELECT coalesce(string_agg(t::text, ' '), '') FROM {table} AS t")  # noqa: S608
            found[model._meta.label] = cursor.fetchone()[0]
    return found


def traces(client, folder, *words: str) -> list[str]:
    """Where the words are: tables, files and keys."""
    found = [
        f"{label}: {word}"
        for label, text in text_of_tables().items()
        for word in words
        if word in text or word.encode().hex() in text
    ]
    found += [str(path) for path in folder.rglob("*") if path.is_file()]
    for key in client.scan_iter():
        content = key + (client.dump(key) or b"")
        found += [f"{key!r}: {word}" for word in words if word.encode() in content]
    return found


# --- The purge ----------------------------------------------------------------------------------


def test_purge_leaves_nothing_but_the_ledger(leaving_user, stranger, folder, valkey_client):
    chat = Conversation.objects.get(owner=leaving_user)
    ids = [str(chat.pk), *(str(pk) for pk in chat.messages.values_list("pk", flat=True))]
    account = Account.objects.get(user=leaving_user)
    entries = LedgerEntry.objects.filter(account=account).count()
    problems = set(money.problems(account))  # of rows that the test made by hand
    assert len(traces(valkey_client, folder, WORD, ADDRESS)) > len(personal_data.tables()) / 2
    leaving.request(leaving_user)
    jobs.purge()
    assert Conversation.objects.filter(owner=leaving_user).exists()
    expire(leaving_user)
    jobs.purge()
    assert traces(valkey_client, folder, WORD, ADDRESS, *ids) == []
    for table in personal_data.tables():
        if table.user and not table.kept:
            assert not table.of(leaving_user.pk).exists(), table.model
    user = User.objects.get(pk=leaving_user.pk)
    assert (user.is_active, user.has_usable_password()) == (False, False)
    assert AccountDeletion.objects.get(pk=user.pk).purged_at is not None
    account.refresh_from_db()
    assert account.balance == 0
    assert LedgerEntry.objects.filter(account=account).count() >= entries
    assert set(money.problems(account)) <= problems
    assert SignupGrant.objects.filter(user=user).exists()
    assert Conversation.objects.filter(owner=stranger).get().assistant.system_prompt == ""


def test_killed_purge_goes_on(leaving_user, folder, valkey_client):
    account = Account.objects.get(user=leaving_user)
    money.grant(account, 1_000_000)
    problems = set(money.problems(account))
    leaving.request(leaving_user)
    expire(leaving_user)
    kills = 0
    for allowed in range(3, 10_000, 11):
        AccountDeletion.objects.update(claimed_until=None)  # the dead job's claim has expired
        try:
            with connection.execute_wrapper(Killer(allowed)):
                erase.purge(leaving_user.pk, timezone.now(), time.monotonic() + 60)
        except Killed:
            kills += 1
        if AccountDeletion.objects.get(pk=leaving_user.pk).purged_at:
            break
    assert kills > 10
    assert traces(valkey_client, folder, WORD, ADDRESS) == []
    expired = LedgerEntry.objects.filter(account=account, kind="expire")
    account.refresh_from_db()
    assert account.balance == 0
    assert len({one.idempotency_key for one in expired}) == expired.count()
    assert set(money.problems(account)) <= problems


class Killed(BaseException):
    """The end of a process, which no code catches."""


class Killer:
    """Ends the caller at the statement after so many."""

    def __init__(self, allowed: int) -> None:
        self.left = allowed

    def __call__(self, execute, sql, params, many, context):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return execute(sql, params, many, context)


def test_two_jobs_do_not_purge_the_same_account(leaving_user):
    leaving.request(leaving_user)
    expire(leaving_user)
    AccountDeletion.objects.update(claimed_until=timezone.now() + DAY)
    assert erase.run(timezone.now()) == 0
    assert Conversation.objects.filter(owner=leaving_user).exists()


# --- Request and restoration --------------------------------------------------------------------


def test_owner_deletes_and_restores_the_account(owner, assistant, settings):
    settings.ACCOUNT_DELETION_DAYS = 10
    run = send(owner, begin(owner, assistant), "Hello")
    client = signed_in(owner)
    address = reverse("account_delete")
    page = client.get(address).content.decode()
    assert "10 days" in page
    assert re.search(r"Your [\d.,]*\d credits expire", page)
    assert client.post(address).status_code == 400
    response = client.post(address, {"understood": "on"})
    assert response["Location"].startswith(
        reverse("account_reauthenticate")
    )  # force_login proves nothing
    client.post(response["Location"], {"password": PASSWORD})
    response = client.post(address, {"understood": "on"}, follow=True)
    assert "sign in to restore it" in response.content.decode()
    assert Run.objects.get(pk=run.pk).status == "stopped"
    assert "Your account will be deleted" in mail.outbox[-1].subject
    assert client.get("/").status_code == 302
    # Nothing but the restoration works.
    client = Client()
    response = client.post(reverse("account_login"), {"login": owner.email, "password": PASSWORD})
    assert response["Location"] == reverse("account_restore")
    assert "10 days left" in client.get(response["Location"]).content.decode()
    assert client.get("/").status_code == 302
    assert client.post(response["Location"], {"keep_deletion": ""})["Location"] == reverse(
        "account_login"
    )
    assert client.post(reverse("account_restore"))["Location"] == reverse("account_login")
    assert not User.objects.get(pk=owner.pk).is_active
    client.post(reverse("account_login"), {"login": owner.email, "password": PASSWORD})
    client.post(reverse("account_restore"))
    assert User.objects.get(pk=owner.pk).is_active
    assert "restored" in mail.outbox[-1].subject
    client.post(reverse("account_login"), {"login": owner.email, "password": PASSWORD})
    assert client.get("/").status_code == 200


def test_reminder_is_mailed_once(owner):
    leaving.request(owner)
    now = timezone.now()
    assert leaving.remind(now + 20 * DAY) == 0
    assert leaving.remind(now + 28 * DAY) == 1
    assert leaving.remind(now + 28 * DAY) == 0
    assert "removed soon" in mail.outbox[-1].subject


def test_restoration_and_purge_exclude_each_other(owner):
    leaving.request(owner)
    expire(owner)
    AccountDeletion.objects.update(started_at=timezone.now())
    with pytest.raises(leaving.NotRestorable):
        leaving.restore(owner)
    AccountDeletion.objects.update(started_at=None)
    leaving.restore(owner)
    assert erase.purge(owner.pk, timezone.now(), time.monotonic() + 9) is False
    assert User.objects.get(pk=owner.pk).email == owner.email


def test_staff_delete_through_the_same_door(owner, stranger):
    boss = User.objects.create_superuser("boss@example.org", PASSWORD)
    staff = signed_in(boss)
    page = reverse("admin:accounts_user_leave", args=[owner.pk])
    leaving.request(owner)  # who could restore the account, if staff could not take over
    assert (
        page in staff.get(reverse("admin:accounts_user_change", args=[owner.pk])).content.decode()
    )
    assert "owner@example.org" in staff.get(page).content.decode()
    staff.post(page, {"confirmed": "1"})
    assert AccountDeletion.objects.get(pk=owner.pk).by == boss
    assert staff.get(page).status_code == 403  # again
    assert staff.get(reverse("admin:accounts_user_leave", args=[boss.pk])).status_code == 403
    with pytest.raises(leaving.LastSuperuser):
        leaving.request(boss)
    client = Client()
    response = client.post(reverse("account_login"), {"login": owner.email, "password": PASSWORD})
    assert response["Location"] == reverse("account_inactive")
    staff.post(reverse("admin:accounts_user_reactivate", args=[owner.pk]), {"confirmed": "1"})
    assert User.objects.get(pk=owner.pk).is_active
    assert not AccountDeletion.objects.exists()
    call_command("delete_account", stranger.email)
    assert leaving.restorable(stranger.pk)  # as if the user had asked for it
    call_command("delete_account", stranger.email, "--by", boss.email)
    assert leaving.restorable(stranger.pk) is None
    with pytest.raises(CommandError, match="no member of staff"):
        call_command("delete_account", stranger.email, "--by", owner.email)
    call_command("delete_account", stranger.email, "--now")
    assert User.objects.get(pk=stranger.pk).email == f"erased-{stranger.pk}@erased.invalid"


# --- The export ---------------------------------------------------------------------------------


def test_export_has_a_document_of_each_table(leaving_user):
    client = signed_in(leaving_user)
    client.post(reverse("chat:data"))
    one = ChatExport.objects.get(owner=leaving_user, everything=True)
    archives.run(one.pk, 0)
    one.refresh_from_db()
    assert one.status == "done", one.error
    page = client.get(reverse("chat:data")).content.decode()
    assert reverse("chat:export_file", args=[one.pk]) in page
    with zipfile.ZipFile(private_files.path(one.file)) as archive:
        names = set(archive.namelist())
        contents = {name: archive.read(name).decode(errors="replace") for name in names}
    for table in personal_data.tables():
        if table.document:
            rows = json.loads(contents[f"{table.document}.json"])
            assert len(rows) == table.of(leaving_user.pk).count()
            assert not any({*table.omitted} & {*row} for row in rows), table.model
    assert json.loads(contents["profile.json"])[0]["email"] == ADDRESS
    assert any(name.startswith("Files/") and WORD in contents[name] for name in names)
    assert any(name.startswith("JSON/") for name in names)
    assert len(json.loads(contents["sessions.json"])) == Session.objects.count() == 2
    assert leaving_user.password not in "".join(contents.values())
    assert AutoTopUp.objects.filter(user=leaving_user).exists()
    assert Invoice.objects.exists()
