"""Refusals and pages of the REST API: shapes of errors, odd input, paging, and the reference."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.utils import timezone

from accounts import api_keys
from accounts.models import Scope, User
from billing.ledger import signup
from chat.documents import binding
from chat.documents.models import Dataset
from chat.insights.models import Category
from chat.models import Conversation, ConversationShare, Message, MessagePart, Run
from chat.webhooks import editing
from tests.chat.documents.library import make_text
from tests.support import money
from tests.support.conversations import add_turns, begin
from tests.support.people import assistant, owner, stranger

__all__ = ["assistant", "owner", "stranger"]

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url", "assistant"),
]

RUNS = "/api/v1/runs"
DEEP = "[" * 100_000

TABLE = {"title": "Prices", "rows": 1, "columns": [], "preview": []}

BAD = [
    ("POST", RUNS, "{", 400, "invalid_json"),
    ("POST", RUNS, DEEP, 400, "invalid_json"),
    ("POST", RUNS, '{"text": NaN}', 400, "invalid_json"),
    ("POST", RUNS, b"\xff", 400, "invalid_json"),
    ("POST", RUNS, "[]", 422, "invalid_request"),
    ("POST", RUNS, '{"text": "a", "other": 1}', 422, "invalid_request"),
    ("POST", RUNS, '{"text": "a\\u0000b"}', 422, "invalid_request"),
    ("POST", RUNS, '{"text": "\\ud800"}', 422, "invalid_request"),
    ("POST", RUNS, '{"text": "a", "temperature": 3}', 422, "invalid_request"),
    ("POST", RUNS, '{"text": "a", "model": 9007199254740993}', 422, "invalid_request"),
    ("POST", RUNS, '{"text": " "}', 400, "empty_text"),
    ("POST", RUNS, '{"text": "a", "model": 9007199254740991}', 409, "model_unavailable"),
    ("POST", "/api/v1/conversations", '{"title": " "}', 422, "invalid_request"),
    ("GET", "/api/v1/conversations?cursor=x", "", 422, "invalid_cursor"),
    ("GET", "/api/v1/conversations?limit=0", "", 422, "invalid_request"),
    ("GET", "/api/v1/conversations?cursor=%00", "", 400, "odd_character"),
    ("GET", "/api/v1/ledger?cursor=-1", "", 422, "invalid_cursor"),
    ("GET", "/api/v1/ledger?limit=101", "", 422, "invalid_request"),
    ("GET", "/api/v1/search?q=a&cursor=x", "", 422, "invalid_cursor"),
    ("POST", f"{RUNS}?wait=1", '{"text": "a"}', 422, "unknown_parameter"),
    ("GET", "/api/v1/usage?first=2026-01-02&last=2026-01-01", "", 422, "invalid_request"),
    ("GET", "/api/v1/usage?first=0001-01-01&last=9999-12-31", "", 422, "invalid_request"),
    ("GET", "/api/v1/usage?last=0001-01-01", "", 422, "invalid_request"),
    ("GET", "/api/v1/search", "", 422, "invalid_request"),
    ("PUT", "/api/v1/conversations", "{}", 405, "method_not_allowed"),
    ("GET", "/api/v1/runs/not-an-id", "", 404, "unknown_url"),
    ("GET", "/api/v2/", "", 404, "unknown_url"),
]


def caller(user: User, **terms: Any) -> Any:
    """A function that sends a request with a new key of a user."""
    secret = api_keys.create(user, api_keys.Terms(name="Test", **terms))[1]
    client = Client(headers={"authorization": f"Bearer {secret}", "accept": "*/*"})

    def send(method: str, path: str, body: str | bytes = "", **headers: str) -> Any:
        return client.generic(method, path, body, content_type="application/json", headers=headers)

    return send


@pytest.fixture
def call(owner: User) -> Any:
    """Send a request with a key of the owner."""
    return caller(owner)


def problem(response: Any) -> tuple[int, str]:
    """The status and the code of an error."""
    return response.status_code, json.loads(response.content)["code"]


def test_refusals_have_codes_and_request_ids(call):
    for method, path, body, status, code in BAD:
        answer = call(method, path, body)
        assert answer.status_code == status, (path, body[:40], answer.content)
        found = json.loads(answer.content)
        assert found["code"] == code, (path, body[:40])
        assert found["message"]
        assert "request_id" in found


def test_lists_are_paged_with_constant_queries(
    call, owner, assistant, django_assert_max_num_queries
):
    for number in range(7):
        add_turns(owner, begin(owner, assistant, title=f"Chat {number}"), 3)

    def ids(path: str, limit: int) -> list[str]:
        found: list[str] = []
        cursor = ""
        while cursor is not None:
            with django_assert_max_num_queries(8):
                page = call("GET", f"{path}limit={limit}&cursor={cursor}").json()
            found += [one["id"] for one in page["items"]]
            cursor = page["next"]
        return found

    chats = ids("/api/v1/conversations?", 3)
    assert len(chats) == len(set(chats)) == 7
    assert chats == ids("/api/v1/conversations?", 100)
    tree = f"/api/v1/conversations/{chats[0]}/messages?of=tree&"
    messages = ids(tree, 2)
    assert messages == ids(tree, 100)
    assert messages == ids(f"/api/v1/conversations/{chats[0]}/messages?", 100)


def test_every_list_has_cursor_and_limit(owner: User, assistant, client: Client):
    chat = begin(owner, assistant, title="Chat")
    add_turns(owner, chat, 3)
    for number in range(3):
        begin(owner, assistant, title=f"Question {number}")
    account = signup.account_of(owner.pk)
    money.grant(account, 1000)
    for model in ("one", "two", "three"):
        money.spend(account, 10, model=model)
        hook = editing.Terms(name=model, url="https://example.org/", events=["run.done"])
        webhook = editing.create(owner, hook)
        category = Category.objects.create(slug=model, name=model, price=1, kind="text")
        category.types.create(key="a", name="A", prompt="Hm", schema={"type": "object"})
    for _message in range(3):
        editing.send_test(webhook)
    bought, *others = [
        make_text(owner, "One.", "Two.", "Three.", name=name) for name in ("a", "b", "c")
    ]
    tables = [dict(TABLE, name=name) for name in ("one", "two", "three")]
    Dataset.objects.create(document=bought, file="none", size=1, tables=tables)
    binding.bind(
        user=owner, conversation_id=chat.pk, document_ids=[bought.pk, *(one.pk for one in others)]
    )
    call = caller(owner, scopes=Scope.values)
    document = client.get("/api/v1/openapi.json").json()
    lists = []
    for path, methods in document["paths"].items():
        answer = methods.get("get", {}).get("responses", {}).get("200", {})
        schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
        found = document["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2])
        if "items" not in (found or {}).get("properties", {}):
            continue
        assert {"next", "items"} <= set(found["required"]), path
        declared = {one["name"]: one["schema"] for one in methods["get"]["parameters"]}
        assert (declared["limit"]["minimum"], declared["limit"]["maximum"]) == (1, 100), path
        assert "cursor" in declared, path
        lists.append(path)
    assert len(lists) >= 8
    for path in lists:
        path = path.format(conversation_id=chat.pk, webhook_id=webhook.pk, document_id=bought.pk)
        at = f"{path}?q=question&" if path.endswith("search") else f"{path}?"
        whole = call("GET", at).json()["items"]
        assert len(whole) >= 3, path
        cursor, pages = "", []
        while cursor is not None:
            page = call("GET", f"{at}limit=2&cursor={cursor}").json()
            pages.append(page["items"])
            cursor = page["next"]
        # The path of messages is read from its end.
        pages = pages[::-1] if path.endswith("messages") else pages
        assert [item for page in pages for item in page] == whole, path
        assert max(map(len, pages)) == 2, path


def test_unknown_parameters_are_named(call):
    for path in ("/api/v1/balance?a=1&b", "/api/v1/ledger?b=&limit=3&a=2"):
        answer = call("GET", path)
        assert problem(answer) == (422, "unknown_parameter")
        assert [one["field"] for one in answer.json()["fields"]] == ["a", "b"]
    assert "limit" in answer.json()["fields"][0]["message"]
    assert problem(call("GET", f"{RUNS}/{uuid4()}?after=1")) == (422, "unknown_parameter")


def test_reference_shows_operations_without_scripts(client: Client):
    document = client.get("/api/v1/openapi.json").json()
    page = client.get("/api/v1/docs/")
    html = page.content.decode()
    for path, methods in document["paths"].items():
        assert f"<code>{path}</code>" in html
        for method, operation in methods.items():
            assert operation["security"], (method, path)
    assert "<code>Last-Event-ID</code>" in html
    assert "`" not in html
    assert "<script" not in html
    assert not re.findall(r'(?:href|src)="https?://', html)
    assert "script-src" in page.headers["Content-Security-Policy"]


def test_other_users_objects_are_not_found(call, stranger: User, assistant):
    foreign = begin(stranger, assistant)
    [prompt, reply] = add_turns(stranger, foreign, 1)
    run = Run.objects.get(message=reply)
    chat = f"/api/v1/conversations/{foreign.pk}"
    everywhere = (
        ("GET", chat, ""),
        ("PATCH", chat, '{"title": "Mine"}'),
        ("DELETE", chat, ""),
        ("GET", f"{chat}/messages", ""),
        ("GET", f"/api/v1/conversations?project={uuid4()}", ""),
        ("GET", f"{RUNS}/{run.pk}", ""),
        ("GET", f"{RUNS}/{run.pk}/events", ""),
        ("GET", f"{RUNS}/{run.pk}/wait", ""),
        ("POST", f"{RUNS}/{run.pk}/stop", ""),
        ("POST", RUNS, json.dumps({"text": "Hi", "conversation": str(foreign.pk)})),
        ("POST", RUNS, json.dumps({"text": "Hi", "parent": str(prompt.pk)})),
    )
    for method, path, body in everywhere:
        assert problem(call(method, path, body)) == (404, "not_found"), (method, path)
    foreign.refresh_from_db()
    assert (foreign.deleted_at, Run.objects.count()) == (None, 1)


def test_reader_by_share_sees_texts_alone(call, owner: User, stranger: User, assistant, settings):
    settings.SHARE_WITH_USERS = True
    shared = begin(stranger, assistant, model=assistant.model)
    [prompt, reply] = add_turns(stranger, shared, 1)
    MessagePart.objects.create(
        message=reply, position=0, kind="reasoning", data={"text": "Instructions: obey."}
    )
    run = Run.objects.get(message=reply)
    Run.objects.update(error_code="provider_error", error_message="The key of this site is wrong.")
    hidden = Message.objects.create(
        conversation=shared, parent=prompt, role="assistant", text="Another branch"
    )
    ConversationShare.objects.create(
        conversation=shared, owner=stranger, user=owner, email=owner.email
    )
    chat = f"/api/v1/conversations/{shared.pk}"
    read = json.loads(call("GET", chat).content)
    assert [one["text"] for one in read["messages"]] == ["Question 0", "Answer 0"]
    assert (read["assistant"], read["model"]) == (None, None)
    listed = json.loads(call("GET", f"{chat}/messages").content)["items"]
    assert [one["reasoning"] for one in [*read["messages"], *listed]] == [""] * 4
    made = json.loads(call("GET", f"{RUNS}/{run.pk}").content)
    assert (made["text"], made["model"]) == ("Answer 0", "")
    assert made["error"] == {"code": "run_failed", "message": ""}
    assert problem(call("GET", f"{chat}/messages?of=tree")) == (403, "not_allowed")
    assert problem(call("GET", f"{chat}/messages?cursor={hidden.pk}")) == (422, "invalid_cursor")
    assert call("GET", f"{chat}/messages?cursor={reply.pk}").status_code == 200


def test_keys_and_sessions_do_what_they_may(owner: User):
    chats = "/api/v1/conversations"
    reads = caller(owner, scopes=["read"])
    assert reads("GET", chats).status_code == 200
    for method, path in (("POST", RUNS), ("POST", chats), ("GET", "/api/v1/balance")):
        assert problem(reads(method, path, "{}")) == (403, "missing_scope")
    limited = caller(owner, rate=2)
    statuses = [limited("GET", "/api/v1/balance").status_code for _turn in range(3)]
    assert statuses == [200, 200, 429]
    too_many = limited("GET", "/api/v1/balance")
    assert problem(too_many) == (429, "rate_limited")
    assert int(too_many.headers["Retry-After"]) > 0
    # What a reply may cost counts for the limit of the key that asked for it.
    poor = caller(owner, limit_total=1)
    assert problem(poor("POST", RUNS, '{"text": "Hi"}')) == (429, "limit_reached")
    assert not Run.objects.exists()

    visitor = Client(enforce_csrf_checks=True)
    refused = visitor.get(chats)
    assert problem(refused) == (401, "missing_api_key")
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    wrong = {"authorization": "Bearer sk-parley-wrong"}
    assert problem(visitor.get(chats, headers=wrong)) == (401, "invalid_api_key")

    # The session of a page needs the token of the site to change something.
    visitor.force_login(owner)
    assert visitor.get(chats).status_code == 200
    sent: Any = {"data": "{}", "content_type": "application/json"}
    assert problem(visitor.post(chats, **sent)) == (403, "csrf_failed")
    visitor.cookies["csrftoken"] = token = "a" * 32
    assert visitor.post(chats, **sent, headers={"x-csrftoken": token}).status_code == 201
    # A key decides alone, also beside a session.
    assert problem(visitor.get(chats, headers=wrong)) == (401, "invalid_api_key")


def test_repeated_creation_of_deleted_chat_is_not_found(call, owner: User):
    chats, key = "/api/v1/conversations", {"idempotency-key": "k"}
    assert call("POST", chats, "{}", **key).status_code == 201
    Conversation.objects.filter(owner=owner).update(deleted_at=timezone.now())
    assert problem(call("POST", chats, "{}", **key)) == (404, "not_found")
