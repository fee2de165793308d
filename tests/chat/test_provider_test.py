"""The Test button of a provider: the answer with its times, or the cause with a remedy."""

from __future__ import annotations

import json
import threading

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.db import connections
from django.urls import reverse

from accounts.models import User
from chat.admin import provider_pages
from chat.llm import probe as probe_module
from chat.models import LanguageModel, Provider
from tests.support.provider_api import KEY, STREAM, Answer, api, refused, row

__all__ = ["api", "row"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def test_page(client, row: Provider, **fields: str):
    return client.post(reverse("admin:chat_provider_test", args=[row.pk]), fields)


test_page.__test__ = False  # type: ignore[attr-defined]


def entries() -> list[str]:
    return [*LogEntry.objects.order_by("pk").values_list("change_message", flat=True)]


def test_answer_is_shown_with_times(admin_client, api, row):
    page = test_page(admin_client, row)
    result = page.context["result"]
    text = page.content.decode()

    assert (result.cause, result.model, result.text) == ("", "small", "Hello")
    assert 0 <= result.first_byte <= result.first_event <= result.whole < 8_000
    assert "“Hello”" in text
    assert "9 tokens in, 1 out" in text
    body = json.loads(api.asked[-1][1])
    assert (body["max_tokens"], body["stream"]) == (1, True)
    assert f"with the model small: answered in {result.whole} ms" in entries()[-1]


def test_models_of_rows_are_tested_first(admin_client, api, row):
    LanguageModel.objects.create(name="Off", provider=row, provider_model="off", enabled=False)
    LanguageModel.objects.create(name="Large", provider=row, provider_model="large")
    chosen = test_page(admin_client, row, model="other").context
    assert chosen["result"].model == "other"
    assert chosen["models"] == ["large", "off"]

    assert test_page(admin_client, row).context["result"].model == "large"
    assert json.loads(api.asked[-1][1])["model"] == "large"


def test_refused_form_is_adapted_and_shown(admin_client, api, row):
    wanted = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    api.complete = lambda body: (
        refused(400, wanted, "unsupported_parameter")
        if "max_tokens" in body
        else (200, "text/event-stream", STREAM)
    )

    page = test_page(admin_client, row)

    assert page.context["result"].is_fine
    assert "cap: max_completion_tokens" in page.content.decode()


def test_least_reply_of_server_is_respected(admin_client, api, row):
    message = "Could not finish the message because max_tokens was reached: it must be at least 16."
    api.complete = lambda body: (
        (200, "text/event-stream", STREAM) if body["max_tokens"] >= 16 else refused(400, message)
    )

    assert test_page(admin_client, row).context["result"].is_fine


@pytest.mark.parametrize(
    ("answer", "cause", "words"),
    [
        (refused(401, f"Incorrect API key provided: {KEY}", "invalid_api_key"), "key", "valid one"),
        (refused(429, "You exceeded your current quota", "insufficient_quota"), "quota", "Pay"),
        (refused(404, "The model `small` does not exist", "model_not_found"), "model", "name"),
        (refused(503, "overloaded"), "busy", "Wait"),
        (refused(400, "content management policy", "content_filter"), "content", "policy"),
        (
            (200, "text/event-stream", 'data: {"error": {"message": "boom"}}\n\n'),
            "reported",
            "again",
        ),
        ((200, "application/json", "nonsense"), "malformed", "no stream"),
        ((200, "text/event-stream", 'data: {"choices": []}\n\n'), "cut", "broke off"),
    ],
)
def test_failure_is_shown_with_remedy(admin_client, api, row, answer, cause, words):
    api.complete = lambda body: answer

    page = test_page(admin_client, row, model="small")
    result = page.context["result"]

    assert (result.cause, result.suggestion) == (cause, "")
    assert words in result.sentence
    text = page.content.decode() + str([*LogEntry.objects.values()])
    assert KEY not in text
    assert f"cause {cause}" in entries()[-1]


def test_key_in_error_is_hidden(admin_client, api, row):
    api.complete = lambda body: refused(401, f"Wrong: {KEY} and a-secret-of-the-team")

    page = test_page(admin_client, row, model="small")

    assert page.context["result"].detail.count("[key]") == 2


@pytest.mark.parametrize("model", ["", "small"])
def test_almost_right_address_is_taken_over(admin_client, api, row, model):
    Provider.objects.update(base_url=api.url.removesuffix("/v1"))

    page = test_page(admin_client, row, model=model)

    assert page.context["result"].cause == "address"
    assert f"Use {api.url}" in page.content.decode()
    taken = admin_client.post(
        reverse("admin:chat_provider_base_url", args=[row.pk]), {"base_url": api.url}
    )
    assert taken.context["result"].is_fine
    assert Provider.objects.get().base_url == api.url
    assert "as suggested" in entries()[-2]


def test_redirect_is_named_with_its_target(admin_client, api, row):
    Provider.objects.update(base_url=api.url.replace("/v1", "/old"))
    api.other = (301, "/v1/chat/completions", "")

    result = test_page(admin_client, row, model="small").context["result"]

    assert (result.cause, result.suggestion) == ("address", api.url)
    assert "redirects" in result.sentence


@pytest.mark.parametrize("base_url", ["", "ftp://example.org", "https://host/v1?x=1"])
def test_invalid_base_url_is_not_taken(admin_client, api, row, base_url):
    page = admin_client.post(
        reverse("admin:chat_provider_base_url", args=[row.pk]), {"base_url": base_url}
    )

    assert page.status_code == 302
    assert Provider.objects.get().base_url == api.url


def test_unreachable_provider_and_proxy_are_named(admin_client, api, row):
    row.proxy = "http://parley:secret-pass@127.0.0.1:9"
    row.save()
    page = test_page(admin_client, row, model="small")
    assert page.context["result"].cause == "unreachable"
    assert "proxy" in page.context["result"].sentence.lower()
    assert "secret-pass" not in page.content.decode()

    row.proxy, row.base_url = "", "http://127.0.0.1:9/v1"
    row.save()
    result = test_page(admin_client, row, model="small").context["result"]
    assert result.cause == "unreachable"
    assert "refuses connections" in result.sentence


def test_silent_provider_ends_within_limit(admin_client, api, row, monkeypatch):
    monkeypatch.setattr(probe_module.probe, "__kwdefaults__", {"seconds": 0.5})
    waiting = threading.Event()
    api.complete = lambda body: (waiting.wait(5), refused(500, "late"))[1]

    result = test_page(admin_client, row, model="small").context["result"]

    waiting.set()
    assert result.cause == "timeout"
    assert result.whole < 3_000


def test_undecryptable_key_is_reported(admin_client, row):
    Provider.objects.update(encrypted_key="of another SECRET_KEY")

    for model in ("", "small"):
        result = test_page(admin_client, row, model=model).context["result"]
        assert result.cause == "key"
        assert "cannot be decrypted" in result.sentence + result.detail


def test_page_returns_its_connection_meanwhile(admin_client, api, row):
    open_ones: list[bool] = []

    def complete(body: dict[str, object]) -> Answer:
        open_ones.append(connection_of_page.connection is not None)
        return (200, "text/event-stream", STREAM)

    connection_of_page = connections["default"]
    api.complete = complete

    assert test_page(admin_client, row, model="small").context["result"].is_fine
    assert open_ones == [False]


def test_providers_are_asked_by_few_pages(admin_client, api, row):
    with provider_pages.asking(), provider_pages.asking():
        page = test_page(admin_client, row, model="small")
    assert "try again in a few seconds" in page.content.decode().lower()
    assert api.asked == []
    assert test_page(admin_client, row, model="small").context["result"].is_fine


def test_test_requires_permission_to_change(client, api, row):
    staff = User.objects.create_user(email="staff@example.org", password="p", is_staff=True)
    staff.user_permissions.add(Permission.objects.get(codename="view_provider"))
    client.force_login(staff)

    page = client.get(reverse("admin:chat_provider_change", args=[row.pk]))
    assert ">Test</button>" not in page.content.decode()
    for name in ("test", "base_url"):
        address = reverse(f"admin:chat_provider_{name}", args=[row.pk])
        assert client.post(address, {"base_url": api.url}).status_code == 403
    assert api.asked == []


def test_environment_provider_names_its_variable(admin_client, api, settings):
    row = Provider.objects.create(name="Environment")
    settings.OPENAI_BASE_URL = api.url.removesuffix("/v1")

    page = test_page(admin_client, row)

    assert f"OPENAI_BASE_URL={api.url}" in page.content.decode()
    settings.OPENAI_BASE_URL = api.url
    assert test_page(admin_client, row).context["result"].is_fine
