"""Documents of the REST API: upload, content, tables, and the documents of conversations."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from accounts import api_keys
from accounts.models import User
from chat.documents.models import Document
from chat.models import Message, MessagePart
from tests.chat.api.test_rest_refusals import caller, problem
from tests.support import documents as some
from tests.support.conversations import begin
from tests.support.people import assistant, owner, stranger

__all__ = ["assistant", "owner", "stranger"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

DOCUMENTS = "/api/v1/documents"
CHATS = "/api/v1/conversations"


@pytest.fixture(autouse=True)
def folder(settings, tmp_path):
    settings.PRIVATE_ROOT = tmp_path / "private"


@pytest.fixture
def call(owner: User) -> Any:
    """Send a request with a key of the owner."""
    return caller(owner)


def post_file(user: User, content: bytes | str, name: str, **fields: str) -> Any:
    """Upload a file with a key of a user."""
    secret = api_keys.create(user, api_keys.Terms(name="Upload", scopes=["documents"]))[1]
    data = content.encode() if isinstance(content, str) else content
    client = Client(headers={"authorization": f"Bearer {secret}"})
    return client.post(DOCUMENTS, {"file": SimpleUploadedFile(name, data), **fields})


def read(answer: Any) -> str:
    """Do the job that reads an uploaded document; return its address."""
    some.read(Document.objects.get(pk=answer.json()["id"]))
    return f"{DOCUMENTS}/{answer.json()['id']}"


def test_uploaded_chat_is_read_listed_and_deleted(owner, call):
    answer = post_file(owner, some.CHAT, "chat.txt")
    assert answer.status_code == 201, answer.content
    assert (answer.json()["status"], answer.json()["error"]) == ("uploaded", None)
    address = read(answer)
    assert post_file(owner, some.CHAT, "again.txt").status_code == 200
    found = call("GET", address).json()
    assert (found["status"], found["kind"], found["name"]) == ("ready", "chat", "chat.txt")
    assert call("GET", DOCUMENTS).json()["items"] == [found]

    first = call("GET", f"{address}/blocks?limit=2").json()
    rest = call("GET", f"{address}/blocks?cursor={first['next']}").json()
    positions = [one["position"] for one in first["items"] + rest["items"]]
    assert positions == list(range(found["details"]["blocks"]))
    assert {one["sender"] for one in first["items"] + rest["items"]} >= {"Anna", "Ben"}
    figures = call("GET", f"{address}/statistics").json()["statistics"]
    assert figures["totals"]["messages"] == found["details"]["counts"]["message"]

    assert call("DELETE", address).status_code == 204
    assert problem(call("GET", address)) == (404, "not_found")


def test_table_is_described_and_read_in_parts(owner, call, settings):
    settings.TABLE_QUERY_ROWS = 3
    csv = "price,day\n" + "".join(f"{number},2024-05-0{number}\n" for number in range(1, 6))
    address = read(post_file(owner, csv, "prices.csv"))
    [table] = call("GET", f"{address}/tables").json()["items"]
    assert (table["name"], table["rows"], table["preview"][0]) == ("prices", 5, [1, "2024-05-01"])
    assert table["columns"] == [
        {"name": "price", "type": "integer"},
        {"name": "day", "type": "date"},
    ]
    first = call("GET", f"{address}/tables/prices/csv")
    assert first.content.decode().split() == [
        "price,day",
        *(f"{number},2024-05-0{number}" for number in (1, 2, 3)),
    ]
    rest = call("GET", f"{address}/tables/prices/csv?first={first['X-Next-Row']}")
    assert rest.content.decode().split()[1:] == ["4,2024-05-04", "5,2024-05-05"]
    assert "X-Next-Row" not in rest


def test_wrong_uploads_are_refused(owner, settings):
    settings.DOCUMENT_MAX_BYTES = 100
    assert problem(post_file(owner, b"\x89PNG\r\n\x1a\n", "a.png")) == (415, "bad_file")
    assert problem(post_file(owner, "a" * 101, "a.txt")) == (413, "file_too_large")
    assert problem(post_file(owner, "a", "a.txt", project="x")) == (422, "invalid_request")
    secret = api_keys.create(owner, api_keys.Terms(name="Test"))[1]
    for kind, status, code in (
        ("multipart/form-data", 400, "invalid_form"),
        ("application/json", 422, "invalid_request"),
    ):
        client = Client(headers={"authorization": f"Bearer {secret}"})
        answer = client.generic("POST", DOCUMENTS, "{}", content_type=kind)
        assert problem(answer) == (status, code), kind


def test_conversation_is_bound_and_released(owner, stranger, assistant, call):
    address = read(post_file(owner, some.TEXT, "notes.txt"))
    id = address.rpartition("/")[2]
    chat = call("POST", CHATS, f'{{"documents": ["{id}"]}}').json()["id"]
    bound = f"{CHATS}/{chat}/documents"
    assert [one["id"] for one in call("GET", bound).json()["items"]] == [id]
    assert call("DELETE", f"{bound}/{id}").status_code == 204
    assert call("GET", bound).json()["items"] == []
    assert call("PUT", f"{bound}/{id}").json()["id"] == id
    assert [one["id"] for one in call("GET", bound).json()["items"]] == [id]

    # Neither a key without the scope nor another user binds a chat to it, and no chat is left behind.
    body = f'{{"documents": ["{id}"]}}'
    assert problem(caller(owner, scopes=["write"])("POST", CHATS, body)) == (403, "missing_scope")
    assert problem(caller(stranger)("POST", CHATS, body)) == (404, "not_found")
    assert stranger.conversations.count() == 0


def test_messages_have_the_parts_of_tools(owner, assistant, call):
    chat = begin(owner, assistant, title="Chat")
    reply = Message.objects.create(conversation=chat, role="assistant", text="See [1].")
    chat.leaf = reply
    chat.save(update_fields=["leaf"])
    data = {"number": 1, "document": "x", "first": 0, "last": 1}
    MessagePart.objects.create(message=reply, position=0, kind="reasoning", data={"text": "Hm"})
    MessagePart.objects.create(message=reply, position=1, kind="citation", data=data)
    [found] = call("GET", f"{CHATS}/{chat.pk}/messages").json()["items"]
    assert found["parts"] == [{"kind": "citation", "data": data}]
