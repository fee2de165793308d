"""Logs of the real processes: ids from the page to the worker, business events, and no secrets."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from accounts.models import User
from chat.models import Conversation, Run
from tests.support.conversations import begin
from tests.support.fake_llm.fixture import provider, provider_process
from tests.support.fake_mail import mail_server
from tests.support.people import assistant, owner, session_key
from tests.support.programs import wait_until
from tests.support.stack import Stack

__all__ = ["assistant", "owner", "provider", "provider_process"]

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url", "assistant"),
]

PROCESSES = ("web", "worker", "low", "clock")
# Each secret of the test has this mark.
MARK = "s3cr3t"
TEXT = f"my {MARK} diary, which is nobody's business but mine"
PASSWORD = f"{MARK}-correct-horse-battery"
API_KEY = f"sk-live-{MARK}-abcdefghijkl"
ADDRESS = f"{MARK}@example.org"
HEADERS = {
    "Authorization": f"Bearer sk-parley-{MARK}-bearer-token-abcdefghijklmnopqrs",
    "X-Api-Key": API_KEY,
    "Stripe-Signature": f"t=1,v1={MARK}",
    "Referer": f"https://x.example/accounts/confirm-email/{MARK}-link-key/",
}


def stack(folder: Path, url: str, **environment: str) -> Stack:
    common = {"TRUST_PROXY": "1", "SITE_URL": "https://chat.example.org"}
    return Stack(folder, provider_url=url, environment=common | environment)


def log(running: Stack, names: tuple[str, ...] = ("web", "worker")) -> str:
    return "".join(running.log(name) for name in names)


def lines(running: Stack, name: str) -> list[dict[str, Any]]:
    """The lines of a process, of which each must be one JSON object."""
    return [json.loads(line) for line in running.log(name).splitlines() if line]


def open_socket(running: Stack, user: User, **headers: str) -> ClientConnection:
    cookie = {"Cookie": f"sessionid={session_key(user)}"}
    address = f"{running.base.replace('http', 'ws')}/ws/v1/"
    return connect(
        address, origin=Origin(running.base), additional_headers=cookie | headers, open_timeout=30
    )


def ask(socket: ClientConnection, text: str, number: str) -> str:
    """Send a message; return the type of the run's last event."""
    socket.send(json.dumps({"type": "chat.send", "client_id": number, "text": text}))
    while True:
        kind: str = json.loads(socket.recv(timeout=60))["type"]
        if kind in ("run.done", "run.failed", "error"):
            return kind


def wait_for_error(socket: ClientConnection) -> str:
    """Read events until an error; return its code. Fails when none comes."""
    while (event := json.loads(socket.recv(timeout=30)))["type"] != "error":
        pass
    code: str = event["code"]
    return code


def wait_for_event(running: Stack, event: str, count: int = 1) -> None:
    wait_until(lambda: log(running).count(event) >= count, event)


# --- Secrets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [pytest.param("text", marks=pytest.mark.long), "json"])
def test_secrets_of_every_path_stay_unlogged(owner, provider, server_folder, form):
    with (
        mail_server() as mails,
        stack(
            server_folder,
            provider.url,
            LOG_FORMAT=form,
            LOG_LEVEL="DEBUG",
            OPENAI_API_KEY=API_KEY,
            METRICS_TOKEN=f"{MARK}-metrics-token",
            STRIPE_SECRET_KEY=f"sk_test_{MARK}_key",
            STRIPE_WEBHOOK_SECRETS=f"whsec_{MARK}",
            STRIPE_API_BASE="http://127.0.0.1:9",
            EMAIL_URL=f"smtp://{MARK}:{MARK}-mail-password@127.0.0.1:{mails.port}?tls=0",
        ) as running,
    ):
        running.start(*PROCESSES)
        use_pages(running)
        mails.answers["RCPT"] = f"550 <{ADDRESS}> is unknown here"
        use_pages(running)
        use_webhooks(running)
        use_sockets(running, owner)
        wait_until(lambda: mails.sessions > 0, "a mail is sent")
        wait_until(lambda: "attempt 1 of 12 failed" in running.log("low"), "a mail is refused")
        running.terminate("worker")
        running.terminate("low")
        written = log(running, PROCESSES)
    # The paths were reached: each leaves its own line, without the secret.
    for trace in ("run_ended", "refused a webhook", "sign_up", "[key]", "POST /accounts/login/"):
        assert trace in written
    assert re.search(r"fake provider was told to refuse", written)
    assert [line for line in written.splitlines() if MARK in line] == []
    assert "diary" not in written
    if form == "json":
        assert all(json.loads(line) for line in written.splitlines() if line)


