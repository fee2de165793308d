"""Users in the admin: only superusers change staff, and a user is deactivated, never deleted."""

from __future__ import annotations

import pytest
from allauth.account.models import EmailAddress
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission
from django.test import Client
from django.urls import reverse

from accounts.models import User
from accounts.signals import access_changed

PASSWORD, OTHER = "correct horse battery", "another-password-23"
LIST = "/admin/accounts/user/"

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


@pytest.fixture
def clerk(db) -> User:
    """A member of staff with every permission, but no superuser."""
    user = User.objects.create_user("clerk@example.org", PASSWORD, is_staff=True)
    user.user_permissions.set(Permission.objects.all())
    return user


@pytest.fixture
def desk(clerk: User) -> Client:
    """The browser of the clerk."""
    client = Client()
    client.force_login(clerk)
    return client


@pytest.fixture
def office(admin_user) -> Client:
    """The browser of a superuser."""
    client = Client()
    client.force_login(admin_user)
    return client


@pytest.fixture
def admin_user(db) -> User:
    return User.objects.create_superuser("root@example.org", PASSWORD)


@pytest.fixture
def reader(db) -> User:
    return User.objects.create_user("reader@example.org", PASSWORD)


def page(user: User, name: str = "change") -> str:
    return f"/admin/accounts/user/{user.pk}/{name}/"


def has_rights(user: User) -> bool:
    return user.is_staff or user.is_superuser or user.groups.exists()


