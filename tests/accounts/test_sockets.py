"""Whom a socket belongs to: told by the session that its cookie names, and by nothing else."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import transaction
from django.test import Client
from django.utils import timezone

from accounts import sockets
from accounts.models import User
from chatproject.lib import db

pytestmark = pytest.mark.django_db(transaction=True)


class Opened:
    """A socket that was opened with this header of cookies: who it was, and what was sent to it."""

    def __init__(self) -> None:
        self.user: Any = None
        self.sent: list[Any] = []

    async def open(self, cookies: str | None) -> Opened:
        async def consumer(scope: Any, receive: Any, send: Any) -> None:
            self.user = scope["user"]

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            self.sent.append(message)

        headers = [] if cookies is None else [(b"cookie", cookies.encode("latin1"))]
        await sockets.with_user(consumer)({"type": "websocket", "headers": headers}, receive, send)
        return self


async def opened(cookies: str | None) -> Opened:
    return await Opened().open(cookies)


@pytest.fixture
def reader() -> User:
    return User.objects.create_user("reader@example.org", "a-long-password-17")


@pytest.fixture
def key(reader: User) -> str:
    """The key of a session of the reader."""
    client = Client()
    client.force_login(reader)
    return client.cookies[settings.SESSION_COOKIE_NAME].value


async def test_a_session_tells_its_user(reader, key):
    assert (await opened(f"theme=dark; sessionid={key}")).user == reader


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
async def test_other_cookies_tell_nobody(cookies, key):
    assert (await opened(cookies)).user.is_anonymous


async def test_a_session_that_nobody_signed_in_to_tells_nobody(client):
    session = await db.run(lambda: client.session)
    session["theme"] = "dark"
    await db.run(session.save)
    assert (await opened(f"sessionid={session.session_key}")).user.is_anonymous


async def test_a_session_past_its_date_tells_nobody(key):
    past = timezone.now() - timedelta(seconds=1)
    await db.run(lambda: Session.objects.filter(pk=key).update(expire_date=past))
    assert (await opened(f"sessionid={key}")).user.is_anonymous


async def test_another_password_ends_the_sessions_before_it(reader, key):
    reader.set_password("another-password-23")
    await db.run(reader.save)
    assert (await opened(f"sessionid={key}")).user.is_anonymous


async def test_somebody_who_may_not_sign_in_any_more_is_nobody(reader, key):
    reader.is_active = False
    await db.run(reader.save)
    assert (await opened(f"sessionid={key}")).user.is_anonymous


async def test_an_older_secret_still_holds_and_the_cookie_stays_good(reader, key, settings):
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "a new secret of this installation, which is long enough"
    assert (await opened(f"sessionid={key}")).user == reader
    # The browser cannot be told of another key while a socket is opened.
    assert await db.run(lambda: Session.objects.filter(pk=key).exists())


async def test_who_waits_for_the_database_too_long_may_try_again(key, monkeypatch):
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
        socket = await opened(f"sessionid={key}")
    finally:
        done.set()
        await locking
    assert socket.user is None
    assert [message["type"] for message in socket.sent] == ["websocket.accept", "websocket.close"]
    assert socket.sent[1]["code"] == sockets.TRY_AGAIN_LATER