def use_pages(running: Stack) -> None:
    """Visit pages, with secrets in addresses, headers, cookies and forms."""
    with httpx2.Client(base_url=running.base, headers=HEADERS, timeout=30) as client:
        for path in (
            "/metrics",
            f"/accounts/confirm-email/{MARK}-link-key/",
            f"/accounts/password/reset/key/1-{MARK}-link-key/",
            f"/accounts/invitation/{MARK}-link-key/",
            f"/accounts/login/link/{MARK}-link-key/",
            f"/nowhere/accounts/password/reset/key/1-{MARK}-link-key/x",
            f"/chats/?q={MARK}",
            "/v1/models",
            f"/v1/models/sk-parley-{MARK}-in-the-wrong-place-abcdefghijklmnop",
        ):
            client.get(path)
        client.cookies.set("sessionid", f"{MARK}0123456789abcdef")
        client.get("/chats/")
        client.post("/accounts/login/", data={"login": ADDRESS, "password": PASSWORD})
        client.get("/accounts/login/")
        post(client, "/accounts/login/", login=ADDRESS, password=PASSWORD)
        post(client, "/accounts/signup/", email=ADDRESS, password1=PASSWORD)
        post(client, "/accounts/password/reset/", email=ADDRESS)
        post(client, "/c/new/", text=f"[[tokens=5]] {TEXT}", client_id=f"page-{time.time()}")
        post(client, "/accounts/password/change/", oldpassword=PASSWORD, password1=PASSWORD)


def post(client: httpx2.Client, path: str, **fields: str) -> None:
    data = {**fields, "csrfmiddlewaretoken": client.cookies["csrftoken"]}
    origin = str(client.base_url).rstrip("/")
    response = client.post(path, data=data, headers={"Origin": origin, "Referer": origin})
    assert response.status_code < 500


def use_webhooks(running: Stack) -> None:
    for provider_name in ("stripe", "razorpay", "unknown"):
        response = httpx2.post(
            f"{running.base}/billing/webhooks/{provider_name}/",
            content=json.dumps({"id": "evt", "text": TEXT, "key": API_KEY}),
            headers=HEADERS,
            timeout=30,
        )
        assert response.status_code in (400, 404)


def use_sockets(running: Stack, user: User) -> None:
    """Send messages to a provider that fails and quotes them, and frames that are refused."""
    with open_socket(running, user, Authorization=HEADERS["Authorization"]) as socket:
        assert ask(socket, f"[[tokens=5 rate=0]] {TEXT}", "n1") == "run.done"
        for fault in ("status=400 echo=1", "status=500 echo=1", "garbage=1", "cut=1"):
            assert (
                ask(socket, f"[[{fault}]] {TEXT}", fault.partition(" ")[0].replace("=", "-"))
                == "run.failed"
            )
        for frame in (
            {"type": "chat.send", "client_id": "x", "text": TEXT, "unknown": TEXT},
            {"type": TEXT},
            {"type": "chat.send", "client_id": TEXT, "text": f"\x00{TEXT}"},
        ):
            socket.send(json.dumps(frame))
            wait_for_error(socket)
        socket.send(f"no json {TEXT}")
        assert wait_for_error(socket) == "bad_json"
        with pytest.raises(ConnectionClosedError, match="1003"):
            socket.recv(timeout=30)
    with pytest.raises(InvalidStatus, match="403"):
        connect(
            f"{running.base.replace('http', 'ws')}/ws/v1/",
            origin=Origin("https://elsewhere.example"),
            additional_headers={"Cookie": f"sessionid={MARK}0123456789abcdef"},
        )


