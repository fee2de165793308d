"""Webhooks by the REST API: made, changed, read and deleted by keys with their scope."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from django.core import mail
from django.test import Client

from accounts.models import User
from chat.models import Webhook, WebhookDelivery
from chat.webhooks import editing
from chatproject.lib.env import Limit
from tests.chat.api.test_rest_refusals import caller, problem
from tests.support.people import owner

__all__ = ["owner"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

HOOKS = "/api/v1/webhooks"
SENT = {"name": " Build  server ", "url": "https://example.org/hook?a=1", "events": ["run.done"]}


@pytest.fixture
def call(owner: User) -> Any:
    """Send a request with a key of the owner that has the scope alone."""
    return caller(owner, scopes=["webhooks"])


def create(call: Any, **changes: Any) -> Any:
    return call("POST", HOOKS, json.dumps(SENT | changes))


def test_program_manages_its_webhooks(call, owner: User):
    made = create(call)
    assert made.status_code == 201, made.content
    hook = made.json()
    stored = Webhook.objects.get()
    assert (stored.owner, stored.host, stored.name) == (owner, "example.org", "Build server")
    assert hook["secret"] == editing.secret_of(stored)
    at = f"{HOOKS}/{stored.pk}"
    assert made["Location"] == at
    assert [one.to for one in mail.outbox] == [[owner.email]]
    assert "example.org" in mail.outbox[0].body

    # The secret is in no later answer, but for a new one.
    del hook["secret"]
    assert call("GET", at).json() == hook
    assert call("GET", HOOKS).json() == {"items": [hook], "next": None}
    changed = call("PATCH", at, '{"events": ["credits.low"], "name": "Other"}').json()
    assert changed == hook | {"events": ["credits.low"], "name": "Other"}
    renewed = call("POST", f"{at}/secret").json()["secret"]
    stored.refresh_from_db()
    assert renewed == editing.secret_of(stored)

    # The log.
    sent = call("POST", f"{at}/test").json()
    assert (sent["event"], sent["status"]) == ("ping", "waiting")
    assert json.loads(sent["body"])["data"] == {"webhook": str(stored.pk)}
    done = {"status": "delivered", "attempts": 1, "response_status": 200, "response_body": "ok"}
    WebhookDelivery.objects.update(**done)
    entry = f"{at}/deliveries/{sent['id']}"
    assert call("GET", entry).json()["response_body"] == "ok"
    [listed] = call("GET", f"{at}/deliveries").json()["items"]
    assert (listed["message_id"], listed["due_at"]) == (sent["message_id"], None)
    assert "body" not in listed
    assert call("POST", f"{entry}/resend").json()["status"] == "waiting"
    other = create(call).json()["id"]
    assert problem(call("GET", f"{HOOKS}/{other}/deliveries/{sent['id']}")) == (404, "not_found")

    assert call("PATCH", at, '{"active": false}').json()["active"] is False
    assert problem(call("POST", f"{at}/test")) == (403, "not_allowed")
    assert call("DELETE", at).status_code == 204
    assert problem(call("GET", at)) == (404, "not_found")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "  "}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "http://example.org/"}, "url"),
        ({"url": "https://a:b@example.org/"}, "url"),
        ({"url": "https://localhost/"}, "url"),
        ({"events": []}, "events"),
        ({"events": ["all"]}, "events.0"),
        ({"secret": "x"}, "secret"),
    ],
)
def test_wrong_settings_name_their_field(call, changes, field):
    answer = create(call, **changes)
    assert problem(answer) == (422, "invalid_request")
    assert [one["field"] for one in answer.json()["fields"]] == [field]
    assert not Webhook.objects.exists()


def test_webhooks_are_bounded(call, settings):
    settings.WEBHOOKS_PER_USER = 1
    assert create(call).status_code == 201
    full = create(call)
    assert problem(full) == (400, "too_many")
    assert "1 webhooks" in full.json()["message"]
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"webhooks": Limit(((1, 600),))}
    assert problem(create(call)) == (400, "too_many")
    assert problem(create(call)) == (429, "rate_limited")


def test_webhooks_need_their_scope(owner: User):
    # A key without a choice of scopes lacks it, and a session cannot answer for the password.
    assert problem(caller(owner)("GET", HOOKS)) == (403, "missing_scope")
    page = Client()
    page.force_login(owner)
    assert problem(page.get(HOOKS)) == (401, "missing_api_key")

    # Texts of replies go to an address that a key has chosen only if it may read them.
    alone, reads = caller(owner, scopes=["webhooks"]), caller(owner, scopes=["webhooks", "read"])
    refused = create(alone, includes_text=True)
    assert problem(refused) == (403, "missing_scope")
    assert "read" in refused.json()["message"]
    at = f"{HOOKS}/{create(reads, includes_text=True).json()['id']}"
    moved = '{"url": "https://example.com/"}'
    assert problem(alone("PATCH", at, moved)) == (403, "missing_scope")
    assert alone("PATCH", at, '{"name": "Other"}').status_code == 200
    assert reads("PATCH", at, moved).json()["url"] == "https://example.com/"
    assert problem(alone("GET", f"{HOOKS}/{uuid4()}")) == (404, "not_found")
