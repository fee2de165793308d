"""Files of users: what is taken and refused, where it is stored, who sees it, and when it goes."""

from __future__ import annotations

import io
import os
from datetime import timedelta
from zlib import crc32

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from PIL import Image

from billing.models import Plan
from chat.attachments import images, names, overview, texts, uploads
from chat.attachments.sweep import Sweep
from chat.errors import ChatError
from chat.models import Attachment, Conversation, Message, MessageAttachment
from chat.recovery.retention import Retention
from chatproject.lib import private_files
from tests.support.conversations import begin
from tests.support.files import announced_png, attach, picture
from tests.support.threads import race

pytestmark = pytest.mark.usefixtures("valkey_url")


@pytest.fixture(autouse=True)
def folder(settings, tmp_path):
    settings.PRIVATE_ROOT = tmp_path / "private"
    return settings.PRIVATE_ROOT


def stored_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def give(conversation: Conversation, *found: Attachment) -> Message:
    """Add a message with attachments."""
    message = Message.objects.create(
        conversation=conversation, role="user", attached=[one.snapshot for one in found]
    )
    for one in found:
        MessageAttachment.objects.create(message=message, attachment=one)
    Attachment.objects.filter(pk__in=[one.pk for one in found]).update(expires_at=None)
    return message


def post(user, content: bytes | None):
    client = Client()
    client.force_login(user)
    file = "a text" if content is None else SimpleUploadedFile("a.png", content, "image/png")
    return client.post("/attachments/", {"file": file}, headers={"accept": "application/json"})


def colour(image: Image.Image, x: int) -> tuple[int, ...]:
    found = image.convert("RGB").getpixel((x, 5))
    assert isinstance(found, tuple)
    return found


# --- Images -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "stored"),
    [
        ("PNG", {"mode": "RGBA"}, "PNG"),
        ("PNG", {"mode": "P"}, "PNG"),
        ("PNG", {"mode": "P", "transparency": 0}, "PNG"),
        ("JPEG", {}, "JPEG"),
        ("JPEG", {"mode": "CMYK"}, "JPEG"),
        ("WEBP", {}, "PNG"),
        ("GIF", {}, "PNG"),
        ("AVIF", {}, "PNG"),
    ],
)
def test_image_is_encoded_anew(kind, options, stored):
    found = images.encode(io.BytesIO(picture(kind, **options)))
    assert (found.width, found.height) == (60, 40)
    with Image.open(io.BytesIO(found.data)) as image:
        assert (image.format, image.size) == (stored, (60, 40))
        red, blue = colour(image, 5), colour(image, 55)
    assert red[0] > 180 > 60 > red[2]
    assert blue[2] > 150 > 60 > blue[0]
    assert found.content_type == f"image/{stored.lower()}"


def test_photo_is_turned_upright_without_its_place():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "MAKER-OF-THE-CAMERA"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    original = picture("JPEG", (600, 400), exif=exif, comment=b"A-COMMENT")
    original += b"<script>TRAILER" + b"\xff\xda" * 200  # of a film, not of scans
    found = images.encode(io.BytesIO(original))
    with Image.open(io.BytesIO(found.data)) as image:
        assert image.size == (found.width, found.height) == (400, 600)
        assert colour(image, 200)[0] > 200  # the left half is at the top now
        assert dict(image.getexif()) == {}
    for secret in (b"MAKER", b"A-COMMENT", b"TRAILER", b"Exif"):
        assert secret in original
        assert secret not in found.data + found.thumbnail


def test_large_image_becomes_smaller():
    noise = Image.effect_noise((3_000, 2_000), 90).convert("RGB")
    made = io.BytesIO()
    noise.save(made, "PNG", compress_level=1)
    found = images.encode(made)
    assert (found.width, found.height) == (2_048, 1_365)
    assert len(found.data) <= images.MAX_BYTES
    assert len(found.thumbnail) <= 60_000
    with Image.open(io.BytesIO(found.thumbnail)) as thumbnail:
        assert max(thumbnail.size) == images.THUMBNAIL_SIDE


# --- Refused ----------------------------------------------------------------------------------

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def repeated(kind: str, part: bytes, count: int) -> bytes:
    """An image with a part of no use, many times before its pixels."""
    original = picture(kind, (60, 40))
    at = original.index(b"IDAT") - 4 if kind == "PNG" else 2
    return original[:at] + part * count + original[at:]


