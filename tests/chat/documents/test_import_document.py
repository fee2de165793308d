"""The command that uploads a file as a document of a user."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from chat.documents import tracking
from chat.documents.models import Document
from chat.models import Project
from tests.support import documents as some
from tests.support.people import owner

__all__ = ["owner"]

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey_url")]


@pytest.fixture(autouse=True)
def folder(settings, tmp_path):
    settings.PRIVATE_ROOT = tmp_path / "private"


@pytest.fixture
def file(tmp_path) -> Path:
    path: Path = tmp_path / "notes.txt"
    path.write_text(some.TEXT)
    return path


def run(path: Path, user: str = "owner@example.org", **options: Any) -> str:
    out = io.StringIO()
    call_command(
        "import_document", str(path), user=user, stdout=out, stderr=io.StringIO(), **options
    )
    return out.getvalue().strip()


def refusal(path: Path, **options: Any) -> tuple[int, str]:
    with pytest.raises(CommandError) as raised:
        run(path, **options)
    return raised.value.returncode, str(raised.value)


def test_imported_file_is_a_document_of_a_project(owner, file):
    project = Project.objects.create(owner=owner, name="Lighthouses")
    id = run(file, project="Lighthouses")
    document = Document.objects.get(pk=id)
    assert (document.owner, document.project, document.name) == (owner, project, "notes.txt")
    assert some.read(document).status == "ready"
    assert run(file, project=str(project.pk), wait=True) == id


def test_import_waits_for_the_end(owner, file, tmp_path, monkeypatch):
    # The worker's job, at once.
    monkeypatch.setattr(tracking, "_enqueue", some.read)
    assert Document.objects.get(pk=run(file, wait=True)).status == "ready"
    scanned = tmp_path / "scan.pdf"
    scanned.write_bytes(some.a_pdf([""]))
    code, sentence = refusal(scanned, wait=True)
    assert (code, "no_text" in sentence) == (4, True)


def test_wrong_imports_have_codes_and_words(owner, file, tmp_path):
    image = tmp_path / "image.txt"
    image.write_bytes(b"\x89PNG\r\n\x1a\n")
    for path, options, code, words in (
        (file, {"user": "nobody@example.org"}, 1, "There is no user"),
        (file, {"project": "Ships"}, 1, "has no project Ships"),
        (tmp_path / "missing", {}, 1, "cannot be opened"),
        (tmp_path, {}, 1, "cannot be opened"),
        (image, {}, 3, "This is an image"),
        (file, {"wait": True, "seconds": 0}, 5, "was not read within 0 s"),
    ):
        found = refusal(path, **options)
        assert (found[0], words in found[1]) == (code, True), found
