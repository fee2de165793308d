"""Chats of other products' exports, from the upload to the pages."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from datetime import timedelta
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.utils import timezone

from accounts.models import User
from chat.errors import ChatError
from chat.models import ChatImport, Conversation, Message, MessagePart, Project, SearchEntry
from chat.transfer import documents, imports, reader, tracking, tree
from chatproject.lib import private_files
from tests.support.files import picture

pytestmark = pytest.mark.usefixtures("valkey_url", "assistant")


@pytest.fixture(autouse=True)
def folder(settings, tmp_path):
    settings.PRIVATE_ROOT = tmp_path / "private"
    return settings.PRIVATE_ROOT


def imported(owner: User, content: Any, name: str = "conversations.json") -> ChatImport:
    """Upload a file and run its job."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    made = imports.start(user=owner, file_name=name, size=len(data), chunks=[data])
    imports.run(made.pk, 0)
    made.refresh_from_db()
    return made


def counts(one: ChatImport) -> tuple[int, int, int, int]:
    return one.added, one.updated, one.known, one.skipped


def shown(conversation: Conversation) -> list[tuple[str, str]]:
    """The roles and texts of the shown branch."""
    ids = documents.shown_ids(conversation)
    found = Message.objects.in_bulk(ids)
    return [(found[id].role, found[id].text) for id in ids]


def zipped(compression: int = zipfile.ZIP_DEFLATED, **files: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(f"{name}.json", data)
    return made.getvalue()


def gpt_node(parent, role, content, created=None, **fields):
    message = {"author": {"role": role}, "content": content, "create_time": created, **fields}
    return {"message": message, "parent": parent, "children": []}


def text(*parts):
    return {"content_type": "text", "parts": list(parts)}


def chatgpt(**changes: Any) -> dict[str, Any]:
    """A conversation with a system message, a reply in three steps, and two versions of the last question."""
    return {
        "title": "Trees",
        "create_time": 1700000000.5,
        "update_time": 1700000100.5,
        "conversation_id": "gpt-1",
        "current_node": "b2",
        "is_starred": True,
        "mapping": {
            "b2": gpt_node("doc", "assistant", text("Fir"), 1700000031),
            "doc": gpt_node(
                "b1",
                "assistant",
                text('{"name": "Firs", "type": "document", "content": "# Firs"}'),
                recipient="canmore.create_textdoc",
            ),
            "root": {"message": None, "parent": None, "children": ["s"]},
            "s": gpt_node("root", "system", text("")),
            "u": gpt_node("s", "user", text("Name a tree"), 1700000001),
            "t": gpt_node(
                "u",
                "assistant",
                {"content_type": "thoughts", "thoughts": [{"summary": "S", "content": "Hm"}]},
            ),
            "c": gpt_node(
                "t", "assistant", {"content_type": "code", "text": "search()"}, recipient="web"
            ),
            "r": gpt_node("c", "tool", text("found")),
            "a": gpt_node(
                "r", "assistant", text("**Oak**"), 1700000002, metadata={"model_slug": "gpt-4o"}
            ),
            "a2": gpt_node("u", "assistant", text("Elm"), 1700000003),
            "b1": gpt_node("a", "user", text("Another"), 1700000030),
            "c1": gpt_node("a", "user", text("Why?"), 1700000020),
        },
        **changes,
    }


CLAUDE = {
    "uuid": "claude-1",
    "name": "Sea",
    "created_at": "2024-05-01T10:00:00.123456Z",
    "updated_at": "2024-05-02T10:00:00Z",
    "model": "claude-3-opus",
    "chat_messages": [
        {
            "uuid": "m1",
            "sender": "human",
            "text": "Read this",
            "content": [{"type": "text", "text": "Read this"}],
            "attachments": [{"file_name": "a.txt", "extracted_content": "salt"}],
            "created_at": "2024-05-01T10:00:00Z",
        },
        {
            "uuid": "m2",
            "sender": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm"},
                {"type": "text", "text": "Done"},
                {"type": "tool_use", "name": "web_search", "input": {"query": "salt"}},
                {
                    "type": "tool_use",
                    "name": "artifacts",
                    "input": {
                        "command": "create",
                        "type": "application/vnd.ant.code",
                        "language": "python",
                        "title": "Salt",
                        "content": "print('```')",
                    },
                },
            ],
            "created_at": "2024-05-01T10:00:09Z",
        },
    ],
}