def scanned(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    original = picture("JPEG", (60, 40), progressive=True)
    last = original[original.rindex(b"\xff\xda") : -2]
    return original[:-2] + last * count + original[-2:]


WRONG = [
    scanned(100),
    repeated("JPEG", b"\xff\xe5\x00\x02", 20_000),
    repeated("JPEG", b"\x00", 2_000),
    repeated("JPEG", b"\xff\xd0", 20_000),
    repeated("PNG", b"\0\0\0\0prVt" + crc32(b"prVt").to_bytes(4, "big"), 20_000),
    b"",
    b" \n\t ",
    picture("JPEG", (600, 400))[:900],
    b"\x89PNG\r\n\x1a\n" + b"\0" * 50,
    b"GIF89a" + SVG,
    announced_png(60_000, 60_000),
    announced_png(6_000, 6_000),
    announced_png(40_000, 1),
    b"PK\x03\x04" + bytes(range(256)) * 20,
    b"%PDF-1.7\n" + bytes(range(256)),
    b"MZ\x90\x00" + bytes(200),
    bytes(1_000),
    b"\x00\x00\x00\x18ftypheic" + bytes(100),
    b"\xef\xbb\xbf\xff\xfe text",
]


def test_wrong_file_is_refused_and_leaves_nothing(owner, folder, monkeypatch):
    for content in (b"x" * 1_000_001, b"x" * 4_100_000):
        response = post(owner, content)
        assert (response.status_code, response.json()["code"]) == (413, "file_too_large")
    assert post(owner, bytes(9)).status_code == 415
    assert post(owner, None).status_code == 415
    for content in WRONG:
        with pytest.raises(ChatError, match="bad_file"):
            uploads.add(user=owner, name="a", size=len(content), file=io.BytesIO(content))
    images.encode(io.BytesIO(scanned(20)))
    monkeypatch.setattr(images, "MAX_SCANNED", 20 * 60 * 40)
    with pytest.raises(ChatError, match="too many parts"):
        images.encode(io.BytesIO(scanned(20)))
    assert not stored_files(folder)
    assert not Attachment.objects.exists()


def test_limits_of_size_space_and_number_are_kept(owner, settings, folder):
    settings.ATTACHMENT_MAX_BYTES = 1_000
    assert post(owner, b"x" * 1_001).json()["code"] == "file_too_large"
    settings.ATTACHMENT_USER_BYTES = 1_500
    assert post(owner, b"x" * 1_000).status_code == 201
    refused = post(owner, b"x" * 501)
    assert (refused.status_code, refused.json()["code"]) == (413, "storage_full")
    assert len(stored_files(folder)) == 1
    assert post(owner, b"x" * 500).status_code == 201
    Plan.objects.create(slug="all", name="All", is_default=True, upload_mb=1)
    assert post(owner, b"x" * 500).status_code == 201
    taken = [attach_row(owner) for _ in range(11)]
    with pytest.raises(ChatError, match="too_many"), transaction.atomic():
        uploads.take(owner, [one.pk for one in taken])


def attach_row(owner) -> Attachment:
    return Attachment.objects.create(owner=owner, kind="text", name="a", size=0, file="none")


def test_file_that_cannot_be_written_is_refused(owner, settings, tmp_path):
    settings.PRIVATE_ROOT = tmp_path / "file"
    settings.PRIVATE_ROOT.write_text("not a folder")
    response = post(owner, b"text")
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert not Attachment.objects.exists()


# --- Texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Grüße, 世界 👩‍🚀".encode(), "Grüße, 世界 👩‍🚀"),
        (b"\xef\xbb\xbfa\r\nb\rc", "a\nb\nc"),
        ("Ω".encode("utf-16"), "Ω"),
        ("Ω".encode("utf-32"), "Ω"),
        (b"Gr\xfc\xdfe \x80", "Grüße €"),
        (b"\x1b[31mred\x1b[0m log", "\x1b[31mred\x1b[0m log"),
        (SVG, SVG.decode()),
        (b"#!/bin/sh\nrm -rf /", "#!/bin/sh\nrm -rf /"),
    ],
)
def test_text_is_decoded(content, expected):
    found = texts.read(content)
    assert found.text == expected
    assert 0 < found.tokens <= found.counted <= found.bound + 1
    assert found.bound >= len(expected.encode())


