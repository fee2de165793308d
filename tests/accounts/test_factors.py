"""Second factors: setting up, signing in, losing them, and members of staff who must have one."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from asgiref.sync import sync_to_async
from cryptography.fernet import Fernet
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from accounts.models import User
from chatproject.lib import encryption
from chatproject.lib.env import Limit
from tests.support.people import session_key
from tests.support.sockets import refusal

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

PASSWORD = "correct horse battery"


@pytest.fixture
def user() -> User:
    user = User.objects.create_user("ada@example.org", PASSWORD)
    EmailAddress.objects.create(user=user, email=user.email, verified=True, primary=True)
    return user


def sign_in(client: Client, user: User) -> Any:
    return client.post(
        reverse("account_login"), {"login": user.email, "password": PASSWORD}, follow=True
    )


def code_of(secret: str, steps: int = 0) -> str:
    """The code that an app with this secret shows now, or so many steps of 30 seconds later."""
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30 + steps))


def wrong_code(secret: str) -> str:
    valid = {code_of(secret, steps) for steps in (-2, -1, 0, 1, 2)}
    return next(
        code
        for code in ("000000", "111111", "222222", "333333", "444444", "555555")
        if code not in valid
    )


def set_up_app(client: Client) -> tuple[str, list[str]]:
    """Set up an app as its user does; return its secret and the recovery codes."""
    page = client.get(reverse("mfa_activate_totp"), follow=True)
    if page.redirect_chain:
        target = f"{page.redirect_chain[-1][0]}"
        page = client.post(
            target, {"password": PASSWORD, "next": reverse("mfa_activate_totp")}, follow=True
        )
    text = page.content.decode()
    [secret] = re.findall(r'value="([A-Z2-7]{32})"', text)
    assert "data:image/svg+xml;base64," in text
    page = client.post(reverse("mfa_activate_totp"), {"code": code_of(secret)}, follow=True)
    codes = re.findall(r"<li><code>(\d{8})</code></li>", page.content.decode())
    return secret, codes


def test_app_is_set_up_used_and_removed(user, mailoutbox):
    client = Client()
    sign_in(client, user)
    secret, codes = set_up_app(client)
    assert len(codes) == 10
    assert [one.subject.partition(": ")[2] for one in mailoutbox] == [
        "An authenticator app was added"
    ]
    stored = Authenticator.objects.get(user=user, type="totp").data["secret"]
    assert encryption.decrypt(stored) == secret != stored
    assert secret not in str(dict(client.session))
    # The recovery codes are shown once.
    again = client.get(reverse("mfa_view_recovery_codes")).content.decode()
    assert not any(code in again for code in codes)

    visitor = Client()
    page = sign_in(visitor, user)
    assert page.redirect_chain[-1][0] == reverse("mfa_authenticate")
    assert visitor.get(reverse("chat:new")).status_code == 302  # not signed in yet
    # The code that has set up the app is used; one that is accepted is so once.
    for code in (wrong_code(secret), code_of(secret)):
        assert b"errors" in visitor.post(reverse("mfa_authenticate"), {"code": code}).content
    fresh = code_of(secret, 1)
    assert visitor.post(reverse("mfa_authenticate"), {"code": fresh}).status_code == 302
    assert visitor.get(reverse("chat:new")).status_code == 200
    assert "New sign-in" in mailoutbox[-1].subject
    other = Client()
    sign_in(other, user)
    assert other.post(reverse("mfa_authenticate"), {"code": fresh}).status_code == 200
    assert other.post(reverse("mfa_authenticate"), {"code": codes[3]}).status_code == 302
    used, notice = mailoutbox[-2:]
    assert "New sign-in" in notice.subject
    assert "recovery code was used" in used.subject
    assert "9 codes are left" in used.body
    third = Client()
    sign_in(third, user)
    assert third.post(reverse("mfa_authenticate"), {"code": codes[3]}).status_code == 200

    factor = Authenticator.objects.get(user=user, type="totp")
    assert client.post(reverse("remove_factor", args=[factor.pk])).status_code == 302
    assert not Authenticator.objects.filter(user=user).exists()
    assert "removed" in mailoutbox[-1].subject
    sign_in(Client(), user)


def test_setting_up_requires_password_and_confirmed_address(user):
    client = Client()
    client.force_login(user)
    assert client.get(reverse("mfa_activate_totp"))["Location"].startswith(
        reverse("account_reauthenticate")
    )
    EmailAddress.objects.update(verified=False)
    assert client.get(reverse("mfa_activate_totp"))["Location"] == reverse("mfa_index")
    user.set_unusable_password()
    user.save()
    client.force_login(user)
    assert client.get(reverse("mfa_add_webauthn"))["Location"] == reverse("account_set_password")
    assert not Authenticator.objects.exists()


def test_foreign_factor_cannot_be_removed(user):
    client, thief = Client(), User.objects.create_user("eve@example.org", PASSWORD)
    sign_in(client, user)
    set_up_app(client)
    other = Client()
    other.force_login(thief)
    factor = Authenticator.objects.get(user=user, type="totp")
    assert other.post(reverse("remove_factor", args=[factor.pk])).status_code == 404
    assert Authenticator.objects.filter(pk=factor.pk).exists()


def test_secret_of_a_lost_key_accepts_nothing(user, settings):
    client = Client()
    sign_in(client, user)
    set_up_app(client)
    stored = Authenticator.objects.get(user=user, type="totp")
    stored.data["secret"] = Fernet(Fernet.generate_key()).encrypt(b"A" * 32).decode()
    stored.save()
    visitor = Client()
    sign_in(visitor, user)
    for secret in ("A" * 32, ""):
        page = visitor.post(reverse("mfa_authenticate"), {"code": code_of(secret)})
        assert "cannot be checked" in page.content.decode()


def test_secrets_rotate_with_the_keys(user, settings):
    client = Client()
    sign_in(client, user)
    secret, codes = set_up_app(client)
    settings.ENCRYPTION_KEYS = ["k" * 40]
    call_command("rotate_keys", verbosity=0)
    settings.SECRET_KEY = "another" * 10
    factors = {one.type: one for one in Authenticator.objects.filter(user=user)}
    assert encryption.decrypt(factors["totp"].data["secret"]) == secret
    assert factors["recovery_codes"].wrap().get_unused_codes() == codes


def test_staff_without_factor_reach_only_its_page(user, settings):
    settings.STAFF_TWO_FACTOR = True
    user.is_staff = user.is_superuser = True
    user.save()
    client = Client()
    page = sign_in(client, user)
    assert page.redirect_chain[-1][0] == reverse("mfa_index")
    assert b"chat-sidebar" not in page.content
    for address in (
        reverse("chat:new"),
        reverse("admin:index"),
        reverse("chat:settings"),
        reverse("api_keys"),
    ):
        assert client.get(address)["Location"] == reverse("mfa_index"), address
    refused = client.get(reverse("chat:new"), headers={"accept": "application/json"})
    assert (refused.status_code, refused.json()["code"]) == (403, "no_second_factor")
    set_up_app(client)
    assert client.get(reverse("admin:index")).status_code == 200
    # The last factor stays.
    factor = Authenticator.objects.get(user=user, type="totp")
    assert client.post(reverse("remove_factor", args=[factor.pk])).status_code == 409
    assert Authenticator.objects.filter(pk=factor.pk).exists()
    # The admin's sign-in asks for the factor as well.
    visitor = Client()
    page = visitor.post(
        reverse("account_login"),
        {"login": user.email, "password": PASSWORD, "next": reverse("admin:index")},
        follow=True,
    )
    assert page.redirect_chain[-1][0].startswith(reverse("mfa_authenticate"))
    assert visitor.get(reverse("admin:index")).status_code == 302


@pytest.mark.asyncio
async def test_staff_without_factor_open_no_socket(settings):
    user = await sync_to_async(User.objects.create_user)(
        "staff@example.org", PASSWORD, is_staff=True
    )
    key = await sync_to_async(session_key)(user)
    settings.STAFF_TWO_FACTOR = True
    error, code = await refusal(user, session=key)
    assert (error["code"], code) == ("not_signed_in", 4401)


def test_staff_remove_lost_factors_with_permission(user, mailoutbox):
    client = Client()
    sign_in(client, user)
    set_up_app(client)
    helper = User.objects.create_user("helper@example.org", PASSWORD, is_staff=True)
    helper.user_permissions.add(
        Permission.objects.get(codename="view_user"),
        Permission.objects.get(codename="approve_user"),
    )
    admin = Client()
    admin.force_login(helper)
    page = reverse("admin:accounts_user_access", args=[user.pk])
    assert admin.post(page, {"action": "factors"}).status_code == 403
    helper.user_permissions.add(Permission.objects.get(codename="reset_factors"))
    assert b"Remove second factors" in admin.get(page).content
    assert admin.post(page, {"action": "factors"}).status_code == 302
    assert not Authenticator.objects.filter(user=user).exists()
    assert (
        LogEntry.objects.filter(user=helper, change_message="Removed the second factors").count()
        == 1
    )
    assert mailoutbox[-1].to == [user.email]
    assert "second factors were removed" in mailoutbox[-1].subject
    assert client.get(reverse("chat:new")).status_code == 302  # all sessions have ended
    # Factors of staff are removed by superusers alone.
    chief = User.objects.create_superuser("chief@example.org", PASSWORD)
    Authenticator.objects.create(
        user=chief, type="totp", data={"secret": encryption.encrypt("A" * 32)}
    )
    assert (
        admin.post(
            reverse("admin:accounts_user_access", args=[chief.pk]), {"action": "factors"}
        ).status_code
        == 403
    )
    assert Authenticator.objects.filter(user=chief).exists()


ANSWERS = [
    "1",
    "[]",
    "{}",
    '{"id": 1}',
    '{"id": "AA", "rawId": "AA", "type": "public-key", "response": 1}',
    '{"id": "AA", "rawId": "AA", "type": "public-key", "response": {}}',
    '{"id": "AA", "rawId": "AA", "type": "public-key", "response": {"clientDataJSON": "!",'
    ' "attestationObject": "AA", "authenticatorData": "AA", "signature": "AA", "userHandle": "MQ"}}',
    '{"id": "AA", "rawId": "AA", "type": "public-key", "response": {"clientDataJSON": "e30",'
    ' "attestationObject": "oA", "authenticatorData": "AA", "signature": "AA", "userHandle": "MQ"}}',
]


def test_unreadable_answer_of_a_passkey_is_refused(user, settings):
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"codes": Limit(())}
    client, visitor, stranger = Client(), Client(), Client()
    sign_in(client, user)
    set_up_app(client)
    sign_in(visitor, user)
    for answer in ANSWERS:
        for page in ("mfa_add_webauthn", "mfa_authenticate", "mfa_login_webauthn"):
            who = {"mfa_add_webauthn": client, "mfa_authenticate": visitor}.get(page, stranger)
            who.get(reverse(page), headers={"accept": "application/json"})
            assert who.post(reverse(page), {"credential": answer}).status_code in (200, 302), answer
    assert not Authenticator.objects.filter(type="webauthn").exists()
    assert [one.get(reverse("chat:new")).status_code for one in (visitor, stranger)] == [302, 302]