# --- Ids and events --------------------------------------------------------------------------


@pytest.fixture
def running(provider: Any, server_folder: Path) -> Iterator[Stack]:
    with stack(server_folder, provider.url, LOG_FORMAT="json") as found:
        found.start("web", "worker")
        yield found


def test_ids_travel_from_the_page_to_the_worker(owner, assistant, running):
    conversation: Conversation = begin(owner, assistant)
    cookies = {"sessionid": session_key(owner)}
    with httpx2.Client(base_url=running.base, cookies=cookies, timeout=30) as client:
        page = client.get(f"/c/{conversation.pk}/", headers={"X-Request-ID": "from-the-proxy-1"})
        assert page.headers["x-request-id"] == "from-the-proxy-1"
        sent = client.post(
            f"/c/{conversation.pk}/send/",
            data={
                "text": "[[tokens=3 rate=0]]",
                "client_id": "page",
                "csrfmiddlewaretoken": client.cookies["csrftoken"],
            },
            headers={"X-Request-ID": "from-the-proxy-2", "Origin": running.base},
        )
        assert sent.status_code == 302
        for refused in ("short", "with space 123456", 'quote"123456789', "x" * 65):
            other = client.get("/health", headers={"X-Request-ID": refused})
            assert re.fullmatch(r"[0-9a-f]{16}", other.headers["x-request-id"])
    wait_for_event(running, "run_ended")
    run = Run.objects.get()
    [ended] = [line for line in lines(running, "worker") if line["event"] == "run_ended"]
    assert ended["request_id"] == "from-the-proxy-2"
    assert (ended["run_id"], ended["user_id"]) == (str(run.pk), owner.pk)
    assert (ended["outcome"], ended["attempt"], ended["level"]) == ("done", 1, "info")
    assert (ended["input_tokens"], ended["output_tokens"]) == (
        run.prompt_tokens,
        run.completion_tokens,
    )
    assert ended["charged_microcredits"] == run.charged
    assert 0 <= ended["wait_seconds"] <= ended["first_token_seconds"]
    posts = [line for line in lines(running, "web") if line.get("method") == "POST"]
    [access] = posts
    assert (access["request_id"], access["user_id"]) == ("from-the-proxy-2", owner.pk)
    assert (access["status"], access["logger"]) == (302, "chatproject.access")
    assert access["path"] == f"/c/{conversation.pk}/send/"


def test_lines_of_a_failing_run_have_its_ids(owner, running):
    with open_socket(running, owner, **{"X-Request-ID": "socket-12345"}) as socket:
        assert ask(socket, "[[status=400]]", "n1") == "run.failed"
    run = Run.objects.get()
    wait_for_event(running, "run_ended")
    about = [line for line in lines(running, "worker") if line.get("run_id") == str(run.pk)]
    assert {line["event"] for line in about} > {"run_ended"}  # and the reason
    for line in about:
        assert (line["request_id"], line["user_id"]) == ("socket-12345", owner.pk)
    [ended] = [line for line in about if line["event"] == "run_ended"]
    assert (ended["outcome"], ended["code"]) == ("failed", "provider_error")


def test_reply_is_one_line_at_level_info(owner, running):
    with open_socket(running, owner) as socket:
        assert ask(socket, "[[tokens=3 rate=0]]", "first") == "run.done"
        wait_for_event(running, "run_ended")
        before = {name: len(lines(running, name)) for name in ("web", "worker")}
        for number in range(5):
            assert ask(socket, "[[tokens=3 rate=0]]", f"n{number}") == "run.done"
        wait_for_event(running, "run_ended", 6)
        found = {name: lines(running, name)[before[name] :] for name in before}
    # RQ's own, which the Procfile silences (--verbosity 0), and blocked loops of a busy machine.
    others = ("rq.worker", "chatproject.lib.loop_monitor")
    events = [
        line["event"] for one in found.values() for line in one if line["logger"] not in others
    ]
    assert events == ["run_ended"] * 5
