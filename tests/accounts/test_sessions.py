"""Sessions: their list, their end by the user and by the clock, and the hashes of passwords that they depend on."""

from __future__ import annotations

from datetime import timedelta

import pytest
from allauth.usersessions.models import UserSession
from django.contrib.auth.hashers import make_password
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts import sessions
from accounts.models import User
from chatproject import clock
from chatproject.lib import db, languages
from tests.support.sockets import open_tab

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

PASSWORD = "correct horse battery"


def test_expired_sessions_are_deleted_in_batches(monkeypatch):
    monkeypatch.setattr(sessions, "BATCH", 3)
    now = timezone.now()
    for number in range(8):
        days = -1 if number < 5 else 1
        Session.objects.create(
            session_key=f"key{number}", session_data="x", expire_date=now + timedelta(days=days)
        )
    [task] = [task for task in clock.schedule() if task.name == "clear sessions"]
    left = []
    for _ in range(3):
        task.run(now)
        left.append(Session.objects.count())
    assert left == [5, 3, 3]
    assert not Session.objects.filter(expire_date__lt=now).exists()


# --- The list -----------------------------------------------------------------------------------

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.5 Mobile/15E148 Safari/604.1"
)


@pytest.fixture
def user() -> User:
    return User.objects.create_user("ada@example.org", PASSWORD)


def signed_in(user: User, agent: str = FIREFOX, address: str = "198.51.100.7") -> Client:
    client = Client(headers={"user-agent": agent}, REMOTE_ADDR=address)
    answer = client.post(reverse("account_login"), {"login": user.email, "password": PASSWORD})
    assert answer.status_code == 302
    return client


def is_signed_in(client: Client) -> bool:
    return client.get(reverse("chat:settings")).status_code == 200


@pytest.mark.parametrize(
    ("agent", "shown"),
    [
        (FIREFOX, "Firefox · Linux"),
        (IPHONE, "Safari · iPhone"),
        ("Mozilla/5.0 (Windows NT 10.0) Chrome/140.0 Safari/537.36 Edg/140.0", "Edge · Windows"),
        ("Mozilla/5.0 (Linux; Android 15) Chrome/140.0 Mobile Safari/537.36", "Chrome · Android"),
        ("curl/8.5", "curl/8.5"),
        ("", ""),
    ],
)
def test_device_is_named_by_browser_and_system(agent, shown):
    assert sessions.device(agent) == shown


def test_sessions_are_listed_and_ended(user):
    here, phone, third = signed_in(user), signed_in(user, IPHONE, "2001:db8::1"), signed_in(user)
    stranger = User.objects.create_user("eve@example.org", PASSWORD)
    thief = signed_in(stranger)
    url = reverse("usersessions_list")
    page = here.get(url).content.decode()
    for text in ("Firefox · Linux", "Safari · iPhone", "198.51.100.7", "2001:db8::1"):
        assert text in page
    row = UserSession.objects.get(session_key=phone.session.session_key)
    thief.post(url, {"session": row.pk})
    assert is_signed_in(phone)
    here.post(url, {"session": row.pk})
    assert [is_signed_in(one) for one in (phone, here, third)] == [False, True, True]
    for odd in ("", "x", "-1", "9" * 30, "٣"):
        assert here.post(url, {"session": odd}).status_code == 302
    phone = signed_in(user, IPHONE)
    answer = here.post(url, {"session": "others"}, follow=True)
    assert "Signed out 2 other sessions." in answer.content.decode()
    assert [is_signed_in(one) for one in (phone, here, third, thief)] == [False, True, False, True]
    here.post(reverse("account_logout"))
    assert not UserSession.objects.filter(user=user).exists()


def test_session_of_an_old_password_is_not_listed(user):
    here, _other = signed_in(user), signed_in(user)
    here.post(
        reverse("account_change_password"),
        {
            "oldpassword": PASSWORD,
            "password1": "another horse battery",
            "password2": "another horse battery",
        },
    )
    assert is_signed_in(here)  # with another key
    user.refresh_from_db()
    assert [one.key for one in sessions.listed(user)] == [here.session.session_key]


def test_list_needs_the_same_queries_for_any_number(user, django_assert_num_queries):
    for number in (1, 5):
        for _ in range(number):
            signed_in(user)
        with django_assert_num_queries(2):
            sessions.listed(user)


