"""Vectors of documents where the extension, the model or its vectors are not there, or others than before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib import import_module

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.urls import reverse

from chat.documents.models import Document, DocumentIndex
from chat.documents.retrieval import embedding, indexing, jobs, vectors
from chat.documents.retrieval.passages import QueryVector
from chat.llm.connections import close_connections
from chatproject.ops import doctor
from chatproject.ops.doctor import Check, Finding, Level, database
from tests.chat.documents.library import add_model, make_text
from tests.chat.documents.test_search import found, indexed
from tests.support.fake_llm.embeddings import vector_of

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url", "assistant"),
]


@pytest.fixture
def without_extension(monkeypatch) -> Iterator[None]:
    """A server without pgvector; its column is there again afterwards."""
    with connection.cursor() as cursor:
        cursor.execute("DROP EXTENSION vector CASCADE")
    with monkeypatch.context() as patched:
        for module, name in ((vectors, "STATE"), (database, "VECTORS")):
            absent = getattr(module, name).replace("name = 'vector'", "name = 'absent'")
            patched.setattr(module, name, absent)
        yield
    assert vectors.prepare().has_column


def finding() -> Finding:
    [one] = [
        one
        for one in doctor.examine([Check("x", database.check, seconds=30.0)])
        if one.part == "documents"
    ]
    return one


def test_server_without_pgvector_migrates_and_says_so(owner, provider, without_extension):
    add_model()
    import_module("chat.documents.migrations.0002_chunks").add_vectors(None, None)
    with pytest.raises(
        CommandError, match=r"pgvector 0\.7 or newer is needed, and it is not there"
    ):
        call_command("prepare_vectors")
    assert finding().level is Level.WARNING
    assert "Install pgvector" in finding().advice
    document = make_text(owner, "The rent is 480 euros.")
    indexed(document)
    assert found("rent", document).is_relevant
    assert asyncio.run(question()) is None
    assert provider.requests == []


async def question() -> QueryVector | None:
    made = await embedding.of_question("rent", user_id=1)
    await close_connections()
    return made


def test_command_adds_column_where_it_can(owner, capsys):
    add_model()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE documents_chunk DROP COLUMN embedding")
    assert "Run manage.py prepare_vectors" in finding().advice
    call_command("prepare_vectors")
    assert "The column is there." in capsys.readouterr().out
    assert finding().level is Level.OK


def test_site_without_model_searches_by_words(owner):
    document = make_text(owner, "The rent is 480 euros.")
    indexed(document)
    assert found("rent", document).is_relevant
    assert vectors.maintain_index(least=1) == ""
    assert finding().level is Level.OK
    assert "no model is marked" in finding().found


def test_vectors_of_other_size_leave_search_to_words(owner, provider, admin_client, caplog):
    model = add_model()
    document = make_text(owner, "The rent is 480 euros.")
    indexed(document)
    # Staff cannot change the size below its vectors, but a server can.
    page = reverse("admin:chat_languagemodel_change", args=[model.pk])
    answer = admin_client.post(page, {"name": model.name, "dimensions": "16"})
    assert "Documents have vectors of this model" in answer.content.decode()
    type(model).objects.update(dimensions=16)
    model.refresh_from_db()
    assert asyncio.run(question()) is None
    assert vectors.near([document.pk], 1, model, [*vector_of("rent")] * 2, 5) == []
    other = make_text(owner, "Dogs are not allowed.", name="other.md")
    indexing.request([other.pk])
    asyncio.run(index(other))
    assert "vectors of 8 numbers, and the model's row has 16" in caplog.text
    lost = {"attempt": indexing.MOST_ATTEMPTS, "beat_at": "2020-01-01T00:00Z"}
    DocumentIndex.objects.update(**lost)
    asyncio.run(index(other))
    other.refresh_from_db()
    assert (other.index_status, other.index.reason) == ("ready", "no_vectors")
    assert found("dogs", document, other).is_relevant
    assert "1 documents are found by their words alone" in finding().found


async def index(document: Document) -> None:
    await jobs.index(str(document.pk))
    await close_connections()