def test_text_limits_are_those_of_its_utf8():
    assert texts.read(b"\xfc" * 500_000).text == "ü" * 500_000
    with pytest.raises(ChatError, match="file_too_large"):
        texts.read(b"\xfc" * 500_001)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\notes.txt", "notes.txt"),
        ("gpj.\u202efdp.exe", "gpj. fdp.exe"),
        ('a"; filename=b\r\nX: y.txt', 'a"; filename=b X: y.txt'),
        ("👩\u200d🚀 plan.md", "👩\u200d🚀 plan.md"),
        ("", "File"),
        ("..", "File"),
        ("\u202e\u200d", "File"),
        ("x" * 300 + ".txt", "x" * 115 + "….txt"),
        ("\ud800.txt", ".txt"),
    ],
)
def test_name_is_one_line_without_deception(name, expected):
    assert names.clean(name) == expected


# --- Who sees it ------------------------------------------------------------------------------


def test_file_is_served_without_any_power(owner):
    found = attach(owner, SVG, 'ev"il\u202e.svg')
    client = Client()
    client.force_login(owner)
    response = client.get(f"/attachments/{found.pk}/")
    assert response.content == SVG
    assert response["Content-Type"] == "text/plain; charset=utf-8"
    assert response["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Content-Disposition"] == 'inline; filename="ev\\"il .svg"'
    saved = client.get(f"/attachments/{found.pk}/?download")
    assert saved["Content-Disposition"].startswith("attachment; ")
    assert client.get(f"/attachments/{found.pk}/thumbnail/").status_code == 404
    image = attach(owner, picture("WEBP"), "page.html")
    response = client.get(f"/attachments/{image.pk}/")
    assert response["Content-Type"] == "image/png"
    assert response["Content-Disposition"] == 'inline; filename="page.png"'
    assert client.get(f"/attachments/{image.pk}/thumbnail/")["Content-Type"] == "image/jpeg"
    private_files.remove(image.file)
    assert client.get(f"/attachments/{image.pk}/").status_code == 404


def test_file_is_shown_to_readers_of_its_chat_alone(owner, stranger, conversation):
    found = attach(owner)
    other, mine = Client(), Client()
    other.force_login(stranger)
    mine.force_login(owner)
    paths = [f"/attachments/{found.pk}/", f"/attachments/{found.pk}/thumbnail/"]
    assert [other.get(path).status_code for path in paths] == [404, 404]
    assert other.post(f"/attachments/{found.pk}/remove/").status_code == 204
    assert Client().get(paths[0]).status_code == 302
    with pytest.raises(ChatError, match="file_missing"), transaction.atomic():
        uploads.take(stranger, [found.pk])
    give(conversation, found)
    mine.post(f"/attachments/{found.pk}/remove/")  # a sent one stays
    assert [mine.get(path).status_code for path in paths] == [200, 200]
    assert other.get(paths[0]).status_code == 404
    Conversation.objects.update(deleted_at=timezone.now())
    assert [mine.get(path).status_code for path in paths] == [404, 404]


# --- When it goes -----------------------------------------------------------------------------


def test_unsent_file_is_removed_at_once_or_after_a_day(owner, folder):
    client = Client()
    client.force_login(owner)
    for _ in range(2):  # also when it is removed already
        found = attach(owner)
        for _again in range(2):
            assert client.post(f"/attachments/{found.pk}/remove/").status_code == 204
    assert not stored_files(folder)
    attach(owner)
    now = timezone.now()
    assert Sweep().run(now + timedelta(hours=23)) == 0
    assert Sweep().run(now + timedelta(hours=25)) == 1
    assert not stored_files(folder)
    assert not Attachment.objects.exists()


def test_file_goes_with_the_last_message_that_has_it(owner, assistant, folder):
    found = attach(owner)
    first, second = begin(owner, assistant), begin(owner, assistant)
    give(first, found)
    give(second, found)
    Conversation.objects.filter(pk=first.pk).update(deleted_at=timezone.now() - timedelta(days=40))
    assert Retention().purge(timezone.now()) == 1
    assert Sweep().run(timezone.now()) == 0
    assert Attachment.objects.get().expires_at is None
    assert len(stored_files(folder)) == 2
    second.delete()
    assert Sweep().run(timezone.now()) == 1
    assert not stored_files(folder)


