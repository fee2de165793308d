"""The REST API against running processes: conversations, runs, their events, money."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from django.utils import timezone

from accounts import api_keys
from accounts.models import ApiKey, User
from accounts.session_store import SessionStore
from billing.models import Account
from chat.models import IdempotencyKey, Run
from chat.recovery.retention import Retention
from tests.support.fake_llm import FakeLLM, reply_text
from tests.support.fake_llm.fixture import provider, provider_process
from tests.support.people import assistant, owner, session_key
from tests.support.programs import wait_until
from tests.support.stack import Stack

__all__ = ["assistant", "owner", "provider", "provider_process"]

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url", "assistant"),
]


@pytest.fixture
def stack(provider: FakeLLM, server_folder) -> Iterator[Stack]:
    """A web process and a worker."""
    with Stack(server_folder, provider_url=provider.url) as running:
        running.start("web", "worker")
        yield running


@pytest.fixture
def api(stack: Stack, owner: User) -> Iterator[httpx2.Client]:
    """A client with a key of the owner."""
    secret = api_keys.create(owner, api_keys.Terms(name="Test"))[1]
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx2.Client(base_url=f"{stack.base}/api/v1", headers=headers, timeout=30) as made:
        yield made


def events_of(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The events of a stream, each with its id (0 without one)."""
    number = 0
    for line in lines:
        name, _colon, value = line.partition(": ")
        if name == "id":
            number = int(value)
        elif name == "data":
            yield number, json.loads(value)
            number = 0


def problem(response: httpx2.Response) -> tuple[int, str]:
    """The status and the code of an error, whose shape is checked."""
    found = response.json()
    assert found["message"]
    assert found["request_id"] == response.headers["x-request-id"]
    return response.status_code, found["code"]


