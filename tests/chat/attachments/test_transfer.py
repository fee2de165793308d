"""Files of messages in exports and imports."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from accounts.models import User
from chat.attachments import uploads
from chat.models import Attachment, LanguageModel, Message, MessageAttachment
from chat.transfer import documents, imports, reader
from chatproject.lib import private_files
from tests.support.conversations import send
from tests.support.files import attach, picture
from tests.support.runs import mark_done

pytestmark = pytest.mark.usefixtures("valkey_url", "assistant")


@pytest.fixture(autouse=True)
def folder(settings, tmp_path):
    settings.PRIVATE_ROOT = tmp_path / "private"
    return settings.PRIVATE_ROOT


@pytest.fixture
def sent(owner, conversation) -> Message:
    """A message with an image, a text and a deleted file."""
    LanguageModel.objects.update(vision=True)
    found = [
        attach(owner, name="a*b.png"),
        attach(owner, b"words", "b.txt"),
        attach(owner, b"x", "c.txt"),
    ]
    run = mark_done(send(owner, conversation, "Look", attachment_ids=[one.pk for one in found]))
    sent = run.message.parent
    assert sent is not None
    assert sent.attached
    sent.attached[2]["deleted"] = True
    sent.save()
    found[2].delete()
    return sent


def whole(make: Any) -> str:
    text, at = "", 0
    while at is not None:
        part, at = make(at)
        text += part
    return text


def imported(owner: User, document: Any) -> Any:
    data = json.dumps(document).encode()
    made = imports.start(user=owner, file_name="a.json", size=len(data), chunks=[data])
    imports.run(made.pk, 0)
    made.refresh_from_db()
    return made


def test_export_has_the_files_and_import_restores_them(owner, stranger, conversation, sent):
    conversation.refresh_from_db()
    text = whole(documents.markdown(conversation))
    assert "*Attached:* a\\*b.png, b.txt, c.txt\n\nLook" in text
    document = json.loads(whole(documents.json(conversation)))
    image, words, deleted = document["messages"][0]["attachments"]
    assert (image["name"], image["kind"], image["width"]) == ("a*b.png", "image", 60)
    stored = Attachment.objects.get(kind="image")
    assert base64.b64decode(image["data"]) == private_files.path(stored.file).read_bytes()
    assert words["text"] == "words"
    assert deleted == {"name": "c.txt", "kind": "text", "size": 1, "deleted": True}
    paper = whole(documents.html(conversation, "<main><!-- messages --></main>"))
    assert f'src="/attachments/{stored.pk}/thumbnail/"' in paper

    # One of another account, with a file that is no image and one that is not base64.
    document["messages"][0]["attachments"] += [
        {"name": "../x.png", "kind": "image", "data": base64.b64encode(bytes(50)).decode()},
        {"name": "y", "data": "%%%"},
        "no file",
    ]
    document["messages"][0]["text"] = ""
    report = imported(stranger, document)
    assert (report.added, report.skipped, report.error) == (1, 0, "")
    assert report.notes == [["Look", "4 files could not be stored."]]
    copy = Message.objects.get(conversation__owner=stranger, role="user")
    assert [(one["name"], one.get("deleted", False)) for one in copy.attached or ()] == [
        ("a*b.png", False),
        ("b.txt", False),
        ("c.txt", True),
        ("x.png", True),
        ("y", True),
        ("File", True),
    ]
    assert MessageAttachment.objects.filter(message=copy).count() == 2
    mine = Attachment.objects.filter(owner=stranger)
    assert list(mine.values_list("expires_at", flat=True)) == [None, None]
    # A second import stores nothing again; one of a changed chat its new files alone.
    assert imported(stranger, document).known == 1
    document["messages"][1]["text"] = "Changed"
    imported(stranger, document)
    assert mine.count() == 2


def test_export_is_written_in_parts_of_few_files(owner, conversation, sent, monkeypatch):
    monkeypatch.setattr(documents, "PART_BYTES", 10)
    make = documents.json(conversation)
    _text, next = make(0)
    assert next == 1
    assert len(json.loads(whole(make))["messages"]) == 2


def test_files_beyond_the_bound_are_left_out(stranger, monkeypatch):
    monkeypatch.setattr(reader, "FILE_CHARACTERS", 1_000)
    monkeypatch.setattr(reader, "CHAT_CHARACTERS", 2_000)
    image = {"name": "a.png", "kind": "image", "data": base64.b64encode(picture()).decode()}
    large = {"name": "b.png", "kind": "image", "data": "A" * 5_000}
    messages = [
        {"id": "1", "role": "user", "text": "", "status": "done", "attachments": [large, image]}
    ]
    report = imported(
        stranger, {"format": "parley.conversation", "version": 1, "messages": messages}
    )
    assert report.added == 1
    [message] = Message.objects.all()
    assert [one.get("deleted", False) for one in message.attached or ()] == [True, False]
    assert uploads.used_bytes(stranger) > 0
