"""The export of all chats: from the button to the archive, and its end."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import zipfile
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.core import mail
from django.test import Client
from django.utils import timezone

from accounts.models import User
from chat.errors import ChatError
from chat.models import ChatExport, ChatImport, Conversation
from chat.transfer import archives, documents, imports, tracking
from chatproject.lib import private_files
from tests.support.conversations import add_turns, begin

pytestmark = pytest.mark.usefixtures("valkey_url")


@pytest.fixture(autouse=True)
def folder(settings, tmp_path):
    settings.PRIVATE_ROOT = tmp_path / "private"
    return settings.PRIVATE_ROOT


@pytest.fixture
def page(owner: User) -> Client:
    client = Client()
    client.force_login(owner)
    return client


@pytest.fixture
def events(monkeypatch) -> list[dict[str, Any]]:
    """What is published to the user's pages."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "chat.streaming.user_channel.publish", lambda group, data: found.append(json.loads(data))
    )
    return found


def body(response: Any) -> bytes:
    async def read() -> bytes:
        return b"".join([part async for part in response])

    return asyncio.run(read())


def test_export_of_all_chats_from_button_to_archive(
    page, owner, stranger, assistant, conversation, folder, events, monkeypatch
):
    monkeypatch.setattr(archives, "CHATS", 2)
    add_turns(owner, conversation, 60)
    for title in ("Twin", "Twin", "../a\u202e/b"):
        begin(owner, assistant, title=title, archived_at=timezone.now())
    begin(owner, assistant, title="Deleted", deleted_at=timezone.now())
    begin(owner, assistant, title="Secret", temporary=True)
    begin(stranger, assistant, title="Strange")

    assert page.post("/chats/export/")["Location"] == "/chats/export/"
    html = page.get("/chats/export/").content.decode()
    assert 'http-equiv="refresh"' in html
    assert "Waiting to begin." in html
    assert "Another export" in page.post("/chats/export/", follow=True).content.decode()
    one = ChatExport.objects.get()
    archives.run(one.pk, 0)
    archives.run(one.pk, 0)  # the job comes twice

    one.refresh_from_db()
    assert (one.status, one.chats, one.percent, one.error) == ("done", 4, 100, "")
    assert private_files.path(one.file).stat().st_mode & 0o777 == 0o600
    assert (events[-1]["type"], events[-1]["kind"]) == ("transfer.updated", "export")
    assert (events[-1]["status"], events[-1]["percent"]) == ("done", 100)
    address = f"/chats/export/{one.pk}/file/"
    assert address in page.get("/chats/export/").content.decode()
    response = page.get(address)
    data = body(response)
    assert int(response["Content-Length"]) == len(data) == one.size
    assert response["Content-Disposition"].startswith('attachment; filename="Chats 20')
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.testzip() is None
    names = sorted(archive.namelist())
    assert len(set(names)) == 8
    assert [name.split("/")[0] for name in names] == ["JSON"] * 4 + ["Markdown"] * 4
    assert [name.count("/") for name in names] == [1] * 8
    [chat] = [name for name in names if name.startswith("JSON/New chat")]
    assert len(json.loads(archive.read(chat))["messages"]) == 120
    assert b"Answer 59\n" in archive.read(chat.replace("JSON", "Markdown").replace(".json", ".md"))
    # It is a file that the import accepts.
    kept = Conversation.objects.filter(owner=owner, deleted_at=None, temporary=False)
    ids = {str(each.pk) for each in kept}
    assert {json.loads(archive.read(name))["id"] for name in names[:4]} == ids
    made = imports.start(user=stranger, file_name="a.zip", size=len(data), chunks=[data])
    imports.run(made.pk, 0)
    assert ChatImport.objects.get().added == 1  # the others have no messages
    # For its owner alone, and for a day.
    other = Client()
    other.force_login(stranger)
    assert other.get(address).status_code == 404
    assert other.post(f"/chats/export/{one.pk}/stop/").status_code == 404
    archives.resume(timezone.now() + timedelta(hours=23))
    assert page.head(address).status_code == 200
    archives.resume(timezone.now() + timedelta(hours=25))
    assert page.get(address).status_code == 404
    assert "This archive was removed." in page.get("/chats/export/").content.decode()
    assert list(folder.iterdir()) == []
    archives.resume(timezone.now() + timedelta(days=31))
    assert not ChatExport.objects.exists()
    assert mail.outbox == []  # it was quick


def test_late_export_is_mailed(owner, conversation, mailoutbox, settings):
    settings.SITE_URL = "https://chat.example.org"
    one = archives.start(owner)
    ChatExport.objects.update(created_at=timezone.now() - timedelta(minutes=2))
    archives.run(one.pk, 0)
    [sent] = mailoutbox
    assert sent.to == [owner.email]
    assert "https://chat.example.org/chats/export/" in sent.body
    assert "with your chat at" in sent.body


def test_stopped_export_leaves_no_file(page, owner, conversation, folder, events, monkeypatch):
    add_turns(owner, conversation, 60)
    one = archives.start(owner)
    write = documents.markdown

    def stopped(chat):
        page.post(f"/chats/export/{one.pk}/stop/")
        return write(chat)

    monkeypatch.setattr(documents, "markdown", stopped)
    monkeypatch.setattr(tracking, "BEAT", 0.0)
    archives.run(one.pk, 0)
    assert list(folder.iterdir()) == []
    assert "Stopped." in page.get("/chats/export/").content.decode()
    assert events[-1]["status"] == "stopped"
    response = page.post(f"/chats/export/{one.pk}/stop/", follow=True)
    assert "This has ended already." in response.content.decode()


def test_lost_export_begins_again_and_then_fails(page, owner, conversation, folder, monkeypatch):
    one = archives.start(owner)
    rows = ChatExport.objects.filter(pk=one.pk)
    lost = private_files.store([b"half an archive"])
    rows.update(status="running", attempt=1, file=lost)
    archives.resume(timezone.now())
    assert rows.get().status == "running"
    archives.resume(timezone.now() + timedelta(minutes=4))
    assert (rows.get().status, rows.get().attempt) == ("queued", 1)
    archives.run(one.pk, 0)  # the job of the lost attempt
    assert rows.get().status == "queued"
    archives.run(one.pk, 1)
    assert rows.get().status == "done"
    assert [file.name for file in folder.iterdir()] == [rows.get().file]

    rows.update(status="running", attempt=3)
    archives.resume(timezone.now() + timedelta(hours=1))
    assert (
        "The export was interrupted. Start it again." in page.get("/chats/export/").content.decode()
    )
    assert list(folder.iterdir()) == []


def test_full_disk_ends_an_export_in_words(page, owner, conversation, folder, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", full)
    one = archives.start(owner)
    archives.run(one.pk, 0)
    assert "The archive could not be stored." in page.get("/chats/export/").content.decode()
    assert list(folder.iterdir()) == []


def test_export_without_chats_is_refused(page, owner):
    with pytest.raises(ChatError, match="no chats yet"):
        archives.start(owner)
    assert page.get(f"/chats/export/{uuid4()}/file/").status_code == 404