def test_client_converses_follows_and_pays(api: httpx2.Client, owner: User):
    created = api.post("/conversations", json={"title": "  My  talk "})
    assert created.status_code == 201, created.text
    chat = created.json()
    assert (chat["title"], chat["leaf"], chat["pinned"]) == ("My talk", None, False)

    # A run: the same one for a repetition, a refusal for another request with the same key.
    text = "[[tokens=40 rate=100 reasoning=3]] Hello"
    body = {"conversation": chat["id"], "text": text, "temperature": 0.5}
    key = {"Idempotency-Key": "first one"}
    assert problem(api.post("/runs", json=body, headers=key)) == (422, "invalid_request")
    key = {"Idempotency-Key": "first-one"}
    started = api.post("/runs", json=body, headers=key)
    assert started.status_code == 201, started.text
    run = started.json()
    assert started.headers["location"] == f"/api/v1/runs/{run['id']}"
    assert int(started.headers["RateLimit-Remaining"]) < 300
    again = api.post("/runs", json=body, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, run["id"])
    for other in ({"text": "Other"}, {"conversation": None}, {"temperature": 0.6}):
        refused = api.post("/runs", json=body | other, headers=key)
        assert problem(refused) == (422, "idempotency_conflict")
    assert problem(api.post("/runs", json=body)) == (409, "run_active")

    # Its events, of which a client that lost its connection gets the rest.
    seen: list[tuple[int, dict[str, Any]]] = []
    with api.stream("GET", f"/runs/{run['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for event in events_of(stream.iter_lines()):
            seen.append(event)
            if len([1 for number, _event in seen if number]) == 10:
                break
    last = seen[-1][0]
    with api.stream(
        "GET", f"/runs/{run['id']}/events", headers={"Last-Event-ID": str(last)}
    ) as rest:
        seen += [event for event in events_of(rest.iter_lines()) if event[0]]
    numbered = [(number, event) for number, event in seen if number]
    assert [number for number, _event in numbered] == list(range(1, len(numbered) + 1))
    end = numbered[-1][1]
    assert (end["type"], end["text"]) == ("run.done", reply_text(40, text))
    finished = api.get(f"/runs/{run['id']}/events", params={"after": numbered[-1][0]})
    assert finished.status_code == 204
    whole = api.get(f"/runs/{run['id']}").json()
    assert (whole["status"], whole["text"]) == ("done", end["text"])
    assert whole["usage"]["completion_tokens"] == end["usage"]["completion_tokens"]

    # Waiting and stopping.
    second = api.post("/runs", json=body | {"text": "[[tokens=2000 rate=20]]"}).json()
    assert api.get(f"/runs/{second['id']}/wait", params={"seconds": 1}).json()["status"] in {
        "queued",
        "running",
    }
    waiting: list[dict[str, Any]] = []
    waits = threading.Thread(
        target=lambda: waiting.append(api.get(f"/runs/{second['id']}/wait").json())
    )
    waits.start()
    assert api.post(f"/runs/{second['id']}/stop").status_code == 200
    waits.join(timeout=20)
    assert waiting[0]["status"] == "stopped"

    # What was written: the path, the tree page by page, the conversation.
    read = api.get(f"/conversations/{chat['id']}").json()
    assert [message["role"] for message in read["messages"]] == ["user", "assistant"] * 2
    assert read["messages"][1]["text"] == end["text"]
    assert read["messages"][1]["reasoning"]
    assert (read["earlier"], read["active"]) == (None, False)
    assert api.get(f"/conversations/{chat['id']}/messages").json()["items"] == read["messages"]
    page = api.get(
        f"/conversations/{chat['id']}/messages", params={"of": "tree", "limit": 3}
    ).json()
    rest_of_tree = api.get(
        f"/conversations/{chat['id']}/messages", params={"of": "tree", "cursor": page["next"]}
    ).json()
    assert page["items"] + rest_of_tree["items"] == read["messages"]
    assert rest_of_tree["next"] is None
    found = api.get("/search", params={"q": "talk"}).json()["items"]
    assert [hit["conversation"] for hit in found] == [chat["id"]]

    # The money is that of the ledger, exactly.
    entries = api.get("/ledger", params={"kind": "usage"}).json()["items"]
    assert [entry["conversation"] for entry in entries] == [chat["id"]] * 2
    assert entries[1]["amount"] == f"-{whole['charged']}"
    account = Account.objects.get(user=owner)
    balance = api.get("/balance").json()
    assert balance["balance"] == entries[0]["balance_after"]
    assert float(balance["balance"]) * 1_000_000 == pytest.approx(account.balance)
    usage = api.get("/usage").json()
    assert sum(row["calls"] for row in usage["items"]) == 2
    spent = ApiKey.objects.get().spent
    assert float(usage["charged"]) * 1_000_000 == pytest.approx(spent)

    # Changes, and the end.
    changed = api.patch(
        f"/conversations/{chat['id']}", json={"title": "New", "pinned": True, "archived": True}
    ).json()
    assert (changed["title"], changed["pinned"], changed["archived"]) == ("New", True, True)
    assert api.get("/conversations").json()["items"] == []
    archived = api.get("/conversations", params={"archived": True}).json()["items"]
    assert [one["id"] for one in archived] == [chat["id"]]
    assert api.delete(f"/conversations/{chat['id']}").status_code == 204
    assert problem(api.get(f"/conversations/{chat['id']}")) == (404, "not_found")
    assert problem(api.get(f"/runs/{run['id']}")) == (404, "not_found")


def test_streams_end_with_sessions_and_repetitions_count_once(
    stack: Stack, api: httpx2.Client, owner: User
):
    # The same request six times at once.
    answers: list[httpx2.Response] = []

    def ask() -> None:
        headers = {"Idempotency-Key": "at-once"}
        sent = {"text": "[[tokens=2000 rate=1]]"}
        answers.append(api.post("/runs", json=sent, headers=headers))

    threads = [threading.Thread(target=ask) for _turn in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {200, 201}
    [run_id] = {answer.json()["id"] for answer in answers}
    assert Run.objects.count() == 1

    # A page of the site follows the run; its session ends.
    session = session_key(owner)
    ended = threading.Event()

    def follow() -> None:
        cookies = {"sessionid": session}
        with (
            httpx2.Client(base_url=f"{stack.base}/api/v1", timeout=30, cookies=cookies) as page,
            page.stream("GET", f"/runs/{run_id}/events") as stream,
        ):
            for _line in stream.iter_lines():
                """The stream ends before the run."""
        ended.set()

    follower = threading.Thread(target=follow)
    follower.start()
    wait_until(lambda: api.get(f"/runs/{run_id}").json()["status"] == "running", "a worker")
    assert not ended.wait(timeout=1)
    SessionStore(session).delete()
    assert ended.wait(timeout=10)
    follower.join()
    assert api.get(f"/runs/{run_id}").json()["status"] == "running"
    api.post(f"/runs/{run_id}/stop")

    # The keys of requests are forgotten after a day.
    now = timezone.now()
    Retention().purge(now + timedelta(hours=23))
    assert IdempotencyKey.objects.count() == 1
    Retention().purge(now + timedelta(hours=25))
    assert not IdempotencyKey.objects.exists()
