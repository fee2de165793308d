"""Uploads and reading of documents: what is stored, refused, repeated and removed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.files.storage import storages
from django.utils import timezone

from chat.attachments.uploads import used_bytes
from chat.documents import binding, lifecycle, reading, storage, tracking, uploads
from chat.documents.models import Block, Document
from chat.documents.retrieval import indexing
from chat.errors import ChatError
from chat.models import Conversation, Project
from chatproject.lib import private_files
from chatproject.lib.sandbox import SandboxError
from tests.support import documents as some
from tests.support.documents import a_docx, a_pdf, a_zip, read, upload, uploaded

pytestmark = pytest.mark.usefixtures("valkey_url")


@pytest.fixture(autouse=True)
def folder(settings, tmp_path):
    settings.PRIVATE_ROOT = tmp_path / "private"
    return settings.PRIVATE_ROOT


@pytest.fixture
def events(monkeypatch) -> list[dict[str, Any]]:
    """What is published to the user's pages."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "chat.streaming.user_channel.publish", lambda group, data: found.append(json.loads(data))
    )
    return found


def blocks(document: Document) -> list[tuple[str, str]]:
    return list(document.blocks.order_by("position").values_list("kind", "text"))


def files(folder) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file()]


def refusal(user, content: bytes | str, name: str = "x.txt") -> ChatError:
    with pytest.raises(ChatError) as raised:
        upload(user, content, name)
    return raised.value


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("content", "name", "format", "found"),
    [
        (some.TEXT, "a.txt", "text", [("paragraph", "The lighthouse was built in 1874.")]),
        (some.MARKDOWN, "a.md", "markdown", [("heading", "Manual")]),
        (a_pdf(["A pump needs oil."]), "a.bin", "pdf", [("paragraph", "A pump needs oil.")]),
        (a_docx(), "a", "docx", [("heading", "Minutes"), ("paragraph", "We met on Tuesday.")]),
        (b"\xef\xbb\xbf" + "Grüße".encode(), "a.txt", "text", [("paragraph", "Grüße")]),
        ("Grüße an alle".encode("utf-16"), "a.txt", "text", [("paragraph", "Grüße an alle")]),
        ("Grüße an alle".encode("utf-16-le"), "a.txt", "text", [("paragraph", "Grüße an alle")]),
        (
            "صباح الخير يا صديقي".encode("utf-16-le"),
            "a.txt",
            "text",
            [("paragraph", "صباح الخير يا صديقي")],
        ),
        (
            ("Grüße " * 99).encode() + b"\xed\xa0\x80",
            "a.txt",
            "text",
            [("paragraph", "Grüße " * 99 + "\ufffd" * 3)],
        ),
    ],
    ids=[
        "text",
        "markdown",
        "pdf",
        "docx",
        "marked utf-8",
        "utf-16",
        "utf-16 without a mark",
        "arabic utf-16",
        "half an emoji",
    ],
)
def test_document_is_recognised_and_read(owner, content, name, format, found):
    document = uploaded(owner, content, name)
    assert (document.format, document.status, document.reason) == (format, "ready", "")
    assert blocks(document)[: len(found)] == found
    assert [one.position for one in document.blocks.all()] == list(range(document.blocks.count()))


@pytest.mark.django_db
def test_old_encoding_is_guessed_and_noted(owner):
    text = "Größe und Maße der Straße, überall schöne Häuser für Bürger. " * 5
    document = uploaded(owner, text.encode("cp1252"))
    assert blocks(document)[0][1].startswith("Größe und Maße der Straße")
    assert "encoding_guessed" in document.details["notes"]


@pytest.mark.django_db
def test_markdown_and_word_keep_their_structure(owner):
    document = uploaded(owner, some.MARKDOWN, "a.md")
    assert [one[0] for one in blocks(document)] == [
        *("heading", "paragraph", "heading", "table", "paragraph", "heading", "paragraph")
    ]
    assert document.blocks.get(kind="table").headings == ["Manual", "Pump"]
    assert document.blocks.last().headings == ["Manual", "Maintenance"]
    table = uploaded(owner, a_docx()).blocks.get(kind="table")
    assert (table.text, table.headings) == ("what | who\nBuy paint | Ben", ["Minutes", "Decisions"])