SALT = "Done\n\n**Salt**\n\n````python\nprint('```')\n````"

LIBRECHAT = {
    "conversationId": "libre-1",
    "title": "Stars",
    "recursive": True,
    "messages": [
        {
            "messageId": "l1",
            "parentMessageId": "00000000-0000-0000-0000-000000000000",
            "isCreatedByUser": True,
            "text": "How many?",
            "createdAt": "2024-05-28T18:08:55.014Z",
            "children": [
                {
                    "messageId": "l2",
                    "isCreatedByUser": False,
                    "model": "mistral-large",
                    "content": [
                        {"type": "think", "think": "Hm"},
                        {"type": "text", "text": {"value": "Many"}},
                    ],
                    "createdAt": "2024-05-28T18:08:56.014Z",
                },
                {
                    "messageId": "l3",
                    "isCreatedByUser": False,
                    "text": "Some",
                    "createdAt": "2024-05-28T18:09:56.014Z",
                },
            ],
        }
    ],
}

OPEN_WEBUI = {
    "id": "webui-1",
    "title": "Sums",
    "archived": True,
    "created_at": 1700000000,
    "updated_at": 1700000010,
    "chat": {
        "history": {
            "currentId": "w2",
            "messages": {
                "w1": {"id": "w1", "parentId": None, "role": "user", "content": "15*17?"},
                "w2": {
                    "id": "w2",
                    "parentId": "w1",
                    "role": "assistant",
                    "content": '<details type="reasoning" done="true"><summary>Thought</summary>\n'
                    "&gt; Hm\n</details>\n255",
                    "timestamp": 1700000010,
                    "modelName": "Llama 3",
                },
            },
        }
    },
}


def test_exports_of_each_product_are_recognised(owner, folder):
    one = imported(owner, [chatgpt(), CLAUDE, LIBRECHAT, OPEN_WEBUI])

    assert (one.status, one.error, one.notes) == ("done", "", [])
    assert counts(one) == (4, 0, 0, 0)
    chats = {each.title: each for each in Conversation.objects.filter(owner=owner)}
    trees, sea, stars, sums = (chats[each] for each in ("Trees", "Sea", "Stars", "Sums"))
    assert shown(trees) == [
        ("user", "Name a tree"),
        ("assistant", "**Oak**"),
        ("user", "Another"),
        ("assistant", "**Firs**\n\n# Firs\n\nFir"),
    ]
    assert shown(sea) == [("user", "Read this\n\n[a.txt]\nsalt"), ("assistant", SALT)]
    assert shown(stars) == [("user", "How many?"), ("assistant", "Some")]
    assert shown(sums) == [("user", "15*17?"), ("assistant", "255")]
    assert sums.archived_at is not None
    assert [chat.title for chat in chats.values() if chat.pinned_at] == ["Trees"]
    assert trees.updated_at.timestamp() == 1700000100.5
    assert trees.created_at.timestamp() == 1700000000.5
    for chat, thoughts, model in (
        (trees, "S\nHm", "gpt-4o"),
        (sea, "Hm", "claude-3-opus"),
        (stars, "Hm", "mistral-large"),
        (sums, "Hm", "Llama 3"),
    ):
        parts = MessagePart.objects.filter(message__conversation=chat)
        assert [one.data for one in parts.filter(kind="reasoning")] == [{"text": thoughts}]
        [origin] = parts.filter(kind="origin")
        assert origin.data["model"] == origin.message.origin_model == model
    oak = trees.messages.get(text="**Oak**")
    assert "<strong>Oak</strong>" in oak.html
    assert {each.text for each in oak.children.all()} == {"Another", "Why?"}
    assert [each.text for each in oak.parent.children.order_by("pk")] == ["**Oak**", "Elm"]
    for message in Message.objects.filter(parent__isnull=False):
        assert message.parent_id < message.pk  # a message is older than those that follow it
    assert SearchEntry.objects.filter(owner=owner).count() == Message.objects.count()
    assert list(folder.iterdir()) == []


