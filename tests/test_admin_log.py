"""The admin's log has each change of staff, with old and new values but without secrets."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.urls import reverse

from accounts.models import User
from chat.models import Assistant, LanguageModel, Provider
from tests.support.people import assistant

__all__ = ["assistant"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

LOG = "/admin/admin/logentry/"


def change(client, row, **values):
    """Post the form of a row as a browser does, with some values changed; return what was logged."""
    url = reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])
    form = client.get(url).context["adminform"].form
    shown = {name: form[name].value() for name in form.fields}
    posted = {
        name: value
        for name, value in shown.items()
        if value is not None and value is not False and value != ""
    }
    response = client.post(url, posted | values)
    assert response.status_code == 302, response.context["adminform"].form.errors
    return LogEntry.objects.latest("pk").change_message


def test_changes_have_old_and_new_values(admin_client, assistant):
    model = assistant.model
    provider = Provider.objects.create(name="One", base_url="https://one.example.org/v1")
    other = LanguageModel.objects.create(
        name="Other", provider_model="o", context_tokens=8_000, max_output_tokens=2_000
    )
    LanguageModel.objects.update(provider=provider)
    assert change(admin_client, assistant, name="New", model=other.pk) == (
        "Changed. Name: Parley → New; Model: Stub → Other."
    )
    assert "Name: Stub → Fast" in change(admin_client, model, name="Fast")
    user = User.objects.create_user("reader@example.org", "correct horse battery")
    right = Permission.objects.get(codename="view_run")
    message = change(admin_client, user, is_staff="on", user_permissions=[right.pk])
    assert "Staff status: False → True" in message
    assert f" → {right}" in message


def test_secrets_are_named_without_values(admin_client):
    provider = Provider.objects.create(name="One", base_url="https://one.example.org/v1")
    values = {"new_key": "sk-secret-0123456789", "base_url": "https://two.example.org/v1"}
    headers = {"header_lines": "X-Key: secret-header-9"}
    message = change(admin_client, provider, **values, **headers)
    assert "https://one.example.org/v1 → https://two.example.org/v1" in message
    assert "API key" in message
    assert "Extra headers" in message
    assert "secret" not in message


def test_log_is_read_with_its_permission_alone(client, admin_client, assistant):
    change(admin_client, assistant, name="New")
    entry = LogEntry.objects.latest("pk")
    page = f"{LOG}{entry.pk}/change/"
    clerk = User.objects.create_user("clerk@example.org", is_staff=True)
    client.force_login(clerk)
    assert client.get(LOG).status_code == 403
    assert client.get(page).status_code == 403
    clerk.user_permissions.add(Permission.objects.get(codename="view_logentry"))
    html = client.get(LOG, {"q": "New"}).content.decode()
    assert "Name: Parley → New" in html
    assert entry.user.email in html
    assert reverse("admin:chat_assistant_change", args=[assistant.pk]) in html
    assert "Name: Parley → New" in client.get(page).content.decode()
    assert client.get(LOG, {"q": "clerk"}).context["cl"].result_count == 0
    assert admin_client.post(page, {"change_message": "x"}).status_code == 403
    assert admin_client.post(f"{LOG}{entry.pk}/delete/", {"post": "yes"}).status_code == 403
    assert Assistant.objects.get().name == "New"


def test_index_links_to_pages_of_staff_by_permission(client, admin_client):
    pages = {
        "view_status": reverse("system_status"),
        "view_run": reverse("chat_live_queue"),
        "view_ledgercheck": reverse("billing_report"),
        "view_provider": reverse("admin:chat_provider_changelist"),
        "view_dailyusage": reverse("admin:billing_dailyusage_changelist"),
        "view_logentry": LOG,
    }
    html = admin_client.get("/admin/").content.decode()
    for page in pages.values():
        assert f'<li><a href="{page}">' in html
        assert admin_client.get(page).status_code == 200
    clerk = User.objects.create_user("clerk@example.org", is_staff=True)
    clerk.user_permissions.add(Permission.objects.get(codename="view_run"))
    client.force_login(clerk)
    html = client.get("/admin/").content.decode()
    shown = [name for name, page in pages.items() if f'<li><a href="{page}">' in html]
    assert shown == ["view_run"]


def test_names_of_the_admin_stand_once(admin_client):
    listed = admin_client.get("/admin/").context["app_list"]
    names = [str(app["name"]).lower() for app in listed]
    assert len(names) == len(set(names))
    models = [model["name"].lower() for app in listed for model in app["models"]]
    assert len(models) == len(set(models))
    assert [*names, *models].count("accounts") == 1
    assert "invoice addresses" in models
