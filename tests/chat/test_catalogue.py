"""The catalogue: as `create_catalogue` makes it for a new installation, and as staff change it."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.models import JSONField, Value
from django.urls import reverse
from django.utils import translation

from billing.models import CreditPackage, ModelPrice
from chat.models import Assistant, LanguageModel, Provider

pytestmark = pytest.mark.django_db(transaction=True)


def test_catalogue_is_made_once(settings):
    settings.DEFAULT_MODEL, settings.DEFAULT_MODEL_CONTEXT = "small", 2048
    call_command("create_catalogue")
    call_command("create_catalogue")
    assistant = Assistant.objects.get()
    assert assistant.model == LanguageModel.objects.get()
    assert (assistant.model.provider_model, assistant.model.max_output_tokens) == ("small", 512)
    assert len(assistant.suggestions) == 3
    assistant.suggestions.append("Staff's own")
    with translation.override("de"):
        assert assistant.first_questions[0].startswith("Erkläre in drei Sätzen")
        assert assistant.first_questions[3] == "Staff's own"
    assert ModelPrice.objects.get().model == "small"
    packages = [(one.slug, one.prices.get().amount_minor) for one in CreditPackage.objects.all()]
    assert packages == [("small", 500), ("medium", 2_000), ("large", 5_000)]


def test_embedding_model_follows_its_address(settings):
    """`make run` starts it at another port each time."""
    for port in (1, 2):
        settings.EMBEDDINGS_BASE_URL = f"http://127.0.0.1:{port}/v1"
        call_command("create_catalogue")
    model = LanguageModel.objects.get(documents=True)
    assert model.provider.base_url == settings.EMBEDDINGS_BASE_URL
    assert (model.kind, model.dimensions) == ("embedding", 384)
    assert ModelPrice.objects.get(model=model.provider_model).in_per_m == 0


def test_new_default_model_replaces_only_the_old_default(settings):
    """A model that staff chose afterwards stays."""
    settings.DEFAULT_MODEL = "first"
    call_command("create_catalogue")
    settings.DEFAULT_MODEL = "second"
    call_command("create_catalogue")
    assistant = Assistant.objects.get()
    assert assistant.model.name == "second"
    Assistant.objects.update(model=LanguageModel.objects.get(name="first"))
    call_command("create_catalogue")
    assistant.refresh_from_db()
    assert assistant.model.name == "first"


def test_catalogue_gives_models_to_the_environment(settings):
    """The previous release adds models without a provider during a rolling upgrade."""
    settings.DEFAULT_MODEL = "first"
    call_command("create_catalogue")
    provider = Provider.objects.get()
    assert provider.is_environment
    columns = "name, provider_model, context_tokens, max_output_tokens, enabled, created_at"
    with connection.cursor() as cursor:
        for name in ("second", "first"):
            cursor.execute(
                f"INSERT INTO chat_languagemodel ({columns})"  # noqa: S608 # of names alone
                f" VALUES ('{name}', '{name}', 8000, 1000, true, now())"
            )
    call_command("create_catalogue")
    names = LanguageModel.objects.filter(provider=provider).values_list("name", flat=True)
    assert sorted(names) == ["first", "second"]
    assert Assistant.objects.get().model.provider == provider


@pytest.mark.parametrize("change", ["address", "deletion"])
def test_catalogue_leaves_replaced_environment_alone(settings, change):
    settings.DEFAULT_MODEL = "first"
    call_command("create_catalogue")
    if change == "address":  # staff entered the address and the key in the row itself
        Provider.objects.update(base_url="https://api.example.com/v1")
    else:
        other = Provider.objects.create(name="Other", base_url="https://api.example.com/v1")
        LanguageModel.objects.update(provider=other)
        Provider.objects.filter(base_url="").delete()
    settings.DEFAULT_MODEL = "second"
    call_command("create_catalogue")
    assert Provider.objects.get().base_url == "https://api.example.com/v1"
    assert LanguageModel.objects.get().name == "first"
    assert CreditPackage.objects.count() == 3


@pytest.mark.usefixtures("valkey_url")
def test_suggestions_are_one_a_line(admin_client, assistant):
    url = reverse("admin:chat_assistant_change", args=[assistant.pk])
    form = {"slug": "a", "name": "A", "model": assistant.model_id, "message_fee": 0, "position": 0}
    for lines in ("x" * 301, "What?\n" * 21):
        page = admin_client.post(url, form | {"suggestions": lines})
        assert page.status_code == 200, lines
        assert page.context["errors"], lines
    stored = {
        " Why is the sky blue? \r\n\r\nWhat is  \u05d0?\n": [
            "Why is the sky blue?",
            "What is \u05d0?",
        ],
        '{"a": 1}': ['{"a": 1}'],
        "9" * 300: ["9" * 300],
        "": [],
    }
    for lines, texts in stored.items():
        assert admin_client.post(url, form | {"suggestions": lines}).status_code == 302
        assistant.refresh_from_db()
        assert assistant.suggestions == texts
        field = admin_client.get(url).context["adminform"].form["suggestions"]
        assert field.value() == "\n".join(texts)
        assert not field.field.has_changed(assistant.suggestions, lines)


@pytest.mark.usefixtures("valkey_url")
@pytest.mark.parametrize(
    ("bad", "texts"),
    [
        ({"a": 1}, []),
        ("text", []),
        (5, []),
        (True, []),
        (None, []),
        ({}, []),
        ([1, None, ["x"], {"a": 1}, " ", "Why?"], ["Why?"]),
    ],
)
def test_pages_survive_stored_bad_suggestions(client, admin_client, owner, assistant, bad, texts):
    Assistant.objects.update(suggestions=Value(bad, JSONField()))
    client.force_login(owner)
    page = client.get("/")
    assert page.status_code == 200
    assert page.content.count(b'name="text" value=') == len(texts)
    url = reverse("admin:chat_assistant_change", args=[assistant.pk])
    shown = admin_client.get(url).context["adminform"].form["suggestions"].value()
    assert shown == (bad if isinstance(bad, str) else "\n".join(texts))
    assert admin_client.get(reverse("admin:chat_assistant_changelist")).status_code == 200


@pytest.mark.usefixtures("valkey_url")
@pytest.mark.parametrize("missing", ["model", "assistant", "price"])
def test_site_without_a_model_says_so(client, admin_client, owner, assistant, missing):
    """Staff read what to do, and users that the site is not ready yet."""
    client.force_login(owner)
    assert "not ready yet" not in client.get("/").text
    if missing == "model":
        LanguageModel.objects.update(enabled=False)
    elif missing == "assistant":
        Assistant.objects.all().delete()
    else:
        LanguageModel.objects.update(provider_model="unpriced")
    page = client.get("/").text
    assert "This site is not ready yet" in page
    assert "create_catalogue" not in page
    assert "<chat-composer" not in page
    staff_page = admin_client.get("/").text
    assert "manage.py create_catalogue" in staff_page
    assert reverse("admin:chat_languagemodel_changelist") in staff_page
    assert "<chat-composer" not in staff_page