def test_second_import_adds_only_what_is_new(owner):
    imported(owner, [chatgpt(), CLAUDE])
    trees = Conversation.objects.get(title="Trees")
    before = set(trees.messages.values_list("pk", flat=True))
    grown = chatgpt(current_node="d")
    grown["mapping"]["d"] = gpt_node("b2", "user", text("Thanks"), 1700000090)

    one = imported(owner, zipped(user=b"{}", conversations=json.dumps([grown, CLAUDE]).encode()))

    assert counts(one) == (0, 1, 1, 0)
    assert Conversation.objects.count() == 2
    trees.refresh_from_db()
    [added] = set(trees.messages.values_list("pk", flat=True)) - before
    assert (added, shown(trees)[-1]) == (trees.leaf_id, ("user", "Thanks"))
    # A chat that the user deleted is new again.
    Conversation.objects.filter(pk=trees.pk).update(deleted_at=timezone.now())
    assert counts(imported(owner, [grown])) == (1, 0, 0, 0)


def test_own_export_returns_whole_in_another_account(owner, stranger):
    imported(owner, [chatgpt()])
    chat = Conversation.objects.get(owner=owner)
    chat.project = Project.objects.create(owner=owner, name="Wood", instructions="Be brief.")
    part, at = documents.json(chat)(0)
    assert at is None

    assert chat.pinned_at is not None
    assert counts(imported(owner, part.encode())) == (0, 0, 1, 0)
    assert counts(imported(stranger, part.encode())) == (1, 0, 0, 0)
    copy = Conversation.objects.get(owner=stranger)
    assert copy.messages.get(text="**Oak**").origin_model == "gpt-4o"
    page = Client()
    page.force_login(stranger)
    assert ">gpt-4o<" in page.get(copy.get_absolute_url()).content.decode()
    assert shown(copy) == shown(chat)
    assert copy.pinned_at is not None
    assert copy.project is not None
    assert copy.project.owner == stranger
    assert (copy.project.name, copy.project.instructions) == ("Wood", "Be brief.")
    assert sorted(copy.messages.values_list("text", "created_at")) == sorted(
        chat.messages.values_list("text", "created_at")
    )


def test_bad_chats_are_left_out_whole(owner, monkeypatch):
    monkeypatch.setattr(reader, "CHAT_VALUES", 500)
    circle = chatgpt(title="Circle", conversation_id="gpt-2")
    circle["mapping"]["u"]["parent"] = "b2"
    large = {"title": "Large", "mapping": {str(n): {} for n in range(600)}, "current_node": "1"}
    wrong = {"uuid": "x", "name": "Wrong", "chat_messages": [1, None, {"content": {"a": 1}}]}
    odd = chatgpt(title="Odd\x00\ud800", conversation_id="gpt-3", create_time=1e300, update_time=-9)
    odd["mapping"]["u"]["message"]["content"]["parts"] = ["a\x00b\ud800c", None, {"x": []}]
    odd["mapping"]["u"]["message"]["create_time"] = "9999-99-99"
    odd["mapping"]["a"]["parent"] = "nowhere"
    long = {**CLAUDE, "uuid": "long", "name": "Long", "chat_messages": [
        {"uuid": "1", "sender": "human", "text": "x" * 200_001}]}  # fmt: skip

    empty = {"title": "Half", "create_time": 1700000000, "conversation_id": "gpt-4"}

    one = imported(owner, [empty, circle, large, wrong, odd, long])

    assert counts(one) == (2, 0, 0, 4)
    assert one.notes == [
        ["Half", "It has an unexpected form."],
        ["Circle", "Its messages form a circle."],
        ["Large", "It is too large."],
        ["Wrong", "It has no messages."],
        ["Long", "1 messages were cut after 200,000 characters."],
    ]
    assert {each.title for each in Conversation.objects.all()} == {"Odd\ufffd?", "Long"}
    assert Message.objects.filter(text="a\ufffdb?c").exists()