@pytest.mark.django_db
def test_pdf_pages_are_numbered_and_limited(owner, settings):
    content = a_pdf(["One.", "", "Three."])
    document = uploaded(owner, content)
    assert list(document.blocks.values_list("page", "text")) == [(1, "One."), (3, "Three.")]
    assert document.details["notes"] == {"pages": 3, "pages_without_text": 1}
    settings.DOCUMENT_MAX_PAGES = 2
    document = uploaded(owner, a_pdf(["One.", "Two.", "Four."]))
    assert (document.status, document.reason) == ("failed", "too_many_pages")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (a_pdf(["secret"], "password"), "encrypted"),
        (a_pdf(["", ""]), "no_text"),
        (b"%PDF-1.7\n" + b"rubbish" * 50, "broken_file"),
        (a_zip({"[Content_Types].xml": "<a", "word/document.xml": "<b"}), "broken_file"),
    ],
    ids=["locked", "scanned", "rubbish", "damaged docx"],
)
def test_unreadable_document_fails_with_its_reason(owner, content, reason):
    document = uploaded(owner, content)
    assert (document.status, document.reason) == ("failed", reason)
    assert not document.blocks.exists()


OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def encrypted_zip() -> bytes:
    """A zip whose file is marked as encrypted."""
    data = bytearray(a_zip({"_chat.txt": some.CHAT}))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    return bytes(data)


def damaged_zip() -> bytes:
    """A zip whose text cannot be unpacked."""
    data = bytearray(a_zip({"_chat.txt": some.CHAT * 500}, zipfile.ZIP_LZMA))
    for at in range(60, 70):
        data[at] ^= 0x55
    return bytes(data)


WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "empty"),
    "blanks": (lambda: b" \r\n\x00", "empty"),
    "image": (lambda: b"\x89PNG\r\n\x1a\n" + b"x" * 50, "image"),
    "binary": (lambda: bytes(range(256)) * 20, "cannot be read"),
    "old office": (lambda: OLE + b"x" * 50, "old Office"),
    "locked office": (lambda: OLE + "EncryptedPackage".encode("utf-16-le"), "password"),
    "damaged zip": (lambda: b"PK\x03\x04" + b"x" * 500, "damaged"),
    "photos": (lambda: a_zip({"a.jpg": b"x"}), "has no chat"),
    "nested zip": (lambda: a_zip({"a.zip": a_zip({"_chat.txt": some.CHAT})}), "other archives"),
    "two texts": (lambda: a_zip({"a.txt": some.CHAT, "b.txt": some.CHAT}), "several texts"),
    "other text": (lambda: a_zip({"a.txt": some.TEXT}), "has no chat"),
    "bomb": (lambda: a_zip({"_chat.txt": b"a" * 30_000_000}), "unpacks to far more"),
    "many files": (lambda: a_zip({str(at): b"" for at in range(20_001)}), "too many files"),
    "locked zip": (encrypted_zip, "password"),
    "damaged text": (damaged_zip, "damaged"),
    "slides": (lambda: a_zip({"ppt/a.xml": "", "[Content_Types].xml": ""}), "cannot be read"),
}


@pytest.mark.django_db
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_upload_is_refused_with_words(owner, folder, kind):
    make, sentence = WRONG[kind]
    error = refusal(owner, make())
    assert error.code == "bad_file"
    assert sentence in error.message
    assert not Document.objects.exists()
    assert files(folder) == []


@pytest.mark.django_db
def test_too_large_upload_stops_early(owner, settings, folder):
    settings.DOCUMENT_MAX_BYTES = 1_000

    def parts():
        yield b"x" * 600
        yield b"x" * 600
        raise AssertionError("it was read on")

    with pytest.raises(ChatError) as raised:
        uploads.add(user=owner, name="a", size=0, chunks=parts())
    assert raised.value.code == "file_too_large"
    assert files(folder) == []


@pytest.mark.django_db
def test_names_reach_no_file_system(owner, folder):
    document = uploaded(owner, some.TEXT, "../../etc/pass\u202ewd\x00.txt")
    assert document.name == "pass wd .txt"
    (path,) = files(folder)
    assert path == str(folder / document.file)


@pytest.mark.django_db
def test_same_file_is_the_same_document(owner, stranger, folder):
    first = uploaded(owner, some.TEXT, "a.txt")
    again = uploads.add(user=owner, name="b.txt", size=0, chunks=[some.TEXT.encode()])
    assert (again.document, again.is_new) == (first, False)
    assert len(files(folder)) == 1
    assert upload(stranger, some.TEXT) != first


