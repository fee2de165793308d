"""The user of a socket: that of the session in its cookie, and no other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.sessions.backends import db as django_store
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.utils import timezone

from accounts import session_store, sockets
from accounts.models import User
from chatproject.lib import db
from tests.support.people import session_key

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass
class Socket:
    """The user whom the consumer got, and the messages sent to the browser."""

    user: Any = None
    sent: list[Any] = field(default_factory=list)


async def open_socket(cookies: str | None) -> Socket:
    """Open a socket with this cookie header."""
    socket = Socket()

    async def consumer(scope: Any, receive: Any, send: Any) -> None:
        socket.user = scope["user"]

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        socket.sent.append(message)

    headers = [] if cookies is None else [(b"cookie", cookies.encode("latin1"))]
    await sockets.with_user(consumer)({"type": "websocket", "headers": headers}, receive, send)
    return socket


@pytest.fixture
def reader() -> User:
    return User.objects.create_user("reader@example.org", "a-long-password-17")


@pytest.fixture
def key(reader: User) -> str:
    """The key of a session of the reader."""
    return session_key(reader)


async def test_session_names_its_user(reader, key):
    assert (await open_socket(f"theme=dark; sessionid={key}")).user == reader


async def test_session_of_djangos_own_store_is_valid(reader, key):
    """The previous release wrote such sessions, and its processes read ours during an update."""

    def move() -> str:
        store = django_store.SessionStore()
        store.update(session_store.SessionStore(key).load())
        store.save()
        assert django_store.SessionStore(key).load() == store.load()
        return str(store.session_key)

    assert (await open_socket(f"sessionid={await db.run(move)}")).user == reader


@pytest.mark.parametrize(
    "cookies",
    [
        None,
        "",
        "sessionid",
        "sessionid=",
        "sessionid=short",
        "sessionid=0123456789abcdefghijklmnopqrstuv",
        "sessionid=" + "a" * 5_000,
        'sessionid="\\000\\000\\000\\000\\000\\000\\000\\000"',
        "sessionid=\xff\xfe; ;;=;",
        "csrftoken=0123456789abcdefghijklmnopqrstuv",
    ],
)
async def test_other_cookies_are_anonymous(cookies, key):
    assert (await open_socket(cookies)).user.is_anonymous


async def test_session_without_sign_in_is_anonymous(client):
    session = await db.run(lambda: client.session)
    session["theme"] = "dark"
    await db.run(session.save)
    assert (await open_socket(f"sessionid={session.session_key}")).user.is_anonymous


async def test_expired_session_is_anonymous(key):
    past = timezone.now() - timedelta(seconds=1)
    await db.run(lambda: Session.objects.filter(pk=key).update(expire_date=past))
    assert (await open_socket(f"sessionid={key}")).user.is_anonymous


async def test_password_change_ends_older_sessions(reader, key):
    reader.set_password("another-password-23")
    await db.run(reader.save)
    assert (await open_socket(f"sessionid={key}")).user.is_anonymous


async def test_session_of_an_inactive_user_is_anonymous(reader, key):
    reader.is_active = False
    await db.run(reader.save)
    assert (await open_socket(f"sessionid={key}")).user.is_anonymous


async def test_session_under_an_older_secret_stays_valid(reader, key, settings):
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "a new secret of this installation, which is long enough"
    assert (await open_socket(f"sessionid={key}")).user == reader
    # An opening socket cannot set a cookie, so the session must keep its key.
    assert await db.run(lambda: Session.objects.filter(pk=key).exists())


async def test_slow_database_closes_the_socket_for_retry(key, monkeypatch):
    monkeypatch.setattr(sockets, "PATIENCE", 0.2)
    locked, done = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def lock() -> None:
        with transaction.atomic():
            with transaction.get_connection().cursor() as cursor:
                cursor.execute("LOCK TABLE accounts_user")
            loop.call_soon_threadsafe(locked.set)
            asyncio.run_coroutine_threadsafe(done.wait(), loop).result(30)

    locking = asyncio.create_task(db.run(lock))
    await locked.wait()
    try:
        socket = await open_socket(f"sessionid={key}")
    finally:
        done.set()
        await locking
    assert socket.user is None
    assert [message["type"] for message in socket.sent] == ["websocket.accept", "websocket.close"]
    assert socket.sent[1]["code"] == sockets.TRY_AGAIN_LATER


def test_check_reads_a_row_per_session():
    """Also with the statistics of an empty table, which favour a join of all with all."""
    users = [User.objects.create_user(f"u{number}@example.org") for number in range(100)]
    found = [sockets.find_session(session_key(user)) for user in users]
    columns: list[Any] = [
        list(range(len(users))),
        [session.key for session in found if session],
        [user.pk for user in users],
        [session.data for session in found if session],
        [session.password for session in found if session],
        [user.plan_id for user in users],
    ]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sockets.CHANGED}", columns)
        [[[explained]]] = cursor.fetchall()

    def rows(node: dict[str, Any]) -> float:
        own = float(node["Actual Rows"] * node["Actual Loops"])
        return max([own, *map(rows, node.get("Plans", ()))])

    assert rows(explained["Plan"]) == len(users)
