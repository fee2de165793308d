"""Providers in the admin: a plain form, whose secrets are written and never shown."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.urls import reverse

from chat.admin.catalogue import ProviderForm, key_of
from chat.conversations import lifecycle
from chat.models import Assistant, LanguageModel, Provider
from tests.support.html_forms import posted_form
from tests.support.people import assistant

__all__ = ["assistant"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

KEY = "sk-live-0123456789abcd"
FORM = {
    "name": "Second",
    "base_url": "https://api.example.com/v1/",
    "new_key": KEY,
    "first_byte_seconds": 300,
    "silence_seconds": 120,
    "header_lines": "X-Team: research\n\nX-Secret: a-secret-of-the-team",
    "proxy_address": "http://parley:secret-pass@proxy.example.org:3128",
    "enabled": "on",
}
SECRETS = [KEY, "a-secret-of-the-team", "secret-pass"]


@pytest.fixture
def provider(admin_client) -> Provider:
    assert admin_client.post(reverse("admin:chat_provider_add"), FORM).status_code == 302
    return Provider.objects.get(name="Second")


def url(provider: Provider) -> str:
    return reverse("admin:chat_provider_change", args=[provider.pk])


def test_secrets_are_encrypted_and_never_posted_form(admin_client, provider):
    assert provider.base_url == "https://api.example.com/v1"
    assert provider.key == KEY
    assert provider.headers == {"X-Team": "research", "X-Secret": "a-secret-of-the-team"}
    assert provider.proxy == FORM["proxy_address"]
    row = str(Provider.objects.values().get())
    pages = [
        admin_client.get(url(provider)),
        admin_client.get(reverse("admin:chat_provider_changelist")),
    ]
    history = admin_client.get(reverse("admin:chat_provider_history", args=[provider.pk]))
    texts = [row, *(page.content.decode() for page in [*pages, history])]
    texts.append(str([*LogEntry.objects.values()]))
    for secret in SECRETS:
        assert not any(secret in text for text in texts), secret
    assert all("set, ends in …abcd" in page.content.decode() for page in pages)


def test_two_open_forms_keep_both_changes(admin_client, provider):
    first, second = (posted_form(admin_client.get(url(provider))) for _ in range(2))
    lines = str(first["header_lines"]) + "\nX-New: yes"
    changes = {"name": "Renamed", "header_lines": lines, "concurrency": "3", "enabled": ""}
    assert admin_client.post(url(provider), first | changes).status_code == 302

    saved = admin_client.post(url(provider), second | {"notes": "Fast.", "silence_seconds": "60"})

    assert saved.status_code == 302, saved.context["errors"]
    kept = Provider.objects.get()
    assert (kept.name, kept.concurrency, kept.enabled, kept.silence_seconds, kept.notes) == (
        *("Renamed", 3, False),
        *(60, "Fast."),
    )
    assert kept.headers["X-New"] == "yes"
    assert (kept.key, kept.proxy) == (KEY, FORM["proxy_address"])


def test_field_changed_by_two_is_refused_once(admin_client, provider):
    opened = posted_form(admin_client.get(url(provider)))
    Provider.objects.update(base_url="https://new.example.com/v1")
    opened["base_url"] = "https://mine.example.com/v1"

    page = admin_client.post(url(provider), opened)

    words = "Changed meanwhile by others, to: https://new.example.com/v1. Save again"
    assert words in str(page.context["errors"])
    assert Provider.objects.get().base_url == "https://new.example.com/v1"
    assert admin_client.post(url(provider), posted_form(page)).status_code == 302
    assert Provider.objects.get().base_url == "https://mine.example.com/v1"


def test_old_form_keeps_new_choices(admin_client, assistant):
    Assistant.objects.update(system_prompt="\nBe brief.\nBe kind.\n", message_fee=1_500_000)
    address = reverse("admin:chat_assistant_change", args=[assistant.pk])
    opened = posted_form(admin_client.get(address))
    chosen = LanguageModel.objects.create(name="Chosen", provider_model="chosen")
    Assistant.objects.update(model=chosen, temperature=0.5, suggestions=["Why?"], enabled=False)

    assert admin_client.post(address, opened | {"position": "7"}).status_code == 302

    kept = Assistant.objects.get()
    assert (kept.model, kept.temperature, kept.suggestions) == (chosen, 0.5, ["Why?"])
    assert (kept.position, kept.enabled, kept.message_fee) == (7, False, 1_500_000)
    assert kept.system_prompt == "\nBe brief.\nBe kind.\n"


def test_unchanged_form_keeps_secrets(admin_client, provider):
    posted = posted_form(admin_client.get(url(provider))) | {"name": "Renamed"}
    assert not any(secret in str(posted) for secret in SECRETS)
    assert admin_client.post(url(provider), posted).status_code == 302
    kept = Provider.objects.get()
    assert kept.name == "Renamed"
    assert (kept.key, kept.proxy) == (KEY, FORM["proxy_address"])
    assert kept.headers == provider.headers


def test_secrets_are_replaced_and_removed(admin_client, provider):
    posted = posted_form(admin_client.get(url(provider)))
    lines = posted["header_lines"].replace("X-Team: …", "X-Team: blue")
    changed = {"new_key": "another-key-0987", "header_lines": lines, "proxy_address": ""}
    assert admin_client.post(url(provider), posted | changed).status_code == 302
    changed_row = Provider.objects.get()
    assert (changed_row.key, changed_row.proxy) == ("another-key-0987", "")
    assert changed_row.headers == {"X-Team": "blue", "X-Secret": "a-secret-of-the-team"}
    posted = posted_form(admin_client.get(url(provider)))
    posted |= {"remove_key": "on", "header_lines": "", "key_variable": "SECOND_API_KEY"}
    assert admin_client.post(url(provider), posted).status_code == 302
    row = Provider.objects.get()
    assert (row.encrypted_key, row.encrypted_headers) == ("", "")
    assert row.key_variable == "SECOND_API_KEY"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("base_url", "ftp://api.example.com", "begin with https:// or http://"),
        ("base_url", "https://api.example.com:99999/v1", "port"),
        ("base_url", "https://user:pass@api.example.com/v1", "Leave out the user"),
        ("base_url", "https://api.example.com/v1?version=2", "before the ? or #"),
        ("base_url", "https://api.example.com/v1/chat/completions", "/chat/completions"),
        ("base_url", "https://api.exämple.com/v1", "character"),
        ("base_url", "https://api.example.com/v1/models", "ends with /models"),
        ("base_url", "'https://api.example.com/v1'", "quotes or spaces around it"),
        ("base_url", "https://api..example.com/v1", "neither a name nor an IP address"),
        ("base_url", f"https://{'a' * 64}.example.com/v1", "neither a name nor an IP address"),
        ("base_url", "http://2130706433/v1", "neither a name nor an IP address"),
        ("base_url", "http://[v1.a]/v1", "neither a name nor an IP address"),
        ("base_url", "http://host,other/v1", "neither a name nor an IP address"),
        ("name", "Sec\nond", "cannot be shown"),
        ("name", "x" * 101, "at most 100"),
        ("base_url", "", "OPENAI_API_KEY"),
        ("new_key", "two words", "no spaces"),
        ("new_key", "two\nlines", "no spaces"),
        ("new_key", "Bearer sk-1", "Leave out the word Bearer"),
        ("new_key", "k" * 4_001, "at most 4000"),
        ("key_variable", "SECRET_KEY", "ends in _API_KEY"),
        ("header_lines", "no colon", "Name: value"),
        ("header_lines", '{"X-Team": "research"}', "not JSON"),
        ("header_lines", "Bad name: x", "not the name of a header"),
        ("header_lines", "X-Ok: ünicode", "ASCII"),
        ("header_lines", "Content-Length: 5", "by each request itself"),
        ("header_lines", "X-Other: …abcd", "Write the value of X-Other"),
        ("proxy_address", "socks5://proxy:1", "begins with http:// or https://"),
        ("proxy_address", "http://parley:…@other:1", "password again"),
        ("proxy_address", "proxy:3128", "begins with http:// or https://"),
        ("proxy_address", "http://a..b:3128", "neither a name nor an IP address"),
        ("concurrency", "0", "greater than or equal to 1"),
        ("first_byte_seconds", "0", "greater than or equal to 1"),
    ],
)
def test_wrong_value_is_refused_with_words(admin_client, provider, field, value, words):
    posted = posted_form(admin_client.get(url(provider))) | {field: value}
    page = admin_client.post(url(provider), posted)
    assert page.status_code == 200
    errors = str(page.context["errors"])
    assert words in errors, errors
    unchanged = Provider.objects.get()
    assert (unchanged.key, unchanged.headers) == (KEY, provider.headers)


def test_unset_variable_of_key_is_named(admin_client, provider, monkeypatch):
    Provider.objects.update(key_variable="SECOND_API_KEY", encrypted_key="")
    monkeypatch.delenv("SECOND_API_KEY", raising=False)
    changelist = reverse("admin:chat_provider_changelist")
    unset = "variable SECOND_API_KEY, not set in this process"
    assert unset in admin_client.get(changelist).content.decode()
    monkeypatch.setenv("SECOND_API_KEY", "sk-second")
    page = admin_client.get(changelist).content.decode()
    assert "variable SECOND_API_KEY" in page
    assert unset not in page
    monkeypatch.delenv("SECOND_API_KEY")
    monkeypatch.setenv("SECOND_API_KEY_FILE", "/nowhere/key")
    assert (
        "SECOND_API_KEY_FILE: the file cannot be read"
        in admin_client.get(changelist).content.decode()
    )


def test_undecryptable_secrets_are_reported_and_entered_again(admin_client, provider, settings):
    settings.SECRET_KEY = "another secret of this installation, long enough"
    assert "cannot be decrypted" in key_of(provider)
    form = ProviderForm(instance=provider)
    assert "cannot be decrypted" in form.as_p()
    entered = ProviderForm({**FORM, "base_url": provider.base_url}, instance=provider)
    assert entered.is_valid(), entered.errors
    assert (entered.save().key, entered.instance.proxy) == (KEY, FORM["proxy_address"])


def test_only_one_row_is_the_environments(admin_client):
    Provider.objects.create(name="Environment")
    form = {"name": "Other", "first_byte_seconds": 300, "silence_seconds": 120}
    page = admin_client.post(reverse("admin:chat_provider_add"), form)
    assert "already is the environment" in page.content.decode()


def test_models_may_share_a_name_between_providers(admin_client, provider, assistant):
    other = Provider.objects.create(name="Third", base_url="https://third.example.com/v1")
    form = {"name": "Large", "provider_model": "large", "context_tokens": 8_000, "enabled": "on"}
    form |= {"max_output_tokens": 1_000}
    add = reverse("admin:chat_languagemodel_add")
    for one in (provider, other):
        assert admin_client.post(add, form | {"provider": one.pk}).status_code == 302
    page = admin_client.post(add, form | {"provider": other.pk})
    assert "already has a model of that name" in page.content.decode()
    page = admin_client.get(reverse("admin:chat_assistant_change", args=[assistant.pk]))
    assert "Large (Second)" in page.content.decode()
    assert "Large (Third)" in page.content.decode()


def test_model_without_price_warns_on_saving(admin_client, assistant):
    provider = Provider.objects.create(name="Environment")
    form = {"name": "Large", "provider_model": "large & new", "context_tokens": 8_000}
    form |= {"max_output_tokens": 1_000, "provider": provider.pk, "enabled": "on"}
    add = reverse("admin:chat_languagemodel_add")
    page = admin_client.post(add, form, follow=True).content.decode()
    assert "Large is not offered yet: it has no price." in page
    assert "/admin/billing/modelprice/add/?model=large+%26+new" in page
    assert "no: no price" in page
    page = admin_client.get("/admin/billing/modelprice/add/?model=large+%26+new")
    assert page.context["adminform"].form["model"].value() == "large & new"
    for changed in ({"provider_model": assistant.model.provider_model}, {"enabled": ""}):
        page = admin_client.post(add, form | {"name": "Other"} | changed, follow=True)
        assert "not offered yet" not in page.content.decode()
        LanguageModel.objects.filter(name="Other").delete()


def test_fallback_must_not_lead_back(admin_client, assistant):
    first = assistant.model
    second = LanguageModel.objects.create(name="Second", provider_model="b", fallback=first)
    page = admin_client.get(reverse("admin:chat_languagemodel_change", args=[first.pk]))
    form = page.context["adminform"].form
    posted = {name: form[name].value() or "" for name in form.fields} | {
        "provider": Provider.objects.create(name="Environment").pk
    }
    for fallback in (second, first):
        page = admin_client.post(
            reverse("admin:chat_languagemodel_change", args=[first.pk]),
            posted | {"fallback": fallback.pk},
        )
        assert "fall back to itself" in page.content.decode()


def test_provider_with_models_is_not_deleted(admin_client, assistant, provider):
    LanguageModel.objects.update(provider=provider)
    delete = reverse("admin:chat_provider_delete", args=[provider.pk])
    for page in (admin_client.get(delete), admin_client.post(delete, {"post": "yes"})):
        text = page.content.decode()
        assert "disable it instead" in text
        assert url(provider) in text
    form = {"action": "delete_selected", "_selected_action": [provider.pk], "post": "yes"}
    admin_client.post(reverse("admin:chat_provider_changelist"), form)
    assert Provider.objects.count() == 1
    LanguageModel.objects.all().update(provider=None)
    assert admin_client.post(delete, {"post": "yes"}).status_code == 302
    assert not Provider.objects.exists()


def test_model_of_disabled_provider_is_not_offered(admin_client, assistant, provider):
    LanguageModel.objects.update(provider=provider)
    assert lifecycle.default_assistant() == assistant
    Provider.objects.update(enabled=False)
    assert lifecycle.default_assistant() is None
    page = admin_client.get(reverse("admin:chat_languagemodel_changelist"))
    assert "its provider is disabled" in page.content.decode()


def test_staff_choose_the_default_assistant(admin_client, assistant):
    LanguageModel.objects.create(name="Unpriced", provider_model="unpriced")
    second = Assistant.objects.create(
        slug="second", name="Second", model=assistant.model, position=32_767
    )
    third = Assistant.objects.create(
        slug="third", name="Third", model=LanguageModel.objects.get(name="Unpriced"), position=5
    )
    changelist = reverse("admin:chat_assistant_changelist")

    def make_default(*chosen: Assistant) -> str:
        form = {"action": "make_default", "_selected_action": [one.pk for one in chosen]}
        return str(admin_client.post(changelist, form, follow=True).content.decode())

    assert "New chats now use Second" in make_default(second)
    assert lifecycle.default_assistant() == second
    assert "Select one assistant" in make_default(second, third)
    assert "not offered" in make_default(third)
    assert lifecycle.default_assistant() == second