@pytest.mark.django_db
def test_documents_share_the_space_of_files(owner, settings, folder):
    settings.ATTACHMENT_USER_BYTES = 2_000
    upload(owner, "x" * 1_500)
    assert used_bytes(owner) == 1_500
    assert refusal(owner, "y" * 1_000).code == "storage_full"
    assert len(files(folder)) == 1


@pytest.mark.django_db
def test_one_very_long_line_is_bounded(owner):
    document = uploaded(owner, "word " * 200_000)
    longest = max(len(text) for _kind, text in blocks(document))
    assert longest <= 8_000
    assert "".join(text for _kind, text in blocks(document)).count("word") == 200_000


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The lamp is lit at dusk, and it is never put out before the sun has come up.", "en"),
        ("Die Lampe wird am Abend angezündet und ist nicht vor dem Morgen aus.", "de"),
        ("灯塔建于一八七四年，坐落在港口外的一块岩石上，守塔人住在里面。", "zh"),
        ("とうだいは1874ねんにたてられ、みなとのそとのいわのうえにあります。", "ja"),
        ("12345 67890", ""),
    ],
)
def test_language_follows_from_the_text(owner, text, language):
    assert uploaded(owner, text).language == language


@pytest.mark.django_db
def test_document_read_again_loses_its_index(owner):
    document = uploaded(owner, some.TEXT)
    indexing.request([document.pk])
    work = indexing.claim(document.pk)
    assert work is not None
    assert indexing.make_chunks(work)
    assert document.chunks.exists()
    Document.objects.filter(pk=document.pk).update(status="failed")
    document.refresh_from_db()
    assert tracking.retry(document)
    read(document)
    assert (document.index_status, document.chunks.count(), document.status) == ("none", 0, "ready")
    assert not indexing.make_chunks(work)  # the job that was working on it


@pytest.mark.django_db
def test_failed_reading_leaves_no_rows(owner, monkeypatch):
    document = uploaded(owner, some.TEXT)
    before = blocks(document)
    Document.objects.filter(pk=document.pk).update(status="uploaded")

    def broken(*args: Any, **options: Any) -> Any:
        yield {"kind": "paragraph", "text": "half", "position": 0}
        raise SandboxError("too_much_memory")

    monkeypatch.setattr("chatproject.lib.sandbox.lines", broken)
    document = read(Document.objects.get(pk=document.pk))
    assert (document.status, document.reason) == ("failed", "too_much_memory")
    assert blocks(document) == before


@pytest.mark.django_db(transaction=True)
def test_progress_is_published(owner, events):
    document = read(upload(owner, some.TEXT))
    states = [one["status"] for one in events if one["type"] == "document.updated"]
    assert list(dict.fromkeys(states)) == ["parsing", "ready"]
    assert events[-1]["url"] == document.get_absolute_url()


@pytest.mark.django_db
def test_lost_reading_is_repeated_then_given_up(owner, valkey_client):
    document = upload(owner, some.TEXT)
    later = timezone.now() + timedelta(minutes=10)
    for attempt in range(1, tracking.ATTEMPTS + 1):
        assert tracking.claim(document.pk, attempt - 1) is not None
        assert tracking.claim(document.pk, attempt - 1) is None  # another job
        tracking.resume(later)
        document.refresh_from_db()
        assert document.attempt == attempt
    assert (document.status, document.reason) == ("failed", "interrupted")
    assert tracking.retry(document)
    assert read(document).status == "ready"


@pytest.mark.django_db
def test_superseded_attempt_changes_nothing(owner, monkeypatch):
    document = upload(owner, some.TEXT)
    spool = reading._spool

    def deleted_meanwhile(*args: Any) -> Any:
        end = spool(*args)
        lifecycle.delete(user=owner, document_id=document.pk)
        Document.all_objects.filter(pk=document.pk).update(attempt=7)
        return end

    monkeypatch.setattr(reading, "_spool", deleted_meanwhile)
    document = read(document)
    assert document.status == "parsing"
    assert not Block.objects.exists()