def test_files_without_a_row_are_removed_when_old(owner, folder):
    kept, lost = attach(owner), attach(owner)
    Attachment.objects.filter(pk=lost.pk)._raw_delete("default")  # without the signal
    fresh = private_files.store([b"x"], uploads.FOLDER)
    long_ago = timezone.now().timestamp() - 2 * private_files.KEPT_SECONDS
    for name in (kept.file, kept.thumbnail, lost.file, lost.thumbnail):
        os.utime(private_files.path(name), (long_ago, long_ago))
    with private_files.workplace() as at_work:
        left_by_a_lost_process = at_work.with_name(f"{at_work.name}-lost")
        left_by_a_lost_process.mkdir()
        os.utime(left_by_a_lost_process, (long_ago, long_ago))
        private_files.sweep()  # of files in no folder
        assert at_work.is_dir()
        assert not left_by_a_lost_process.exists()
    sweep = Sweep()
    assert sum(sweep.run(timezone.now()) for _ in range(256)) == 2
    left = {private_files.path(name) for name in (kept.file, kept.thumbnail, fresh)}
    assert set(stored_files(folder)) == left


def test_sweep_needs_as_many_queries_for_more_files(owner):
    counts = []
    for number in (3, 6):
        for _ in range(number):
            attach_row(owner)
        Attachment.objects.update(expires_at=timezone.now() - timedelta(days=1))
        with CaptureQueriesContext(connection) as queries:
            Sweep().run(timezone.now())
        counts.append(len(queries))
    assert counts[0] == counts[1]


# --- The page of all files --------------------------------------------------------------------


def test_files_are_listed_and_deleted(owner, stranger, conversation, folder, settings):
    kept, gone, unsent = (
        attach(owner, name="kept.png"),
        attach(owner, b"x", "gone.txt"),
        attach(owner),
    )
    theirs = attach(stranger)
    message = give(conversation, kept, gone)
    Conversation.objects.update(leaf=message)
    client = Client()
    client.force_login(owner)
    page = client.get("/files/").content.decode()
    assert "kept.png" in page
    assert f'href="/c/{conversation.pk}/"' in page
    assert "Not sent yet" in page
    assert str(theirs.pk) not in page
    assert "in use" in client.get("/settings/data/").content.decode()
    chosen = {"file": [str(gone.pk), str(unsent.pk), str(theirs.pk), "no id"]}
    assert "2 files are deleted." in client.post("/files/", chosen, follow=True).content.decode()
    message.refresh_from_db()
    assert [one.get("deleted", False) for one in message.attached or ()] == [False, True]
    assert set(Attachment.objects.all()) == {kept, theirs}
    assert len(stored_files(folder)) == 4
    assert "gone.txt" in client.get(f"/c/{conversation.pk}/").content.decode()
    assert "Select the files" in client.post("/files/", follow=True).content.decode()


def test_pages_of_files_need_as_many_queries(owner, conversation, monkeypatch):
    monkeypatch.setattr(overview, "FILES", 4)
    give(conversation, *(attach_row(owner) for _ in range(9)))
    client = Client()
    client.force_login(owner)
    seen, address, counts = [], "/files/", []
    while address:
        with CaptureQueriesContext(connection) as queries:
            page = client.get(address)
        counts.append(len(queries))
        shown = page.context["listed"]
        seen += [one.attachment.pk for one in shown.files]
        address = f"/files/?before={shown.next}" if shown.next else ""
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 9
    assert len(set(counts)) == 1
    assert client.get("/files/?before=x").status_code == 200


# --- Races ------------------------------------------------------------------------------------


def test_file_that_is_being_sent_is_not_swept(owner, conversation):
    found = attach(owner)
    late = timezone.now() + timedelta(days=2)
    with transaction.atomic():
        uploads.take(owner, [found.pk])
        assert race([lambda: Sweep().run(late)]) == [0]
        give(conversation, found)
    assert Sweep().run(late) == 0
    assert Attachment.objects.get().expires_at is None


def test_file_that_loses_its_last_message_during_a_sweep_goes(owner, conversation):
    found = attach(owner)
    message = give(conversation, found)
    Attachment.objects.update(expires_at=timezone.now())  # as if another message had just lost it
    with transaction.atomic():
        MessageAttachment.objects.filter(message=message).delete()
        assert race([lambda: Sweep().run(timezone.now())]) == [
            0
        ]  # locked, and its link still shows
    assert Sweep().run(timezone.now() + timedelta(seconds=1)) == 1
    assert not Attachment.objects.exists()