PASSWORDS = {"password1": OTHER, "password2": OTHER, "usable_password": "true"}
ATTACKS = {
    "password": ("password", PASSWORDS),
    "no password": ("password", {"usable_password": "false"}),
    "address": ("change", {"email": "thief@example.org", "is_active": "on"}),
    "rights": ("change", {"email": "root@example.org"}),
    "link": ("access", {"action": "password"}),
    "confirmation": ("access", {"action": "confirm"}),
    "approval": ("access", {"action": "approve"}),
    "deactivation": ("deactivate", {"confirmed": "1"}),
    "reactivation": ("reactivate", {"confirmed": "1"}),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", ["superuser", "staff"])
def test_staff_cannot_change_staff(desk: Client, admin_user: User, attack: str, kind: str):
    if kind == "staff":
        User.objects.filter(pk=admin_user.pk).update(is_superuser=False)
    EmailAddress.objects.update(verified=False)
    before = User.objects.filter(pk=admin_user.pk).values().get()
    name, form = ATTACKS[attack]
    assert desk.post(page(admin_user, name), form).status_code == 403
    assert User.objects.filter(pk=admin_user.pk).values().get() == before
    assert not EmailAddress.objects.filter(verified=True).exists()


def test_staff_read_superusers_without_the_password(desk: Client, admin_user: User):
    html = desk.get(page(admin_user)).content.decode()
    assert admin_user.email in html
    assert admin_user.password not in html
    assert "/password/" not in html
    assert "deactivate/" not in html


def test_staff_give_no_rights(desk: Client, clerk: User, reader: User):
    group = Group.objects.create(name="operators")
    rights = {
        "is_active": "on",
        "is_staff": "on",
        "is_superuser": "on",
        "groups": [group.pk],
        "user_permissions": [Permission.objects.first().pk],
    }
    form = {"email": "new@example.org", **rights}
    assert desk.post(page(reader), form).status_code == 302
    reader.refresh_from_db()
    assert reader.email == "new@example.org"  # what the permission is for
    assert not has_rights(reader)
    assert not reader.groups.exists()
    assert not reader.user_permissions.exists()
    assert desk.post(page(clerk), {"email": clerk.email, **rights}).status_code == 403
    added = {"email": "own@example.org", **PASSWORDS, **rights}
    assert desk.post("/admin/accounts/user/add/", added).status_code == 302
    assert not has_rights(User.objects.get(email="own@example.org"))


def test_superusers_give_rights(office: Client, reader: User):
    form = {"email": reader.email, "is_active": "on", "is_staff": "on", "is_superuser": "on"}
    assert office.post(page(reader), form).status_code == 302
    reader.refresh_from_db()
    assert reader.is_staff
    assert reader.is_superuser
    assert office.post(page(reader, "password"), PASSWORDS).status_code == 302


def test_staff_change_no_group(desk: Client, office: Client):
    group = Group.objects.create(name="operators")
    change = reverse("admin:auth_group_change", args=[group.pk])
    form = {"name": "operators", "permissions": [Permission.objects.first().pk]}
    assert desk.get(change).status_code == 200
    assert desk.post(change, form).status_code == 403
    assert desk.post(reverse("admin:auth_group_add"), {"name": "mine"}).status_code == 403
    delete = {"action": "delete_selected", "_selected_action": [group.pk], "post": "yes"}
    desk.post(reverse("admin:auth_group_changelist"), delete)
    assert not group.permissions.exists()
    assert Group.objects.count() == 1
    assert office.post(change, form).status_code == 302
    assert group.permissions.count() == 1


def test_staff_add_no_address_to_others(desk: Client, admin_user: User):
    """A confirmed address receives links to a new password."""
    url = reverse("admin:account_emailaddress_changelist")
    address = EmailAddress.objects.create(user=admin_user, email="second@example.org")
    form = {"user": admin_user.pk, "email": "thief@example.org", "verified": "on"}
    assert desk.get(url).status_code == 200
    assert desk.post(reverse("admin:account_emailaddress_add"), form).status_code == 403
    change = reverse("admin:account_emailaddress_change", args=[address.pk])
    assert desk.post(change, form).status_code == 403
    desk.post(url, {"action": "make_verified", "_selected_action": [address.pk]})
    address.refresh_from_db()
    assert (address.email, address.verified) == ("second@example.org", False)


def test_changes_of_addresses_are_logged(office: Client, reader: User):
    address = EmailAddress.objects.create(user=reader, email="second@example.org")
    verify = {"action": "make_verified", "_selected_action": [address.pk]}
    url = reverse("admin:account_emailaddress_changelist")
    office.post(url, verify)
    office.post(url, verify)  # a double click
    change = reverse("admin:account_emailaddress_change", args=[address.pk])
    office.post(change, {"user": reader.pk, "email": "third@example.org", "verified": "on"})
    entries = LogEntry.objects.filter(object_id=str(address.pk)).order_by("pk")
    verified, changed = [entry.get_change_message() for entry in entries]
    assert verified == "Marked as verified"
    assert "second@example.org → third@example.org" in changed


def test_bulk_deactivation_skips_staff(desk: Client, clerk: User, admin_user: User, reader: User):
    selected = {"action": "deactivate", "_selected_action": [clerk.pk, admin_user.pk, reader.pk]}
    html = desk.post(LIST, selected).content.decode()
    assert "Nothing is deleted" in html
    assert f"<li>{reader.email}</li>" in html
    assert f"<li>{admin_user.email}</li>" not in html
    assert User.objects.filter(is_active=True).count() == 3  # not before it is confirmed
    html = desk.post(LIST, selected | {"confirmed": "1"}, follow=True).content.decode()
    assert "Deactivated reader@example.org." in html
    assert "2 skipped" in html
    assert [*User.objects.filter(is_active=False)] == [reader]
    selected["action"] = "reactivate"
    desk.post(LIST, selected | {"confirmed": "1"})
    assert not User.objects.filter(is_active=False).exists()


def test_deactivation_ends_access_and_is_reversed(desk: Client, clerk: User, reader: User):
    changed: list[int] = []

    def note(user_id: int, **kwargs: object) -> None:
        changed.append(user_id)

    browser = Client()
    browser.force_login(reader)
    assert browser.get("/").status_code == 200
    assert page(reader, "deactivate") in desk.get(page(reader)).content.decode()
    assert "signed out at once" in desk.get(page(reader, "deactivate")).content.decode()
    assert User.objects.filter(is_active=True, pk=reader.pk).exists()
    access_changed.connect(note)  # which ends the user's sockets
    try:
        desk.post(page(reader, "deactivate"), {"confirmed": "1"})
    finally:
        access_changed.disconnect(note)
    assert changed == [reader.pk]
    assert browser.get("/").status_code == 302
    assert page(reader, "reactivate") in desk.get(page(reader)).content.decode()
    desk.post(page(reader, "reactivate"), {"confirmed": "1"})
    desk.post(page(reader, "reactivate"), {"confirmed": "1"})  # a double click
    reader.refresh_from_db()
    assert reader.is_active
    logged = LogEntry.objects.filter(object_id=str(reader.pk), user=clerk).order_by("pk")
    assert [entry.change_message for entry in logged] == ["Deactivated", "Reactivated"]


def test_no_page_deletes_a_user(office: Client, reader: User):
    html = office.get(page(reader)).content.decode()
    assert page(reader, "delete") not in html
    assert "delete_selected" not in office.get(LIST).content.decode()
    response = office.post(page(reader, "delete"), {"post": "yes"})
    assert response["Location"] == page(reader, "deactivate")
    selected = {"action": "delete_selected", "_selected_action": [reader.pk], "post": "yes"}
    office.post(LIST, selected, follow=True)
    reader.refresh_from_db()
    assert reader.is_active


def test_own_account_cannot_be_deactivated(office: Client, admin_user: User):
    assert office.post(page(admin_user, "deactivate"), {"confirmed": "1"}).status_code == 403
    assert "deactivate/" not in office.get(page(admin_user)).content.decode()
