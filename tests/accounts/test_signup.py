"""Sign-up credits, closed sign-up, and sign-up without mail or with an unreachable mail server."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import partial

import pytest
from allauth.account.models import EmailAddress, EmailConfirmationHMAC
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.core import mail
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts import signup
from accounts.models import SignupGrant, User
from billing.credits import MICRO
from billing.models import Account, LedgerEntry
from chatproject.lib.mail.models import OutgoingMail
from tests.lib.mail.conftest import by_outbox
from tests.support.threads import race

__all__ = ["by_outbox"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

EMAIL = "reader@example.org"
PASSWORD = "a-long-password-17"
WELCOME = 100 * MICRO


@pytest.fixture(autouse=True)
def verified_credits(settings):
    settings.ALLOW_UNVERIFIED_CREDITS = False
    settings.SIGNUP_CREDITS = WELCOME


def sign_up(client: Client, email: str = EMAIL) -> User:
    client.post("/accounts/signup/", {"email": email, "password1": PASSWORD})
    return User.objects.get(email=email)


def confirm(user: User, email: str = "") -> None:
    address = user.emailaddress_set.get(email=email or user.email)
    Client().post(reverse("account_confirm_email", args=[EmailConfirmationHMAC(address).key]))


def balance_of(user: User) -> int:
    return Account.objects.get(user=user).balance


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("staff@example.org", PASSWORD))
    return client


# --- Credits ----------------------------------------------------------------------------------


def test_credits_come_with_the_confirmed_address(client: Client):
    user = sign_up(client)
    assert balance_of(user) == 0
    confirm(user)
    assert balance_of(user) == WELCOME
    assert SignupGrant.objects.get(user=user).granted_at


def test_further_addresses_bring_no_credits(client: Client):
    user = sign_up(client)
    confirm(user)
    for number in range(3):
        other = EmailAddress.objects.create(user=user, email=f"{number}@example.org")
        signup.grant_for_address(other)
    confirm_again = EmailAddress.objects.get(email=EMAIL)
    confirm_again.verified = False
    confirm_again.save()
    confirm(user)
    assert balance_of(user) == WELCOME


def test_address_brings_credits_to_one_user_only(client: Client):
    """It is removed from one account and signs up for another."""
    first = sign_up(client)
    confirm(first)
    EmailAddress.objects.filter(user=first).update(email="moved@example.org")
    User.objects.filter(pk=first.pk).update(email="moved@example.org")
    second = sign_up(Client())
    confirm(second)
    assert second.emailaddress_set.get().verified
    assert balance_of(second) == 0


def test_concurrent_confirmations_grant_once(client: Client):
    user = sign_up(client)
    race([partial(confirm, user)] * 12)
    assert balance_of(user) == WELCOME
    assert LedgerEntry.objects.count() == 1


def test_grant_lost_in_a_crash_is_made_up(client: Client, monkeypatch):
    user = sign_up(client)
    with monkeypatch.context() as patch:
        patch.setattr("accounts.signup.grant", lambda user_id: 1 / 0)
        confirm(user)
    assert balance_of(user) == 0
    signup.grant_lost(timezone.now())
    assert balance_of(user) == 0  # its own process has a minute
    for _ in range(2):
        signup.grant_lost(timezone.now() + timedelta(minutes=2))
    assert balance_of(user) == WELCOME


def test_earlier_credits_of_other_amount_are_kept(client: Client, settings):
    settings.ALLOW_UNVERIFIED_CREDITS = True
    settings.SIGNUP_CREDITS = 5 * MICRO
    user = sign_up(client)
    assert balance_of(user) == 5 * MICRO
    settings.ALLOW_UNVERIFIED_CREDITS = False
    settings.SIGNUP_CREDITS = WELCOME
    confirm(user)
    assert balance_of(user) == 5 * MICRO


def test_user_created_by_staff_has_credits(staff: Client):
    form = {"email": EMAIL, "password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"}
    assert staff.post("/admin/accounts/user/add/", form).status_code == 302
    assert balance_of(User.objects.get(email=EMAIL)) == WELCOME


def test_superuser_of_the_command_has_credits():
    user = User.objects.create_superuser("root@example.org", PASSWORD)
    signup.grant_lost(timezone.now() + timedelta(minutes=2))
    assert balance_of(user) == WELCOME


def test_approved_user_has_credits_and_may_sign_in(staff: Client, settings):
    settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
    user = sign_up(Client())
    page = reverse("admin:accounts_user_access", args=[user.pk])
    for _ in range(2):
        staff.post(page, {"action": "approve"})
    assert balance_of(user) == WELCOME
    visitor = Client()
    visitor.post("/accounts/login/", {"login": EMAIL, "password": PASSWORD})
    assert visitor.get("/").status_code == 200
    assert LogEntry.objects.filter(change_message="Approved").exists()


# --- Closed sign-up ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["get", "post"])
def test_closed_sign_up_says_so(client: Client, settings, method):
    settings.SIGNUP = "closed"
    response = getattr(client, method)("/accounts/signup/", {"email": EMAIL, "password1": PASSWORD})
    assert response.status_code == 403
    html = response.content.decode()
    assert "Sign-up is closed" in html
    assert 'href="/accounts/login/"' in html
    assert not User.objects.exists()


def test_sign_in_page_has_no_link_to_closed_sign_up(client: Client, settings):
    assert "/accounts/signup/" in client.get("/accounts/login/").content.decode()
    settings.SIGNUP = "closed"
    assert "/accounts/signup/" not in client.get("/accounts/login/").content.decode()
    client.post("/accounts/password/reset/", {"email": "unknown@example.org"})
    assert "/accounts/signup/" not in mail.outbox[0].body


# --- An unreachable mail server ---------------------------------------------------------------


def test_sign_up_works_with_mail_server_unreachable(client: Client, by_outbox):
    by_outbox.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
    OutgoingMail.objects.create(
        message_id="<1@x>", due_at=timezone.now(), is_delayed=True, recipients=""
    )
    response = client.post(
        "/accounts/signup/", {"email": EMAIL, "password1": PASSWORD}, follow=True
    )
    assert response.status_code == 200
    assert "Mail is delayed" in response.content.decode()
    assert OutgoingMail.objects.filter(content__isnull=False).count() == 1


def test_reset_works_with_mail_server_unreachable(client: Client, by_outbox):
    User.objects.create_user(EMAIL, PASSWORD)
    response = client.post("/accounts/password/reset/", {"email": EMAIL}, follow=True)
    assert "Check your inbox" in response.content.decode()
    assert "Mail is delayed" not in response.content.decode()
    OutgoingMail.objects.update(is_delayed=True)
    again = client.post("/accounts/password/reset/", {"email": EMAIL}, follow=True)
    assert "Mail is delayed" in again.content.decode()
    assert OutgoingMail.objects.count() == 2


# --- A site without mail ----------------------------------------------------------------------


@pytest.fixture
def without_mail(settings):
    settings.EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
    settings.MAIL_TRANSPORT = ""
    settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"


def link_in(html: str) -> str:
    [link] = re.findall(r"<code>http://testserver(/[^<]+)</code>", html)
    return str(link)


@pytest.mark.usefixtures("without_mail")
def test_pages_without_mail_name_the_operator(client: Client):
    pages = [
        client.post("/accounts/signup/", {"email": EMAIL, "password1": PASSWORD}, follow=True),
        client.get("/accounts/password/reset/"),
        client.post("/accounts/password/reset/", {"email": EMAIL}, follow=True),
    ]
    user = User.objects.get(email=EMAIL)
    client.force_login(user)
    pages.append(client.get("/accounts/email/"))
    user.set_unusable_password()
    user.save()
    client.force_login(user)
    pages.append(client.get("/accounts/password/set/"))
    pages.append(client.get("/accounts/password/reset/key/1-used-link/", follow=True))
    wrong = {"login": EMAIL, "password": "wrong"}
    *_, refusal = [Client().post("/accounts/login/", wrong) for _ in range(6)]
    assert refusal.status_code == 429
    for page in [*pages, refusal]:
        # Without the shell of the chat, whose words are about other things that are sent.
        html = page.content.decode().partition("<main")[2].partition("</main>")[0]
        assert re.search(r"[Aa]sk the operator", html)
        assert "inbox" not in html
        assert not re.search(r"mail you|Send", html)
        assert "spam" not in html
    assert not OutgoingMail.objects.exists()


@pytest.mark.usefixtures("without_mail")
def test_links_of_staff_sign_a_user_in_without_mail(staff: Client):
    user = sign_up(Client())
    page = reverse("admin:accounts_user_access", args=[user.pk])
    assert "/access/" in staff.get(f"/admin/accounts/user/{user.pk}/change/").content.decode()

    visitor = Client()
    visitor.post(link_in(staff.post(page, {"action": "confirm"}).content.decode()))
    assert user.emailaddress_set.get().verified
    link = link_in(staff.post(page, {"action": "password"}).content.decode())
    address = visitor.get(link, follow=True).redirect_chain[-1][0]
    visitor.post(address, {"password1": "another-password-23", "password2": "another-password-23"})
    assert visitor.get("/").status_code == 200

    assert "<code>" not in staff.get(page).content.decode()
    logged = LogEntry.objects.filter(object_id=str(user.pk))
    assert logged.count() == 2
    assert not any("/accounts/" in entry.change_message for entry in logged)


def test_address_of_another_user_is_refused_in_words(staff: Client):
    User.objects.create_user(EMAIL, PASSWORD)
    form = {"email": EMAIL.upper(), "password1": PASSWORD, "password2": PASSWORD}
    page = staff.post("/admin/accounts/user/add/", form | {"usable_password": "true"})
    assert "There is already a user with this e-mail address." in page.content.decode()
    assert User.objects.filter(email__iexact=EMAIL).count() == 1


def test_links_need_their_permission(client: Client):
    user = User.objects.create_user(EMAIL, PASSWORD)
    clerk = User.objects.create_user("clerk@example.org", PASSWORD, is_staff=True)
    client.force_login(clerk)
    page = reverse("admin:accounts_user_access", args=[user.pk])

    def permit(name: str) -> None:
        clerk.user_permissions.add(Permission.objects.get(codename=name))

    permit("view_user")
    assert client.get(page).status_code == 403
    permit("approve_user")
    assert client.get(page).status_code == 200
    assert client.post(page, {"action": "password"}).status_code == 403
    permit("link_user")
    assert client.post(page, {"action": "password"}).status_code == 200
    User.objects.filter(pk=user.pk).update(is_staff=True)
    for action in ("password", "confirm"):
        assert client.post(page, {"action": action}).status_code == 403
