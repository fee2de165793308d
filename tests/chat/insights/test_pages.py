"""Pages of insights: an honest offer, its purchase, the cards, another try."""

from __future__ import annotations

import html
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.urls import reverse

from billing.models import Hold
from chat.insights import schemas, templates
from chat.insights.models import Category, Insight, InsightJob
from tests.support.insights import category, chat_of

__all__ = ["category"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def test_page_sells_then_shows_the_cards(client, owner, category):
    document = chat_of(owner, "hello there", "yes")
    client.force_login(owner)
    assert "Portrait of a chat" in client.get(reverse("chat:insights", args=[document.pk])).text
    url = reverse("chat:insight_category", args=[document.pk, "portrait"])
    offer = client.get(url).text
    assert "30 credits" in offer
    assert "the motion is carried" in offer
    # In the order of `required`, which the database keeps.
    assert 0 < offer.index("Two friends who answer fast") < offer.index("Short messages in a row")
    refused = client.post(url, {"price": "1"})
    assert (refused.status_code, InsightJob.objects.count()) == (409, 0)
    assert client.post(url, {"price": str(category.price)}).status_code == 302
    style, moods = Insight.objects.get(key="style"), Insight.objects.get(key="moods")
    person = {
        "person": "Ann",
        "style": "Short.",
        "quote": "<b>hello",
        "line": 0,
        "sender": "A",
        "sent_at": "",
    }
    Insight.objects.filter(pk=style.pk).update(
        status="done", data={"summary": "Friends.", "people": [person]}
    )
    Insight.objects.filter(pk=moods.pk).update(status="failed", error="provider_timeout")
    page = client.get(url).text
    assert "Friends." in page
    assert "&lt;b&gt;hello" in page
    assert "did not answer in time" in page
    client.post(reverse("chat:retry_insight", args=[moods.pk]))
    moods.refresh_from_db()
    assert (moods.status, moods.retries) == ("queued", 1)


@pytest.mark.parametrize(
    "schema",
    [
        [],
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+"}}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]},
        {"type": "object", "properties": {"a": {"type": "string", "maxLength": "x"}}},
        {"type": "object", "properties": {"a": {"type": "string", "title": "x" * 9_000}}},
    ],
)
def test_unfit_schema_is_refused(schema):
    with pytest.raises(ValidationError):
        schemas.validate(schema)


def test_deep_schema_is_refused():
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(2_000):
        schema = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(ValidationError):
        schemas.validate(schema)


@pytest.mark.parametrize("template", ["{peple}", "{people.__class__}", "{", "a } b"])
def test_unknown_placeholder_is_refused(template):
    with pytest.raises(ValidationError):
        templates.validate(template)


def test_document_leads_to_its_insights(client, owner, category):
    document = chat_of(owner, "hello there", "yes")
    client.force_login(owner)
    url = reverse("chat:insight_category", args=[document.pk, "portrait"])
    page = client.get(document.get_absolute_url()).text
    assert f'href="{url}"' in page
    assert "30 credits" in page
    listed = reverse("chat:insights", args=[document.pk])
    assert listed not in client.get(reverse("chat:documents")).text
    client.post(url, {"price": str(category.price)})
    assert "Insights are being made" in client.get(reverse("chat:documents")).text
    Insight.objects.filter(key__in=["style", "moods"]).update(status="done", data={})
    assert "2 insights" in client.get(reverse("chat:documents")).text
    assert "2 of 6 are ready" in client.get(document.get_absolute_url()).text


def test_too_small_balance_is_refused_with_way(client, owner, category):
    Category.objects.update(price=10**10)  # more than a new account has
    document = chat_of(owner, "hello there", "yes")
    client.force_login(owner)
    url = reverse("chat:insight_category", args=[document.pk, "portrait"])
    offer = client.get(url).text
    assert "You need" in offer
    assert reverse("billing:packages") in offer
    refused = client.post(url, {"price": str(10**10)})
    assert refused.status_code == 409
    assert "This costs 10,000 credits and you have" in refused.text
    assert not InsightJob.objects.exists()
    assert not Hold.objects.exists()


# --- Staff ------------------------------------------------------------------------------------


def test_staff_see_the_offer_before_its_sale(client, owner, category):
    Category.objects.update(active=False)
    url = reverse("chat:preview_insights", args=["portrait"])
    client.force_login(owner)
    assert client.get(url).status_code == 404
    owner.is_staff = owner.is_superuser = True
    owner.save()
    page = client.get(url).text
    assert "Price: 30 credits at most." in page
    assert "the motion is carried" in page
    assert 'name="price"' not in page
    assert url in client.get(reverse("admin:insights_category_change", args=[category.pk])).text


DEEP = '{"type": "object", "properties": {"a": ' * 3_000 + "1" + "}}" * 3_000


@pytest.mark.parametrize(
    ("field", "text", "sentence"),
    [
        ("schema", '{"type": "object", "properties": {"a": {"$ref": "#"}}}', "references ($ref)"),
        ("schema", DEEP, "at most 40000 are allowed"),
        ("schema", DEEP[:30_000], "This is nested too deep"),
        ("schema", '{"type": "object"', "line 1, column 18"),
        ("schema", '{"type": "object", "properties": {}}', "an object needs “properties”"),
        ("example", '{"text": "\\u0000"}', "a character that cannot be stored"),
        ("example", '{"text": NaN}', "This is not JSON: NaN"),
        ("example", '{"other": "x"}', "The example does not fit the schema"),
        ("prompt", "Who are {peple}?", "There is no placeholder {peple}"),
        ("keywords", "x" * 61, "each of at most 60 characters"),
    ],
)
def test_unfit_type_is_refused_in_words(client, owner, category, field, text, sentence):
    owner.is_staff = owner.is_superuser = True
    owner.save()
    client.force_login(owner)
    schema = '{"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}'
    form = {
        "category": category.pk, "key": "new", "name": "New", "prompt": "Hm?", "position": "9",
        "keywords": "one\n\n two \n", "schema": schema, "example": '{"text": "x"}', "active": "on",
    }  # fmt: skip
    url = reverse("admin:insights_insighttype_add")
    refused = client.post(url, form | {field: text})
    assert refused.status_code == 200
    assert sentence in html.unescape(refused.text)
    assert not category.types.filter(key="new").exists()
    if field == "keywords":
        assert client.post(url, form).status_code == 302
        made = category.types.get(key="new")
        assert (made.keywords, made.example) == (["one", "two"], {"text": "x"})
        page = client.get(reverse("admin:insights_insighttype_change", args=[made.pk])).text
        assert "one\ntwo</textarea>" in page
