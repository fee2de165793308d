"""Webhooks and the log of their messages, for keys with the scope `webhooks` alone.

The pages ask for the password before a webhook gets an address, which a session cannot answer here.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from allauth.account.adapter import get_adapter
from django.conf import settings
from django.http import HttpResponse
from django.utils.translation import gettext as _
from ninja import Router
from ninja.responses import Status

from accounts.api_keys import KeyRefused
from accounts.models import Scope
from chat import access
from chat.api.rest.auth import ApiRequest, Sender, needs_key
from chat.api.rest.errors import Problem
from chat.api.rest.schemas import (
    Cursor,
    DeliveryOut,
    DeliveryWithBody,
    Limit,
    Page,
    WebhookChange,
    WebhookCreate,
    WebhookOut,
    WebhookWithSecret,
    responses,
)
from chat.errors import ChatError
from chat.models import Webhook, WebhookDelivery
from chat.web.views.webhooks import offered_events
from chat.webhooks import addresses, editing
from chatproject.lib import languages, rate_limits

router = Router(tags=["webhooks"])

LIMIT = "webhooks"
KEY = needs_key(Scope.WEBHOOKS)


@router.get("/webhooks", auth=KEY, response=responses({200: Page[WebhookOut]}))
def list_webhooks(request: ApiRequest, cursor: Cursor = "", limit: Limit = 50) -> dict[str, Any]:
    """List the webhooks, the newest first."""
    found = Webhook.objects.filter(owner=request.auth.user).order_by("-id")
    if before := _id(cursor):
        found = found.filter(pk__lt=before)
    rows = list(found[: limit + 1])
    return {
        "items": [described(one) for one in rows[:limit]],
        "next": str(rows[limit - 1].pk) if len(rows) > limit else None,
    }


@router.post("/webhooks", auth=KEY, response=responses({201: WebhookWithSecret}, 413))
def create_webhook(
    request: ApiRequest, response: HttpResponse, sent: WebhookCreate
) -> Status[dict[str, Any]]:
    """Create a webhook. This answer alone has its signing `secret`; the user gets a mail about the webhook.

    The text of replies needs the scope `read`, too.
    """
    sender = request.auth
    rate_limits.hit(LIMIT, sender.user.pk)
    terms = editing.Terms(**sent.model_dump())
    _check(sender, terms, None)
    try:
        made = editing.create(sender.user, terms)
    except editing.TooManyWebhooks as error:
        sentence = _("You have %(most)s webhooks, the most that are possible. Delete one first.")
        raise ChatError("too_many", sentence % {"most": settings.WEBHOOKS_PER_USER}) from error
    with languages.use(sender.user.language or languages.active()):
        get_adapter(request).send_notification_mail(
            "chat/email/webhook_created", sender.user, {"name": made.name, "host": made.host}
        )
    response["Location"] = f"/api/v1/webhooks/{made.pk}"
    return Status(201, described(made) | {"secret": editing.secret_of(made)})


@router.get("/webhooks/{uuid:webhook_id}", auth=KEY, response=responses({200: WebhookOut}))
def read_webhook(request: ApiRequest, webhook_id: UUID) -> dict[str, Any]:
    """Return a webhook, without its secret."""
    return described(access.webhook(request.auth.user, webhook_id))


@router.patch("/webhooks/{uuid:webhook_id}", auth=KEY, response=responses({200: WebhookOut}, 413))
def change_webhook(request: ApiRequest, webhook_id: UUID, sent: WebhookChange) -> dict[str, Any]:
    """Change a webhook. One that is switched off gives up the messages that wait.

    Another address for the text of replies needs the scope `read`, too.
    """
    sender = request.auth
    found = access.webhook(sender.user, webhook_id)
    rate_limits.hit(LIMIT, sender.user.pk)
    given = {name: value for name, value in sent.model_dump().items() if value is not None}
    names = WebhookCreate.model_fields
    terms = editing.Terms(**{name: getattr(found, name) for name in names} | given)
    _check(sender, terms, found)
    editing.change(found, terms)
    return described(access.webhook(sender.user, webhook_id))


def _check(sender: Sender, terms: editing.Terms, found: Webhook | None) -> None:
    """Check the settings of a new or changed webhook. Raises Problem and KeyRefused."""
    try:
        addresses.check(terms.url)
    except addresses.Refused as error:
        fields = [{"field": "url", "message": str(error)}]
        raise Problem("invalid_request", fields=fields) from error
    offered = {event for event, _label in offered_events()}
    known = set(found.events) if found is not None else set()
    if unknown := sorted(set(terms.events) - offered - known):
        message = f"Not on this site: {', '.join(unknown)}."
        raise Problem("invalid_request", fields=[{"field": "events", "message": message}])
    is_new = found is None or terms.url != found.url or not found.includes_text
    may_read = sender.key is not None and Scope.READ in sender.key.scopes
    if terms.includes_text and is_new and not may_read:
        raise KeyRefused("missing_scope", Scope.READ.value)


@router.delete("/webhooks/{uuid:webhook_id}", auth=KEY, response=responses({204: None}))
def delete_webhook(request: ApiRequest, webhook_id: UUID) -> HttpResponse:
    """Delete a webhook with its log."""
    editing.delete(access.webhook(request.auth.user, webhook_id))
    return HttpResponse(status=204)


@router.post(
    "/webhooks/{uuid:webhook_id}/secret", auth=KEY, response=responses({200: WebhookWithSecret})
)
def renew_secret(request: ApiRequest, webhook_id: UUID) -> dict[str, Any]:
    """Create a new signing secret, which this answer alone has; for a day messages are signed with both."""
    user = request.auth.user
    found = access.webhook(user, webhook_id)
    rate_limits.hit(LIMIT, user.pk)
    editing.rotate(found)
    found = access.webhook(user, webhook_id)
    return described(found) | {"secret": editing.secret_of(found)}


@router.post(
    "/webhooks/{uuid:webhook_id}/test", auth=KEY, response=responses({201: DeliveryWithBody})
)
def test_webhook(request: ApiRequest, webhook_id: UUID) -> Status[dict[str, Any]]:
    """Send a message `ping`; read it again for its answer."""
    user = request.auth.user
    found = access.webhook(user, webhook_id)
    rate_limits.hit(LIMIT, user.pk)
    return Status(201, described_with_body(editing.send_test(found)))


@router.get(
    "/webhooks/{uuid:webhook_id}/deliveries", auth=KEY, response=responses({200: Page[DeliveryOut]})
)
def list_deliveries(
    request: ApiRequest, webhook_id: UUID, cursor: Cursor = "", limit: Limit = 50
) -> dict[str, Any]:
    """List the messages of a webhook, the newest first, without their bodies."""
    found = access.webhook(request.auth.user, webhook_id)
    page = editing.log(found, before=_id(cursor), length=limit)
    return {
        "items": [described_delivery(one) for one in page.rows],
        "next": str(UUID(page.older)) if page.older else None,
    }


@router.get(
    "/webhooks/{uuid:webhook_id}/deliveries/{uuid:delivery_id}",
    auth=KEY,
    response=responses({200: DeliveryWithBody}),
)
def read_delivery(request: ApiRequest, webhook_id: UUID, delivery_id: UUID) -> dict[str, Any]:
    """Return a message of a webhook, with its body and the beginning of the last answer."""
    return described_with_body(_delivery(request, webhook_id, delivery_id))


@router.post(
    "/webhooks/{uuid:webhook_id}/deliveries/{uuid:delivery_id}/resend",
    auth=KEY,
    response=responses({200: DeliveryWithBody}),
)
def resend_delivery(request: ApiRequest, webhook_id: UUID, delivery_id: UUID) -> dict[str, Any]:
    """Send a message once more, with the same `message_id`; one that waits is sent now."""
    found = _delivery(request, webhook_id, delivery_id)
    rate_limits.hit(LIMIT, request.auth.user.pk)
    editing.resend(found)
    return described_with_body(_delivery(request, webhook_id, delivery_id))


def _delivery(request: ApiRequest, webhook_id: UUID, delivery_id: UUID) -> WebhookDelivery:
    found = access.webhook_delivery(request.auth.user, delivery_id)
    if found.webhook_id != webhook_id:
        raise ChatError("not_found")
    return found


def _id(cursor: str) -> UUID | None:
    try:
        return UUID(cursor) if cursor else None
    except ValueError as error:
        raise Problem("invalid_cursor") from error


def described(webhook: Webhook) -> dict[str, Any]:
    """Return a webhook as answers have it."""
    return {
        "id": webhook.pk,
        "name": webhook.name,
        "url": webhook.url,
        "events": webhook.events,
        "includes_text": webhook.includes_text,
        "active": webhook.active,
        "disabled": webhook.disabled,
        "failing_since": webhook.failing_since,
        "created_at": webhook.created_at,
    }


def described_delivery(delivery: WebhookDelivery) -> dict[str, Any]:
    """Return a message as lists have it."""
    return {
        "id": delivery.pk,
        "message_id": delivery.message_id,
        "event": delivery.event,
        "run": delivery.run,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "due_at": delivery.due_at if delivery.is_open else None,
        "created_at": delivery.created_at,
        "attempted_at": delivery.attempted_at,
        "response_status": delivery.response_status,
        "error": delivery.error,
    }


def described_with_body(delivery: WebhookDelivery) -> dict[str, Any]:
    """Return a message with what was sent and answered."""
    bodies = {"body": delivery.body, "response_body": delivery.response_body}
    return described_delivery(delivery) | bodies
