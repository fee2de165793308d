"""Changes of an account: each asks for the password, and is announced to the address before it."""

from __future__ import annotations

import re

import pytest
from allauth.account.models import EmailAddress, EmailConfirmationHMAC
from allauth.socialaccount.models import SocialAccount
from django.core import mail
from django.test import Client
from django.urls import URLPattern, get_resolver, reverse

from accounts import api_keys
from accounts.models import ApiKey, User
from chat.models import PushSubscription, Webhook
from chat.webhooks import editing
from chatproject.lib.env import Limit
from tests.accounts.test_pages import EMAIL, OTHER, PASSWORD, is_signed_in, patterns
from tests.support.limits import limits_without_redis

__all__ = ["limits_without_redis"]

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey_url")]

SECOND = "second@example.org"
EMAIL_PAGE = "/accounts/email/"


@pytest.fixture
def reader() -> User:
    user = User.objects.create_user(EMAIL, PASSWORD)
    EmailAddress.objects.create(user=user, email=EMAIL, primary=True, verified=True)
    return user


@pytest.fixture
def borrowed(client: Client, reader: User) -> Client:
    """A session of the reader in the hands of somebody without the password."""
    assert (
        client.post("/accounts/login/", {"login": EMAIL, "password": PASSWORD}).status_code == 302
    )
    mail.outbox.clear()
    return client


def addresses() -> list[tuple[str, bool, bool]]:
    return list(EmailAddress.objects.order_by("email").values_list("email", "primary", "verified"))


def add_second(user: User, *, verified: bool = True) -> EmailAddress:
    return EmailAddress.objects.create(user=user, email=SECOND, verified=verified)


def confirmation_of(user: User) -> str:
    address = user.emailaddress_set.get(email=SECOND)
    return reverse("account_confirm_email", args=[EmailConfirmationHMAC(address).key])


# The pages of allauth and ours that change an account, each with its form; and all others, by what
# makes them harmless.
CHANGES = {
    "add": (EMAIL_PAGE, {"email": SECOND, "action_add": ""}),
    "remove": (EMAIL_PAGE, {"email": SECOND, "action_remove": ""}),
    "make primary": (EMAIL_PAGE, {"email": SECOND, "action_primary": ""}),
    "confirm": (None, {}),
}
ASKS_FOR_PASSWORD = {"account_email", "account_confirm_email"} | {
    # Tested in test_factors.py, test_api_keys.py and privacy/test_leaving.py.
    "account_delete",
    "api_keys",
    "mfa_activate_totp",
    "mfa_add_webauthn",
    "mfa_generate_recovery_codes",
    "mfa_view_recovery_codes",
    "remove_factor",
    # Tested in test_sso.py.
    "socialaccount_begin",
    "socialaccount_connections",
}
PROVEN_BY_A_PROVIDER = {"socialaccount_callback", "socialaccount_confirm", "socialaccount_signup"}
REQUIRES_A_LINK_OF_THE_OPERATOR = {"account_sign_in_link"}
HAS_PASSWORD_IN_ITS_FORM = {"account_change_password", "account_reauthenticate", "account_login"}
HAS_A_FACTOR_IN_ITS_FORM = {
    "mfa_authenticate",
    "mfa_login_webauthn",
    "mfa_reauthenticate",
    "mfa_reauthenticate_webauthn",
}
ENDS_ACCESS_ONLY = {"revoke_api_key", "usersessions_list"}
MAILS_A_LINK_ONLY = {"account_set_password", "account_reset_password"}
REQUIRES_A_MAILED_KEY = {"account_reset_password_from_key"}
CHANGES_NOTHING = {
    "account_decline_invitation",  # forgets it in the session; its link stays usable
    "account_invitation",
    "account_waiting",
    "plan",
    "profile",  # the name that others see
    "account_restore",  # of an account whose password was just checked
    "visitor_language",
    "mfa_index",
    "account_logout",
    "account_inactive",
    "account_signup",
    "account_email_verification_sent",
    "account_reset_password_done",
    "account_reset_password_from_key_done",
    "account_confirm_login_code",  # login by code is off
}


def test_each_account_page_has_a_known_protection():
    """A page that a new version of allauth brings fails here until its protection is decided."""
    names = {
        name
        for name, route, pattern in patterns(get_resolver())
        if route.startswith("accounts/") and isinstance(pattern, URLPattern)
    }
    known = (
        ASKS_FOR_PASSWORD
        | HAS_PASSWORD_IN_ITS_FORM
        | HAS_A_FACTOR_IN_ITS_FORM
        | ENDS_ACCESS_ONLY
        | MAILS_A_LINK_ONLY
        | REQUIRES_A_MAILED_KEY
        | PROVEN_BY_A_PROVIDER
        | REQUIRES_A_LINK_OF_THE_OPERATOR
        | CHANGES_NOTHING
    )
    assert names == known