def test_last_use_is_written_rarely(user):
    client = signed_in(user)
    key = client.session.session_key
    client.get(reverse("usersessions_list"))
    with CaptureQueriesContext(connection) as pages:
        for _ in range(5):
            client.get(reverse("usersessions_list"))
    assert not [query for query in pages if "INTO usersessions" in query["sql"]]
    # Another process writes once, and nothing while the row is new.
    sessions._seen.clear()
    before = UserSession.objects.get(session_key=key).last_seen_at
    client.get(reverse("usersessions_list"))
    assert UserSession.objects.get(session_key=key).last_seen_at == before
    UserSession.objects.update(last_seen_at=timezone.now() - timedelta(minutes=6), ip="192.0.2.1")
    sessions._seen.clear()
    client.get(reverse("usersessions_list"))
    row = UserSession.objects.get(session_key=key)
    assert (row.ip, row.last_seen_at > before) == ("198.51.100.7", True)
    # A session from before the update of the site, and one that has ended meanwhile.
    UserSession.objects.all().delete()
    sessions._seen.clear()
    client.get(reverse("usersessions_list"))
    assert UserSession.objects.filter(session_key=key, user=user).exists()
    sessions._write("missing", "192.0.2.1", "", user.pk, 0)
    assert UserSession.objects.count() == 1


def test_expired_session_takes_its_row_along(user):
    client = signed_in(user)
    Session.objects.update(expire_date=timezone.now() - timedelta(days=1))
    sessions.clear_expired(timezone.now())
    assert not UserSession.objects.exists()
    assert not is_signed_in(client)


def test_new_browser_is_announced_with_the_list(user, mailoutbox):
    first = signed_in(user)
    assert mailoutbox == []  # the first sign-in of the account
    first.post(reverse("account_logout"))
    first.post(reverse("account_login"), {"login": user.email, "password": PASSWORD})
    assert mailoutbox == []
    signed_in(user, IPHONE)
    [notice] = mailoutbox
    assert "New sign-in" in notice.subject
    assert f"http://testserver{reverse('usersessions_list')}" in notice.body
    assert f"Date: {languages.day(timezone.now(), 'j M Y')}" in notice.body
    assert "Browser: Safari · iPhone" in notice.body


def test_notice_is_in_the_language_of_its_user(user, mailoutbox):
    signed_in(user)
    User.objects.filter(pk=user.pk).update(language="de")
    signed_in(user, IPHONE)
    [notice] = mailoutbox
    assert "Anmeldung" in notice.subject


@pytest.mark.asyncio
async def test_ended_session_closes_its_socket_at_once():
    user = await db.run(User.objects.create_user, "ada@example.org", PASSWORD)
    lost, kept = await db.run(signed_in, user), await db.run(signed_in, user)
    lost_key, kept_key = lost.session.session_key, kept.session.session_key
    async with open_tab(user, session=lost_key) as tab, open_tab(user, session=kept_key) as other:
        await db.run(kept.post, reverse("usersessions_list"), {"session": "others"})
        assert (await tab.receive())["code"] == "not_signed_in"
        assert await tab.close_code() == 4401
        assert await other.is_silent()


# --- Hashing -----------------------------------------------------------------------------------


def test_older_hash_is_replaced_and_keeps_sessions(user, settings):
    settings.PASSWORD_HASHERS = [
        "accounts.passwords.Hasher",
        "django.contrib.auth.hashers.PBKDF2PasswordHasher",
    ]
    user.password = make_password(PASSWORD, hasher="pbkdf2_sha256")
    user.save()
    elsewhere = Client()
    elsewhere.force_login(user)
    here = Client()
    here.force_login(user)
    assert here.post(reverse("account_reauthenticate"), {"password": PASSWORD}).status_code == 302
    user.refresh_from_db()
    assert user.password.startswith("argon2$argon2id$v=19$m=19456,t=2,p=1$")
    assert [is_signed_in(one) for one in (here, elsewhere)] == [True, True]
    signed_in(user)
    # Another password ends the sessions, also those of the older hash.
    stale = Client()
    stale.force_login(user)
    user.set_password("another horse battery")
    user.save(update_fields=["password"])
    assert [is_signed_in(one) for one in (here, elsewhere, stale)] == [False, False, False]
