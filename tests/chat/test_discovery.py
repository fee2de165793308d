"""The discovery of a provider's models: a list, from which staff add models with prices."""

from __future__ import annotations

import html
import json
import threading
from collections.abc import Callable

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.core.cache import cache
from django.urls import reverse

from accounts.models import User
from billing.metering import pricing
from billing.models import AuditRecord, ModelPrice
from chat.admin import discovery
from chat.conversations import lifecycle
from chat.models import Assistant, LanguageModel, Provider
from tests.chat.llm.test_model_list import OPENROUTER
from tests.support.provider_api import Answer, Api, api, row

__all__ = ["api", "row"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

UNPRICED = {"id": "meta/llama", "name": "Llama", "context_length": 8192}


@pytest.fixture(autouse=True)
def empty_cache(valkey_url):
    cache.clear()


def address(row: Provider) -> str:
    return reverse("admin:chat_provider_discover", args=[row.pk])


def discovered(client, api: Api, row: Provider, *models: object, **query: object):
    """Discover models, and return the page of the list."""
    api.models = {"data": [*models]}
    assert client.post(address(row)).status_code == 302
    return client.get(address(row), query)


def chosen(page, *names: str, **fields: object) -> dict[str, object]:
    """Return the form of a page as a browser would post it, with models chosen."""
    posted: dict[str, object] = {"add": "Add", "enabled": "on", "assistant": ""}
    for form in page.context["rows"]:
        posted |= {
            bound.html_name: bound.value() for bound in form if bound.value() not in (None, False)
        }
        for name in ("in_per_m", "cached_in_per_m", "out_per_m"):
            if (micro := form.initial.get(name)) is not None:
                posted[f"{form.prefix}-{name}"] = str(micro / 1_000_000)
        if form.model.name in names:
            posted[f"{form.prefix}-chosen"] = "on"
    return posted | fields


# Of each row: name, context, input price in credits per million tokens, whether it answers chats.
SHAPES: dict[str, list[tuple[str, int | None, int | None, bool]]] = {
    "openai": [
        ("fake-large", None, None, True),
        ("fake-small", None, None, True),
        ("text-embedding-3-small", None, None, False),
    ],
    "openrouter": [
        ("openai/gpt-4o", 128_000, 250, True),
        ("meta-llama/llama-3.3-70b-instruct:free", 65_536, 0, True),
        ("openrouter/auto", 2_000_000, None, True),
    ],
    "vllm": [("Qwen/Qwen3-8B", 40_960, None, True)],
    "lmstudio": [
        ("qwen2.5-7b-instruct", None, None, True),
        ("text-embedding-nomic-embed-text-v1.5", None, None, False),
    ],
    "lmstudio-rest": [
        ("qwen2.5-7b-instruct", 32_768, None, True),
        ("qwen2-vl-7b-instruct", 4_096, None, True),
        ("nomic", 2_048, None, False),
    ],
    "mistral": [
        ("mistral-large-latest", 131_072, None, True),
        ("mistral-embed", 8_192, None, False),
    ],
    "together": [
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", 131_072, 88, True),
        ("black-forest-labs/FLUX.1-schnell", None, None, False),
    ],
}


@pytest.mark.parametrize("kind", SHAPES)
def test_lists_of_servers_are_shown(admin_client, provider, kind):
    row = Provider.objects.create(name="Server", base_url=provider.url)
    provider.list_models(kind)

    page = admin_client.post(address(row), follow=True)

    shown = []
    for form in page.context["rows"]:
        price = form.initial.get("in_per_m")
        credits = None if price is None else price // 1_000_000
        shown.append((form.model.name, form.known.context, credits, form.model.is_chat))
    assert shown == SHAPES[kind]
    first = SHAPES[kind][0][0]
    assert admin_client.post(address(row), chosen(page, first)).status_code == 302
    assert LanguageModel.objects.get().provider_model == first


@pytest.mark.parametrize(
    ("kind", "delay", "words"),
    [
        ("unauthorized", 0, "Incorrect API key provided"),
        ("missing", 0, "does not list its models"),
        ("empty", 0, "lists no models"),
        ("openai", 5, "did not answer within 0.5 seconds. Check host"),
    ],
)
def test_servers_without_list_are_explained(
    admin_client, provider, monkeypatch, kind, delay, words
):
    row = Provider.objects.create(name="Server", base_url=provider.url)
    provider.list_models(kind, delay=delay)
    if delay:
        monkeypatch.setattr(discovery, "SECONDS", 1.0)

    page = admin_client.post(address(row))

    text = html.unescape(page.content.decode())
    assert words in text
    assert "rows" not in page.context
    # A server without a list may serve models whose names staff know.
    by_hand = f"/admin/chat/languagemodel/add/?provider={row.pk}"
    assert (by_hand in text) == (kind in {"missing", "empty"})


def test_model_is_added_with_stated_price(admin_client, api, row):
    page = discovered(admin_client, api, row, OPENROUTER, UNPRICED)
    assert admin_client.post(address(row), chosen(page, "openai/gpt-4o")).status_code == 302

    (model,) = LanguageModel.objects.all()
    assert (model.name, model.provider_model) == ("OpenAI: GPT-4o", "openai/gpt-4o")
    assert (model.context_tokens, model.max_output_tokens) == (128_000, 16_384)
    assert (model.provider, model.enabled) == (row, True)
    price = pricing.in_force("openai/gpt-4o")
    assert price is not None
    # At $0.01 a credit, $2.50 per million tokens are 250 credits.
    assert (price.in_per_m, price.cached_in_per_m, price.out_per_m) == (
        250_000_000,
        125_000_000,
        1_000_000_000,
    )
    assert price.request_fee == 1_000_000
    assert price.source == "list of Second"
    assert price.created_by is not None
    assert AuditRecord.objects.get(action="set price").after["in_per_m"] == 250_000_000
    logged = str([*LogEntry.objects.values_list("change_message", "object_repr")])
    assert "Discovered 2 models" in logged
    assert "Discovered at Second" in logged
    again = admin_client.get(address(row))
    assert [form.is_present for form in again.context["rows"]] == [True, False]


def test_several_are_added_disabled_with_assistants(admin_client, api, row):
    page = discovered(admin_client, api, row, OPENROUTER, UNPRICED)
    posted = chosen(page, "openai/gpt-4o", "meta/llama", enabled="", assistant="new")

    assert admin_client.post(address(row), posted).status_code == 302

    assert {*LanguageModel.objects.values_list("enabled", flat=True)} == {False}
    assert {*Assistant.objects.values_list("slug", flat=True)} == {"openai-gpt-4o", "llama"}
    assert not ModelPrice.objects.filter(model="meta/llama").exists()


def test_figures_are_edited_before_adding(admin_client, api, row):
    page = discovered(admin_client, api, row, OPENROUTER, UNPRICED, markup="20")
    assert page.context["rows"][0].initial["in_per_m"] == 300_000_000
    posted = chosen(page, "openai/gpt-4o", "meta/llama") | {
        "0-name": "Best",
        "0-context_tokens": "64000",
        "0-max_output_tokens": "2000",
        "0-out_per_m": "7.5",
        "1-in_per_m": "1",
        "1-out_per_m": "2",
    }

    assert admin_client.post(address(row) + "?markup=20", posted).status_code == 302

    model = LanguageModel.objects.get(name="Best")
    assert (model.context_tokens, model.max_output_tokens) == (64_000, 2_000)
    edited, typed = pricing.in_force("openai/gpt-4o"), pricing.in_force("meta/llama")
    assert edited is not None
    assert typed is not None
    assert (edited.in_per_m, edited.out_per_m) == (300_000_000, 7_500_000)
    assert edited.source == "changed by hand; list of Second"
    assert (typed.in_per_m, typed.cached_in_per_m, typed.source) == (
        1_000_000,
        1_000_000,
        "changed by hand",
    )


def test_price_in_force_is_kept(admin_client, api, row):
    figures = {"in_per_m": 1, "cached_in_per_m": 1, "out_per_m": 2}
    ModelPrice.objects.create(model="openai/gpt-4o", **figures)
    page = discovered(admin_client, api, row, OPENROUTER)
    posted = chosen(page, "openai/gpt-4o") | {"0-in_per_m": "9", "0-out_per_m": "9"}

    assert admin_client.post(address(row), posted).status_code == 302

    assert ModelPrice.objects.get().in_per_m == 1


def test_added_model_becomes_the_default(admin_client, api, row):
    page = discovered(admin_client, api, row, OPENROUTER)
    posted = chosen(page, "openai/gpt-4o", default="on")
    page = admin_client.post(address(row), posted, follow=True)
    assert "New chats now use it" in page.content.decode()
    default = lifecycle.default_assistant()
    assert default is not None
    assert default.model.provider_model == "openai/gpt-4o"

    page = discovered(admin_client, api, row, OPENROUTER, UNPRICED)
    posted = chosen(page, "meta/llama", assistant=str(default.pk))
    assert admin_client.post(address(row), posted).status_code == 302
    default.refresh_from_db()
    assert default.model.provider_model == "meta/llama"


@pytest.mark.parametrize(
    ("names", "fields", "words"),
    [
        ([], {}, "Choose a model"),
        (["openai/gpt-4o", "meta/llama"], {"assistant": "new", "default": "on"}, "choose one"),
        (["openai/gpt-4o"], {"0-name": ""}, "This field is required"),
        (["openai/gpt-4o"], {"0-out_per_m": ""}, "input and output, or none"),
        (["openai/gpt-4o"], {"0-in_per_m": "-1"}, "at least 0"),
        (["openai/gpt-4o"], {"0-in_per_m": "1000001"}, "above 1,000,000 credits"),
        (["openai/gpt-4o"], {"0-context_tokens": "1000"}, "smaller than the context"),
        (["openai/gpt-4o", "meta/llama"], {"1-name": "OpenAI: GPT-4o"}, "already has a model"),
        (["openai/gpt-4o"], {"assistant": "777"}, "valid choice"),
        (["openai/gpt-4o"], {"1-listed": "another"}, "has changed"),
    ],
)
def test_wrong_choice_adds_nothing(admin_client, api, row, names, fields, words):
    page = discovered(admin_client, api, row, OPENROUTER, UNPRICED)

    page = admin_client.post(address(row), chosen(page, *names) | fields)

    assert page.status_code == 200
    assert words in page.content.decode()
    assert not LanguageModel.objects.exists()
    assert not ModelPrice.objects.exists()
    assert not Assistant.objects.exists()


def test_model_added_meanwhile_is_not_added_again(admin_client, api, row):
    page = discovered(admin_client, api, row, OPENROUTER, UNPRICED)
    posted = chosen(page, "openai/gpt-4o") | {"0-name": "Another name"}
    LanguageModel.objects.create(name="First", provider_model="openai/gpt-4o", provider=row)
    page = admin_client.post(address(row), posted)
    assert "openai/gpt-4o was added meanwhile" in page.content.decode()
    assert LanguageModel.objects.count() == 1


def test_long_list_is_searched_and_paged(admin_client, api, row):
    names = [{"id": f"model-{number}", "description": "x" * 900} for number in range(3_000)]
    page = discovered(admin_client, api, row, *names)
    assert len(page.context["rows"]) == 50
    assert "3000 of 3000 models, page 1 of 60" in page.content.decode()

    page = admin_client.get(address(row), {"q": "MODEL 2999"})
    assert [form.model.name for form in page.context["rows"]] == ["model-2999"]
    assert admin_client.post(address(row), chosen(page, "model-2999")).status_code == 302
    assert LanguageModel.objects.get().provider_model == "model-2999"
    # The list was asked for once.
    assert [route for route, _ in api.asked].count("GET /v1/models") == 1
    assert len(admin_client.get(address(row), {"page": "60"}).context["rows"]) == 50


def test_price_list_fills_sizes_and_prices(admin_client, api, row, settings, tmp_path):
    entry = {"max_input_tokens": 1_000_000, "max_output_tokens": 32_768, "mode": "chat"}
    entry |= {"input_cost_per_token": 2e-06, "output_cost_per_token": 8e-06}
    settings.PRICE_LIST = str(tmp_path / "prices.json")
    (tmp_path / "prices.json").write_text(json.dumps({"gpt-4.1": entry}))

    page = discovered(admin_client, api, row, {"id": "gpt-4.1"}, {"id": "unknown"})

    listed, unknown = page.context["rows"]
    assert (listed.initial["context_tokens"], listed.initial["max_output_tokens"]) == (
        1_000_000,
        32_768,
    )
    assert listed.initial["in_per_m"] == 200_000_000
    assert listed.known.price.source == "prices.json: gpt-4.1"
    assert "in_per_m" not in unknown.initial
    assert unknown.initial["context_tokens"] == 128_000
    (tmp_path / "prices.json").write_text("{")
    assert "PRICE_LIST cannot be read" in admin_client.get(address(row)).content.decode()


def test_sizes_of_litellm_proxy_are_read(admin_client, api, row):
    info = {"max_input_tokens": 200_000, "max_output_tokens": 8_192, "mode": "chat"}
    info |= {"input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05}
    api.infos = {"data": [{"model_name": "claude", "model_info": info}]}

    page = discovered(admin_client, api, row, {"id": "claude", "owned_by": "openai"})

    (form,) = page.context["rows"]
    assert form.initial["context_tokens"] == 200_000
    assert form.initial["out_per_m"] == 1_500_000_000


def test_silent_second_route_costs_no_list(admin_client, api, row, monkeypatch):
    monkeypatch.setattr(discovery, "SECONDS", 2.5)
    waiting = threading.Event()
    given: Callable[[str, bytes], Answer] = api.answer

    def answer(route: str, body: bytes) -> Answer:
        if route == "GET /v1/model/info":
            waiting.wait(5)
        return given(route, body)

    api.answer = answer
    page = discovered(admin_client, api, row, {"id": "small"})
    waiting.set()
    assert [form.model.name for form in page.context["rows"]] == ["small"]


def test_wrong_address_is_reported_with_suggestion(admin_client, api, row):
    Provider.objects.update(base_url=api.url.removesuffix("/v1"))

    page = admin_client.post(address(row))

    assert f"Use {api.url}" in page.content.decode()
    Provider.objects.update(base_url=api.url)
    # A list that was found at another address is not shown.
    assert "Discover again" not in admin_client.get(address(row)).content.decode()


def test_each_object_needs_its_permission(client, api, row):
    staff = User.objects.create_user(email="staff@example.org", password="p", is_staff=True)
    client.force_login(staff)
    assert client.post(address(row)).status_code == 403
    assert api.asked == []

    def permit(codename: str) -> None:
        staff.user_permissions.add(Permission.objects.get(codename=codename))

    permit("change_provider")
    page = discovered(client, api, row, OPENROUTER)
    posted = chosen(page, "openai/gpt-4o", assistant="new", default="on")
    for codename, words in (
        ("add_languagemodel", "may not add language models"),
        ("add_assistant", "may not add assistants"),
        ("change_assistant", "may not change assistants"),
        ("add_modelprice", "may not add prices"),
    ):
        page = client.post(address(row), posted)
        assert words in page.content.decode()
        assert not LanguageModel.objects.exists()
        permit(codename)
    assert client.post(address(row), posted).status_code == 302
    assert LanguageModel.objects.exists()