@pytest.mark.parametrize("ajax", [False, True], ids=["form", "script"])
@pytest.mark.parametrize("change", CHANGES)
def test_borrowed_session_changes_no_address(borrowed: Client, reader: User, change, ajax):
    if change != "add":
        add_second(reader, verified=change == "make primary")
    before = addresses()
    address, form = CHANGES[change]
    headers = {"X-Requested-With": "XMLHttpRequest"} if ajax else {}
    response = borrowed.post(address or confirmation_of(reader), form, headers=headers)
    assert "/accounts/reauthenticate/" in response["Location"]
    assert addresses() == before
    wrong = borrowed.post(response["Location"], {"password": "wrong"})
    assert wrong.status_code == 200
    assert addresses() == before


@pytest.mark.parametrize("change", CHANGES)
def test_change_with_password_is_announced_to_old_address(borrowed: Client, reader: User, change):
    if change != "add":
        add_second(reader, verified=change == "make primary")
    before = addresses()
    address, form = CHANGES[change]
    asked = borrowed.post(address or confirmation_of(reader), form)
    borrowed.post(asked["Location"], {"password": PASSWORD})
    assert addresses() != before
    notices = [message for message in mail.outbox if message.to == [EMAIL]]
    assert [message.subject for message in notices] == [
        {
            "add": "Parley: A new e-mail address",
            "remove": "Parley: An e-mail address was removed",
            "make primary": "Parley: Your e-mail address was changed",
            "confirm": "Parley: A new e-mail address was confirmed",
        }[change]
    ]
    assert SECOND in notices[0].body
    assert "change your password" in notices[0].body
    if change == "remove":
        assert [SECOND] in [message.to for message in mail.outbox]


@pytest.mark.parametrize("session", ["none", "other"])
def test_additional_address_is_confirmed_by_owner_only(reader: User, session):
    """The link of a second address, opened without its owner's session, asks to sign in."""
    add_second(reader, verified=False)
    client = Client()
    if session == "other":
        client.force_login(User.objects.create_user("other@example.org", PASSWORD))
    response = client.post(confirmation_of(reader))
    assert response["Location"].startswith("/accounts/login/?next=/accounts/confirm-email/")
    assert not reader.emailaddress_set.get(email=SECOND).verified


def test_primary_address_is_confirmed_without_session(client: Client):
    client.post("/accounts/signup/", {"email": EMAIL, "password1": PASSWORD})
    [link] = re.findall(r"http://testserver(/\S+)", str(mail.outbox[0].body))
    Client().post(link)
    assert addresses() == [(EMAIL, True, True)]


def test_account_of_staff_without_address_row_is_announced(client: Client):
    """allauth makes the row of such an account, but none primary."""
    user = User.objects.create_user(EMAIL, PASSWORD)
    add_second(user)
    client.force_login(user)
    asked = client.post(EMAIL_PAGE, {"email": SECOND, "action_primary": ""})
    client.post(asked["Location"], {"password": PASSWORD})
    user.refresh_from_db()
    assert user.email == SECOND
    assert [message.to for message in mail.outbox] == [[EMAIL]]


def test_password_change_is_announced(borrowed: Client):
    form = {"oldpassword": PASSWORD, "password1": OTHER, "password2": OTHER}
    borrowed.post("/accounts/password/change/", form)
    [notice] = mail.outbox
    assert (notice.to, notice.subject) == ([EMAIL], "Parley: Your password was changed")
    assert "reset your password at once" in notice.body


def test_password_reset_is_announced(client: Client, reader: User):
    client.post("/accounts/password/reset/", {"email": EMAIL})
    [link] = re.findall(r"http://testserver(/\S+)", str(mail.outbox[0].body))
    address = client.get(link, follow=True).redirect_chain[-1][0]
    client.post(address, {"password1": OTHER, "password2": OTHER})
    assert [message.subject for message in mail.outbox[1:]] == ["Parley: Your password was changed"]


# --- An account that another person made with the owner's address ------------------------------


def reset(email: str) -> bool:
    """Set another password by a mailed link; return whether there was one."""
    mail.outbox.clear()
    client = Client()
    client.post("/accounts/password/reset/", {"email": email})
    [message] = mail.outbox
    link = re.search(r"http://testserver(/accounts/password/reset/key/\S+)", str(message.body))
    if link is None:
        return False
    address = client.get(link[1], follow=True).redirect_chain[-1][0]
    client.post(address, {"password1": OTHER, "password2": OTHER})
    return True


def add_other_access(user: User) -> None:
    """Add access that outlives a password: a key, an account at an identity provider, a device, a webhook."""
    api_keys.create(user, api_keys.Terms("Test"))
    SocialAccount.objects.create(user=user, provider="oidc", uid="maker")
    PushSubscription.objects.create(user=user, endpoint="https://push.example.org/maker")
    editing.create(user, editing.Terms("Test", "https://maker.example.org/", ["run.done"], True))


def other_access() -> int:
    return sum(
        rows.count()
        for rows in (
            ApiKey.objects.filter(revoked_at=None),
            SocialAccount.objects,
            PushSubscription.objects,
            Webhook.objects,
        )
    )


