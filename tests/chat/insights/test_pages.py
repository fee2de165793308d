"""Pages of insights: an honest offer, its purchase, the cards, another try."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.urls import reverse

from chat.insights import schemas, templates
from chat.insights.models import Insight, InsightJob
from tests.support.insights import category, chat_of, payer

__all__ = ["category", "payer"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def test_page_sells_then_shows_the_cards(client, owner, category):
    document = chat_of(owner, "hello there", "yes")
    client.force_login(owner)
    assert "Portrait of a chat" in client.get(reverse("chat:insights", args=[document.pk])).text
    url = reverse("chat:insight_category", args=[document.pk, "portrait"])
    offer = client.get(url).text
    assert "30 credits" in offer
    assert "the motion is carried" in offer
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
