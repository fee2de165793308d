"""Who may create an account: approval by staff, invitations by link, and lists of addresses."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from django.contrib.auth.models import Group, Permission
from django.core import mail
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db.models.signals import post_save
from django.test import Client
from django.utils import timezone

from accounts import invitations
from accounts.models import Invitation, InvitationUse, User
from billing.models import Account, Plan
from tests.support.threads import race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

EMAIL = "reader@example.org"
PASSWORD = "a-long-password-17"
UPLOAD = "/admin/accounts/invitation/upload/"
ADD = "/admin/accounts/invitation/add/"


@pytest.fixture(autouse=True)
def _site(settings):
    settings.SITE_URL = "https://chat.example.org"


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("staff@example.org", PASSWORD))
    return client


def sign_up(client: Client, email: str = EMAIL) -> Any:
    return client.post("/accounts/signup/", {"email": email, "password1": PASSWORD}, follow=True)


def terms(**fields: Any) -> invitations.Terms:
    return invitations.Terms(expires_at=timezone.now() + timedelta(days=1), **fields)


def link(**fields: Any) -> tuple[Invitation, str]:
    token, digest = invitations.new_token()
    values = {"hash": digest, "expires_at": timezone.now() + timedelta(days=1), **fields}
    return Invitation.objects.create(**values), f"/accounts/invitation/{token}/"


def test_account_waits_until_staff_approve_it(staff: Client, settings):
    settings.SIGNUP = "approval"
    visitor = Client()
    assert "Waiting for approval" in sign_up(visitor).content.decode()
    other = sign_up(Client(), "other@example.org")
    assert "Waiting for approval" in other.content.decode()
    [notice] = mail.outbox  # the second one came too soon
    assert notice.to == ["staff@example.org"]
    assert "https://chat.example.org/admin/accounts/user/?awaits_approval__exact=1" in notice.body
    user = User.objects.get(email=EMAIL)
    assert (user.is_active, user.awaits_approval) == (False, True)
    entered = {"login": EMAIL, "password": PASSWORD}
    assert (
        "Waiting for approval"
        in visitor.post("/accounts/login/", entered, follow=True).content.decode()
    )
    assert visitor.get("/chats/").status_code == 302

    listed = staff.get("/admin/accounts/user/?awaits_approval__exact=1").content.decode()
    assert EMAIL in listed
    chosen = {"action": "approve_accounts", "_selected_action": [user.pk], "index": "0"}
    staff.post("/admin/accounts/user/", chosen)
    staff.post("/admin/accounts/user/", chosen)  # again: nothing more is sent
    refused = User.objects.get(email="other@example.org")
    chosen |= {"action": "refuse_accounts", "_selected_action": [refused.pk]}
    staff.post("/admin/accounts/user/", chosen)
    assert [one.to for one in mail.outbox[1:]] == [[EMAIL], ["other@example.org"]]
    assert "is approved" in mail.outbox[1].subject
    user.refresh_from_db()
    refused.refresh_from_db()
    assert (user.is_active, user.awaits_approval) == (True, False)
    assert (refused.is_active, refused.awaits_approval) == (False, False)
    assert visitor.post("/accounts/login/", entered)["Location"] == "/"


def test_approval_needs_its_permission(client: Client):
    waits = User.objects.create_user(EMAIL, PASSWORD, is_active=False, awaits_approval=True)
    clerk = User.objects.create_user("clerk@example.org", is_staff=True)
    clerk.user_permissions.set(Permission.objects.filter(codename__in=["view_user", "change_user"]))
    client.force_login(clerk)
    chosen = {"action": "approve_accounts", "_selected_action": [waits.pk], "index": "0"}
    client.post("/admin/accounts/user/", chosen)
    waits.refresh_from_db()
    assert waits.awaits_approval


def test_invitation_opens_sign_up_with_group_and_plan(staff: Client, settings):
    settings.SIGNUP = "invitation"
    assert sign_up(Client()).status_code == 403
    group = Group.objects.create(name="School")
    plan = Plan.objects.create(slug="s", name="S", monthly_credits=7)
    form = {"email": "", "max_uses": "1", "days": "7", "plan": plan.pk, "group": group.pk}
    form["plan_days"] = "30"
    shown = staff.post(ADD, form).content.decode()
    [address] = re.findall(
        r"<code>https://chat.example.org(/accounts/invitation/[\w-]{43}/)</code>", shown
    )
    assert Invitation.objects.get().hash not in shown
    visitor = Client()
    assert visitor.get(address)["Location"] == "/accounts/signup/"
    sign_up(visitor)
    user = User.objects.get(email=EMAIL)
    assert list(user.groups.all()) == [group]
    account = Account.objects.get(user=user)
    assert (account.plan, account.balance) == (plan, settings.SIGNUP_CREDITS + 7)
    used = InvitationUse.objects.get(user=user)
    assert used.applied_at
    membership = user.account.memberships.get()
    assert membership.until == used.used_at + timedelta(days=30)
    assert membership.invitation == used.invitation
    assert not EmailAddress.objects.get(user=user).verified
    late = Client()
    assert late.get(address).status_code == 404
    assert sign_up(late, "late@example.org").status_code == 403


def test_lost_plan_is_given_by_the_clock():
    plan = Plan.objects.create(slug="s", name="S")
    user = User.objects.create_user(EMAIL, PASSWORD)
    invitation, _address = link(plan=plan)
    early = timezone.now() - timedelta(minutes=2)
    InvitationUse.objects.create(user=user, invitation=invitation, used_at=early)
    for _ in range(2):
        invitations.apply_lost(timezone.now())
    assert Account.objects.get(user=user).plan == plan
    assert InvitationUse.objects.get().applied_at


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"expires_at": timezone.now() - timedelta(seconds=1)}, "It expired on"),
        ({"revoked_at": timezone.now()}, "It was withdrawn."),
        ({"uses": 1}, "It was used already."),
    ],
    ids=["expired", "revoked", "used"],
)
def test_unusable_invitation_makes_no_account(settings, fields, reason):
    settings.SIGNUP = "invitation"
    _invitation, address = link(**fields)
    visitor = Client()
    ended = visitor.get(address)
    assert ended.status_code == 404
    assert reason in ended.content.decode()
    assert sign_up(visitor).status_code == 403
    assert not User.objects.exists()
    assert Client().get(f"/accounts/invitation/{'x' * 500}/").status_code == 404


def test_invited_address_and_plan_are_shown(settings):
    settings.SIGNUP = "invitation"
    plan = Plan.objects.create(slug="s", name="School")
    _invitation, address = link(email=EMAIL, plan=plan, plan_days=30)
    visitor = Client()
    shown = visitor.get(address, follow=True).content.decode()
    assert "You were invited to" in shown
    assert "You get the plan School for 30 days." in shown
    assert f'value="{EMAIL}"' in shown
    refused = sign_up(visitor, "another@example.org").content.decode()
    assert f"Your invitation is for \u2068{EMAIL}\u2069." in refused
    assert not User.objects.exists()
    sign_up(visitor, EMAIL.upper())
    user = User.objects.get()
    assert user.email == EMAIL
    # Its own link leads the user to the chats; another one is not used up by a look.
    assert visitor.get(address)["Location"] == "/"
    _other, other = link()
    assert "You are signed in as" in visitor.get(other, follow=True).content.decode()


def test_invitation_can_be_declined(settings):
    settings.SIGNUP = "open"
    invitation, address = link(email=EMAIL)
    visitor = Client()
    button = "Sign up without the invitation"
    assert button in visitor.get(address, follow=True).content.decode()
    shown = visitor.post("/accounts/invitation/decline/", follow=True).content.decode()
    assert "You were invited" not in shown
    sign_up(visitor, "another@example.org")
    assert User.objects.get().email == "another@example.org"
    invitation.refresh_from_db()
    assert invitation.uses == 0
    settings.SIGNUP = "invitation"
    assert button not in Client().get(address, follow=True).content.decode()


def test_one_address_is_invited_by_mail(staff: Client):
    form = {"email": EMAIL, "by_mail": "on", "max_uses": "1", "days": "7"}
    assert staff.post(ADD, form | {"email": ""}).status_code == 400
    assert "is mailed" in staff.post(ADD, form, follow=True).content.decode()
    invitations.mail_due(timezone.now())
    [sent] = mail.outbox
    assert sent.to == [EMAIL]
    assert "has an invitation already" in staff.post(ADD, form).content.decode()
    User.objects.create_user(EMAIL)
    assert "already an account" in staff.post(ADD, form).content.decode()
    assert Invitation.objects.count() == 1


def test_last_use_is_taken_by_one_of_two(settings):
    settings.SIGNUP = "invitation"
    invitation, address = link(max_uses=3, uses=2)
    visitors = [Client(), Client()]
    for visitor in visitors:
        visitor.get(address)
    names = ("one@example.org", "two@example.org")
    race([partial(sign_up, *each) for each in zip(visitors, names, strict=True)])
    assert User.objects.count() == InvitationUse.objects.count() == 1
    invitation.refresh_from_db()
    assert invitation.uses == 3


@pytest.mark.parametrize("mode", ["invitation", "approval"])
def test_invitation_that_ends_meanwhile_lets_none_in(settings, mode):
    settings.SIGNUP = mode
    _invitation, address = link()
    visitor = Client()
    visitor.get(address)

    def revoke(**_signal: Any) -> None:
        Invitation.objects.update(revoked_at=timezone.now())

    post_save.connect(revoke, sender=User)  # between the two looks at the invitation
    try:
        assert sign_up(visitor).status_code == 403
    finally:
        post_save.disconnect(revoke, sender=User)
    assert not User.objects.exists()


def upload(staff: Client, text: str | bytes) -> Any:
    data = text.encode() if isinstance(text, str) else text
    form = {"file": SimpleUploadedFile("list.csv", data), "days": "14"}
    return staff.post(UPLOAD, form, follow=True)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("email\na@example.org\nnot one\n\nb@", "Line 3: “not one” is not an e-mail address."),
        (b"a@example.org\n\xff\xfe@example.org", "Line 2 is not UTF-8."),
        ("name;email\nAda;a@example.org\nBob", "Line 3: “” is not an e-mail address."),
        ('a@example.org\n"b@example.org', "Line 2"),
        ("\n\n", "The file has no addresses."),
        ("\n".join(f"{n}@example.org" for n in range(10_001)), "at most 10000 are possible"),
        (b"x" * 2_000_001, "The file is larger than 2 MB."),
    ],
)
def test_wrong_list_changes_nothing(staff: Client, text, error):
    response = upload(staff, text)
    assert response.status_code == 400
    assert error in response.content.decode()
    assert not Invitation.objects.exists()


def test_list_without_mail_says_what_is_missing(staff: Client, settings):
    settings.SITE_URL = ""
    for response in (staff.get(UPLOAD), upload(staff, "a@example.org")):
        page = response.content.decode()
        assert "set EMAIL_URL and SITE_URL first" in page
        assert "Correct the file" not in page
    assert not Invitation.objects.exists()


def test_list_is_invited_by_mail_once_each(staff: Client, settings):
    settings.SIGNUP, settings.INVITATION_MAILS_PER_MINUTE = "invitation", 12
    User.objects.create_user("member@example.org")
    text = "Name,E-Mail\n" + "".join(
        f"x,{name}@example.org\n" for name in ("reader", "B", "b", "member", "c", "d")
    )
    said = upload(staff, "\ufeff" + text).content.decode()
    assert (
        "4 addresses are invited; left out: 1 with an account, 0 invited before, 1 repeated" in said
    )
    assert "0 addresses are invited" in upload(staff, text).content.decode()
    now = timezone.now()
    race([lambda: invitations.mail_due(now)] * 2)
    assert len(mail.outbox) in (2, 3, 4)  # two in each turn, none twice
    for _ in range(3):
        invitations.mail_due(now)
    assert sorted(one.to[0] for one in mail.outbox) == [
        f"{name}@example.org" for name in ("b", "c", "d", "reader")
    ]
    [own] = [one for one in mail.outbox if one.to == [EMAIL]]
    [address] = re.findall(
        r"https://chat.example.org(/accounts/invitation/[\w-]{43}/)", str(own.body)
    )
    visitor = Client()
    visitor.get(address)
    sign_up(visitor)
    assert EmailAddress.objects.get(email=EMAIL).verified  # the link was in its mail alone


def test_staff_give_no_rights_that_they_lack(client: Client):
    clerk = User.objects.create_user("clerk@example.org", is_staff=True)
    clerk.user_permissions.set(Permission.objects.filter(codename__endswith="_invitation"))
    client.force_login(clerk)
    powerful = Group.objects.create(name="Boss")
    powerful.permissions.set(Permission.objects.all()[:1])
    plan = Plan.objects.create(slug="s", name="S")
    form = {"max_uses": "1", "days": "7"}
    assert client.post(ADD, form | {"group": powerful.pk}).status_code == 400
    assert client.post(ADD, form | {"plan": plan.pk}).status_code == 200
    one = Invitation.objects.get()
    assert (one.plan, one.group) == (None, None)
    chosen = {"action": "revoke", "_selected_action": [one.pk], "index": "0"}
    client.post("/admin/accounts/invitation/", chosen)
    one.refresh_from_db()
    assert one.revoked_at