@pytest.mark.parametrize("verified", [False, True], ids=["unconfirmed", "confirmed"])
def test_reset_removes_addresses_of_first_maker(client: Client, verified):
    client.post("/accounts/signup/", {"email": EMAIL, "password1": PASSWORD})
    add_second(User.objects.get(), verified=verified)
    add_other_access(User.objects.get())
    assert not reset(SECOND), "only the primary address, which is not confirmed, resets"
    assert other_access() == 4
    assert reset(EMAIL)
    assert addresses() == [(EMAIL, True, False)]
    assert other_access() == 0
    assert not reset(SECOND)


def test_reset_removes_addresses_also_without_redis(request: pytest.FixtureRequest):
    client = Client(raise_request_exception=False)
    client.post("/accounts/signup/", {"email": EMAIL, "password1": PASSWORD})
    add_second(User.objects.get())
    mail.outbox.clear()
    client.post("/accounts/password/reset/", {"email": EMAIL})
    [link] = re.findall(r"http://testserver(/\S+)", str(mail.outbox[0].body))
    address = client.get(link, follow=True).redirect_chain[-1][0]
    request.getfixturevalue("limits_without_redis")
    client.post(address, {"password1": OTHER, "password2": OTHER})
    assert User.objects.get().check_password(OTHER)
    assert addresses() == [(EMAIL, True, False)]


@pytest.mark.parametrize("verified", [False, True], ids=["unconfirmed", "confirmed"])
def test_reset_keeps_confirmed_addresses_of_owner(reader: User, verified):
    add_second(reader, verified=verified)
    add_other_access(reader)
    assert reset(SECOND) == verified
    assert reset(EMAIL)
    assert other_access() == 4
    assert addresses() == [(EMAIL, True, True), (SECOND, False, True)][: 1 + verified]


def test_reset_returns_password_checks_to_owner(borrowed: Client, reader: User, settings):
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"password_checks": Limit(((1, 60),))}
    form = {"oldpassword": "wrong", "password1": OTHER, "password2": OTHER}
    for _ in range(2):
        response = borrowed.post("/accounts/password/change/", form)
    assert response.status_code == 429
    reset(EMAIL)
    owner = Client()
    owner.post("/accounts/login/", {"login": EMAIL, "password": OTHER})
    assert owner.post("/accounts/password/change/", form).status_code == 200


def test_changes_by_staff_are_announced(client: Client, reader: User):
    manager = User.objects.create_user("staff@example.org", is_staff=True, is_superuser=True)
    client.force_login(manager)
    page = f"/admin/accounts/user/{reader.pk}"
    form = {"password1": OTHER, "password2": OTHER, "usable_password": "true"}
    assert client.post(f"{page}/password/", form).status_code == 302
    assert client.post(f"{page}/change/", {"email": SECOND, "is_active": "on"}).status_code == 302
    assert [(message.to, message.subject) for message in mail.outbox] == [
        ([EMAIL], "Parley: Your password was changed"),
        ([EMAIL], "Parley: Your e-mail address was changed"),
    ]
    assert addresses() == [(SECOND, True, False)]
    mail.outbox.clear()
    client.post("/accounts/password/reset/", {"email": EMAIL})
    assert mail.outbox[0].subject == "Parley: There is no account for this address"


def test_own_password_of_staff_is_changed_on_the_site(borrowed: Client, reader: User):
    User.objects.filter(pk=reader.pk).update(is_staff=True, is_superuser=True)
    form = {"old_password": PASSWORD, "new_password1": OTHER, "new_password2": OTHER}
    response = borrowed.post("/admin/password_change/", form)
    assert response["Location"] == "/accounts/password/change/"
    reader.refresh_from_db()
    assert reader.check_password(PASSWORD)


# --- Accounts without a password --------------------------------------------------------------


@pytest.fixture
def without_password(client: Client, reader: User) -> Client:
    reader.set_unusable_password()
    reader.save()
    client.force_login(reader)
    return client


@pytest.mark.parametrize("change", CHANGES)
def test_account_without_password_changes_no_address(without_password, reader: User, change):
    if change != "add":
        add_second(reader, verified=change == "make primary")
    before = addresses()
    address, form = CHANGES[change]
    response = without_password.post(address or confirmation_of(reader), form)
    assert response["Location"] == "/accounts/password/set/"
    assert addresses() == before


def test_account_without_password_sets_it_by_mail(without_password, reader: User):
    page = "/accounts/password/set/"
    assert EMAIL in without_password.get(page).content.decode()
    form = {"password1": OTHER, "password2": OTHER}
    without_password.post(page, form)
    reader.refresh_from_db()
    assert not reader.has_usable_password()
    [message] = mail.outbox
    assert message.to == [EMAIL]
    [link] = re.findall(r"http://testserver(/\S+)", str(message.body))
    owner = Client()
    address = owner.get(link, follow=True).redirect_chain[-1][0]
    owner.post(address, form)
    reader.refresh_from_db()
    assert reader.check_password(OTHER)
    assert is_signed_in(owner)