def bomb() -> bytes:
    """An archive that announces a small file and unpacks to a large one."""
    data = bytearray(zipped(conversations=b"[" + b" " * 3_000_000 + b"]"))
    size = (3_000_002).to_bytes(4, "little")
    at = data.rfind(size)
    data[at : at + 4] = (10).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 nothing", "archive is damaged"),
        (zipped(), "no JSON"),
        (bomb(), "archive is damaged"),
        (zipped(zipfile.ZIP_BZIP2, a=b"[]"), "packed in an unusual way"),
        (zipped(zipfile.ZIP_LZMA, a=b"[]"), "packed in an unusual way"),
        (b"\xff\xfe" + "[]".encode("utf-16-le"), "no chats of a known kind"),
        (b"hello", "not valid JSON"),
        (b"12", "has no chats"),
        (b'{"a": 1}', "no chats of a known kind"),
        (b"[" * 100_000, "not valid JSON"),
        (b'[{"mapping": 1}, "x"', "not valid JSON"),
        (b'{"format":"parley.conversation","version":2,"title":"T"}', ""),
    ],
)
def test_file_of_the_wrong_shape_is_explained(owner, folder, content, sentence):
    one = imported(owner, content)
    assert sentence in one.error
    assert one.status == "failed" or one.notes == [
        ["T", "It comes from a newer version of Parley."]
    ]
    assert not Conversation.objects.exists()
    assert list(folder.iterdir()) == []


def test_damaged_end_keeps_the_chats_before(owner):
    one = imported(owner, json.dumps([CLAUDE, chatgpt()]).encode()[:-300])
    assert (one.status, counts(one)) == ("failed", (1, 0, 0, 0))
    assert "cut off" in one.error


def test_text_without_end_is_refused_early(owner, monkeypatch):
    monkeypatch.setattr(reader, "STRING_BYTES", 100_000)
    assert "too long" in imported(owner, b'[{"title": "' + b"x" * 1_000_000 + b'"}]').error


def test_file_of_many_small_parts_is_refused(owner, monkeypatch):
    monkeypatch.setattr(reader, "CHAT_VALUES", 500)
    parts = {f"key {number}": [0] * 100 for number in range(10)}
    assert imported(owner, {**parts, "title": "Many"}).notes == [["Many", "It is too large."]]
    monkeypatch.setattr(reader, "FILE_EVENTS", 500)
    assert "more parts than can be read" in imported(owner, [parts, chatgpt()]).error


def test_files_of_an_import_are_bounded(owner, monkeypatch):
    monkeypatch.setattr(imports, "MAX_FILES", 12)
    wide = picture("PNG", (2_100, 20))
    files = [{"name": "a.txt", "text": "A"}] * 8
    files[1] = {"name": "wide.png", "data": base64.b64encode(wide).decode()}
    messages = [
        # Successive messages of one role become one.
        {"id": "1", "role": "user", "attachments": files},
        {"id": "2", "parent": "1", "role": "user", "text": "B", "attachments": files},
        {"id": "3", "parent": "2", "role": "assistant", "text": "C"},
        {"id": "4", "parent": "3", "role": "user", "attachments": files},
    ]
    imported(owner, {"format": "parley.conversation", "version": 1, "messages": messages})
    first, second = [
        [one.get("deleted", False) for one in message.attached or []]
        for message in Message.objects.filter(role="user").order_by("pk")
    ]
    assert (len(first), first.count(True)) == (10, 2)  # the wide ones
    assert second == [False, True] + [True] * 6


def test_archive_of_too_much_is_refused(owner, monkeypatch):
    monkeypatch.setattr(reader, "JSON_BYTES", 1_000)
    archive = zipped(a=b"[" + b" " * 1_000 + b"]")
    assert "too large when it is unpacked" in imported(owner, archive).error