@pytest.mark.django_db
def test_deleted_document_is_restored_or_purged(owner, stranger, folder):
    document = uploaded(owner, some.TEXT)
    with pytest.raises(ChatError):
        lifecycle.delete(user=stranger, document_id=document.pk)
    _document, at = lifecycle.delete(user=owner, document_id=document.pk)
    assert not Document.objects.exists()
    assert lifecycle.undo_delete(user=stranger, at=at) == 0
    assert lifecycle.undo_delete(user=owner, at=at) == 1
    assert Document.objects.get().blocks.count() == 2
    lifecycle.delete(user=owner, document_id=document.pk)
    assert lifecycle.Purge().run(timezone.now() + timedelta(days=29)) == 0
    assert lifecycle.Purge().run(timezone.now() + timedelta(days=31)) == 1
    assert not Document.all_objects.exists()
    assert not Block.objects.exists()
    assert files(folder) == []


@pytest.mark.django_db
def test_restoring_a_document_uploaded_again_is_refused(owner):
    document = uploaded(owner, some.TEXT)
    _document, at = lifecycle.delete(user=owner, document_id=document.pk)
    again = upload(owner, some.TEXT)
    assert again != document
    with pytest.raises(ChatError) as raised:
        lifecycle.undo_delete(user=owner, at=at)
    assert raised.value.code == "not_allowed"
    assert list(Document.objects.all()) == [again]


@pytest.mark.django_db
def test_conversation_reads_its_own_and_its_projects_documents(
    owner, stranger, conversation, django_assert_num_queries
):
    own, other = uploaded(owner, some.TEXT), uploaded(owner, "Something else")
    with django_assert_num_queries(0):
        assert binding.of_conversation(conversation) == []
    binding.bind(user=owner, conversation_id=conversation.pk, document_ids=[own.pk])
    project = Project.objects.create(owner=owner, name="P")
    binding.set_project(other, project)
    Conversation.objects.filter(pk=conversation.pk).update(project=project)
    conversation = Conversation.objects.select_related("project").get(pk=conversation.pk)
    assert binding.of_conversation(conversation) == [own, other]
    theirs = uploaded(stranger, some.TEXT)
    with pytest.raises(ChatError) as raised:
        binding.bind(user=owner, conversation_id=conversation.pk, document_ids=[theirs.pk])
    assert raised.value.code == "not_found"
    lifecycle.delete(user=owner, document_id=other.pk)
    binding.unbind(user=owner, conversation_id=conversation.pk, document_id=own.pk)
    conversation = Conversation.objects.select_related("project").get(pk=conversation.pk)
    assert not conversation.has_documents
    assert binding.of_conversation(conversation) == []


@pytest.mark.django_db
def test_storage_of_django_holds_the_files(owner, settings, folder):
    settings.STORAGES = settings.STORAGES | {
        "documents": {"BACKEND": "django.core.files.storage.InMemoryStorage"}
    }
    document = uploaded(owner, some.TEXT)
    assert document.status == "ready"
    assert files(folder) == []
    assert b"".join(storage.parts(document.file)) == some.TEXT.encode()
    lifecycle.purge(document)
    assert not storages["documents"].exists(document.file)


@pytest.mark.django_db
def test_sweep_removes_files_without_a_row(owner, folder, monkeypatch):
    document = upload(owner, some.TEXT)
    lost = storage.keep(private_files.store([b"x"]))
    lost_table = private_files.store([b"x"], "datasets")
    monkeypatch.setattr(private_files, "KEPT_SECONDS", -1)
    purge = lifecycle.Purge()
    for _turn in range(lifecycle.FOLDERS):
        purge.run(timezone.now())
    assert files(folder) == [str(folder / document.file)]
    assert not storage.exists(lost)
    assert not private_files.path(lost_table).exists()


@pytest.mark.django_db
@pytest.mark.usefixtures("assistant")
def test_new_chat_begins_with_chosen_documents(owner, stranger, client):
    first, second = uploaded(owner, some.TEXT, "a.txt"), uploaded(owner, some.MARKDOWN, "b.md")
    client.force_login(owner)
    page = "/c/new/documents/"
    assert page in client.get("/").content.decode()
    assert "b.md" in client.get(page).content.decode()
    assert client.post(page)["Location"] == page  # none chosen
    chosen = {"document": [str(first.pk), str(second.pk)]}
    address = client.post(page, chosen)["Location"]
    conversation = Conversation.objects.get(owner=owner)
    assert address == conversation.get_absolute_url()
    assert binding.of_conversation(conversation) == [first, second]
    assert "b.md" in client.get(address).content.decode()

    client.force_login(stranger)
    assert client.post(page, chosen).status_code == 404
    assert stranger.conversations.count() == 0
