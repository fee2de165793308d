"""The admin of documents: state without names, another try, and deletion by staff."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from accounts.models import User
from chat.documents.models import Document
from tests.support.documents import a_pdf, read, uploaded
from tests.support.people import owner

__all__ = ["owner"]

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey_url")]

LIST = "admin:documents_document_changelist"


@pytest.fixture(autouse=True)
def folder(settings, tmp_path):
    settings.PRIVATE_ROOT = tmp_path / "private"


@pytest.fixture
def clerk() -> User:
    return User.objects.create_user("clerk@example.org", is_staff=True)


def allow(clerk: User, *names: str) -> Client:
    """Let a member of staff do what these permissions name; return a client."""
    for name in names:
        clerk.user_permissions.add(Permission.objects.get(codename=name))
    client = Client()
    client.force_login(User.objects.get(pk=clerk.pk))
    return client


def do(client: Client, action: str, *documents: Document) -> str:
    form = {"action": action, "_selected_action": [str(one.pk) for one in documents]}
    return client.post(reverse(LIST), form, follow=True).content.decode()


def test_staff_see_states_and_no_names(owner, clerk):
    failed = uploaded(owner, a_pdf([""]), "Zanzibar.pdf")
    client = allow(clerk, "view_document")
    page = reverse("admin:documents_document_change", args=[failed.pk])
    for address in (reverse(LIST), page):
        html = client.get(address).content.decode()
        assert ("no_text" in html, owner.email in html, "Zanzibar" in html) == (True, True, False)
    assert "text recognition" in client.get(page).content.decode()
    assert "Zanzibar" in allow(clerk, "view_message").get(page).content.decode()
    assert LogEntry.objects.filter(object_id=failed.pk, user=clerk).count() == 1


def test_staff_retry_and_delete_documents(owner, clerk):
    failed, fine = uploaded(owner, a_pdf([""])), uploaded(owner, "A text.")
    viewer = allow(clerk, "view_document")
    for action in ("retry", "delete_chosen"):
        do(viewer, action, failed, fine)
    assert Document.objects.filter(status="uploaded").count() == 0
    assert Document.objects.count() == 2

    client = allow(clerk, "change_document", "delete_document")
    assert "Being read again: 1." in do(client, "retry", failed, fine)
    failed.refresh_from_db()
    assert failed.status == "uploaded"
    assert read(failed).reason == "no_text"
    assert "Deleted: 2." in do(client, "delete_chosen", failed, fine)
    assert (Document.objects.count(), Document.all_objects.count()) == (0, 2)
    assert "Deleted: 0." in do(client, "delete_chosen", failed)
    assert LogEntry.objects.filter(user=clerk).count() == 3