def test_text_of_imports_is_bounded_by_the_day(owner, settings):
    """An import ends at the limit with a sentence, and the same file goes on from there the next day."""
    settings.IMPORT_DAY_BYTES = 25
    chats = [
        {"title": f"Chat {n}", "conversation_id": f"gpt-{n}", "current_node": "u", "mapping": {
            "u": gpt_node(None, "user", text("ä" * 5 + "0" * 10), 1700000001 + n),
        }}
        for n in range(2)
    ]  # fmt: skip
    first = imported(owner, chats)
    assert (first.status, first.added, first.stored) == ("failed", 1, 20)
    assert "in 24 hours" in first.error
    settings.IMPORT_DAY_BYTES = 20
    with pytest.raises(ChatError, match="Import the file again tomorrow"):
        imported(owner, chats)
    ChatImport.objects.update(created_at=timezone.now() - timedelta(days=1, minutes=1))
    second = imported(owner, chats)
    assert (second.status, *counts(second)) == ("done", 1, 0, 1, 0)
    assert Conversation.objects.count() == 2


def test_one_import_of_a_user_at_a_time(owner, stranger, folder):
    first = imports.start(user=owner, file_name="a", size=2, chunks=[b"[]"])
    with pytest.raises(ChatError, match="run_active"):
        imports.start(user=owner, file_name="b", size=2, chunks=[b"[]"])
    imports.start(user=stranger, file_name="c", size=2, chunks=[b"[]"])
    with pytest.raises(ChatError, match="limit_reached"):
        imports.start(user=owner, file_name="d", size=100_000_001, chunks=[])
    assert len(list(folder.iterdir())) == 2
    assert private_files.path(first.file).stat().st_mode & 0o777 == 0o600


def test_lost_import_goes_on_and_then_fails(owner, folder):
    one = imports.start(user=owner, file_name="a", size=2, chunks=[json.dumps([CLAUDE]).encode()])
    rows = ChatImport.objects.filter(pk=one.pk)
    for attempt in (1, 2):
        rows.update(status="running", attempt=attempt, beat_at=timezone.now())
        imports.resume(timezone.now())
        assert rows.get().status == "running"  # it made progress just now
        imports.resume(timezone.now() + timedelta(minutes=4))
        assert (rows.get().status, rows.get().attempt) == ("queued", attempt)
    imports.run(one.pk, 1)  # the job of an earlier attempt
    assert rows.get().status == "queued"
    imports.run(one.pk, 2)
    assert rows.get().status == "done"

    rows.update(status="running", attempt=3, beat_at=timezone.now())
    imports.resume(timezone.now() + timedelta(hours=1))
    assert rows.get().status == "failed"
    imports.resume(timezone.now() + timedelta(days=40))
    assert not rows.exists()


def test_stopped_import_keeps_its_chats(owner, folder, monkeypatch):
    page = Client()
    page.force_login(owner)
    data = json.dumps([CLAUDE, chatgpt()]).encode()
    made = imports.start(user=owner, file_name="a", size=len(data), chunks=[data])
    build = tree.build

    def stopped(chat):
        if chat.source == "chatgpt":
            assert page.post(f"/chats/import/{made.pk}/stop/").status_code == 302
        return build(chat)

    monkeypatch.setattr(tree, "build", stopped)
    monkeypatch.setattr(tracking, "BEAT", 0.0)
    imports.run(made.pk, 0)
    made.refresh_from_db()
    assert (made.status, made.added) == ("stopped", 1)
    assert "The chats so far are kept." in page.get("/chats/import/").content.decode()
    assert list(folder.iterdir()) == []
    monkeypatch.undo()
    assert counts(imported(owner, data)) == (1, 0, 1, 0)


def test_upload_without_a_script_shows_its_report(owner):
    page = Client()
    page.force_login(owner)
    assert b"multipart/form-data" in page.get("/chats/import/").content
    file = SimpleUploadedFile("<b>.json", json.dumps([CLAUDE, {"chat_messages": []}]).encode())
    assert page.post("/chats/import/", {"file": file})["Location"] == "/chats/import/"
    assert b'http-equiv="refresh"' in page.get("/chats/import/").content
    one = ChatImport.objects.get()
    imports.run(one.pk, 0)
    html = page.get("/chats/import/").content.decode()
    assert "It has no messages." in html
    assert "&lt;b&gt;.json" in html
    assert "http-equiv" not in html
    refused = page.post("/chats/import/", follow=True)
    assert "Choose a file first." in refused.content.decode()
    assert page.get("/chats/import/", headers={"Accept": "application/json"}).json()["added"] == 1
