"""Webhooks of payment providers: verified, stored, answered, and only then processed by a job.

A forged webhook gets a 400. A 5xx is a server error here, after which the provider retries.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import redis
from django.core.exceptions import RequestDataTooBig
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from billing import queue
from billing.models import ProviderEvent
from billing.payments import providers
from billing.payments.providers.base import BadSignature, Notice, ProviderNotConfigured
from billing.payments.providers.payload import sentence
from chatproject.lib import db

logger = logging.getLogger(__name__)

MAX_BYTES = 512_000
RETRY_SECONDS = "30"  # Retry-After while the database is unreachable

# The headers of a request that are stored beside its body.
STORED_HEADERS = (
    "Stripe-Signature",
    "X-Razorpay-Signature",
    "X-Razorpay-Event-Id",
    "Sandbox-Signature",
)


@csrf_exempt
@require_POST
def webhook(request: HttpRequest, provider: str) -> HttpResponse:
    """Store an event of a provider: 200 once it is stored, also for a repeated one."""
    try:
        adapter = providers.get(provider)
    except ProviderNotConfigured:
        return HttpResponse(status=404)
    body = _body(request)
    if body is None:
        return HttpResponse(status=413)
    try:
        notice = adapter.verify(body, request.headers)
    except BadSignature as error:
        logger.warning("refused a webhook for %s: %s", provider, error)
        return HttpResponse(status=400)
    try:
        event = _store(provider, notice, body, request.headers)
    except db.UNREACHABLE as error:
        logger.warning("a webhook of %s could not be stored: %s", provider, error)
        return HttpResponse(status=503, headers={"Retry-After": RETRY_SECONDS})
    if event.status in ProviderEvent.UNDONE:
        try:
            queue.enqueue_event(event.pk, event.attempts)
        except redis.RedisError as error:
            # It is stored, and the poller enqueues it.
            logger.warning("%s waits for the queue: %s", event, error)
    return HttpResponse(status=200)


def _body(request: HttpRequest) -> bytes | None:
    """Return the body as it was sent; None when it is too long, which is checked before reading."""
    length = request.headers.get("Content-Length") or "0"
    if not (length.isascii() and length.isdecimal() and len(length) < 12):
        return None
    if int(length) > MAX_BYTES:
        return None
    try:
        body = request.body
    except RequestDataTooBig:
        return None
    return body if len(body) <= MAX_BYTES else None


def _store(provider: str, notice: Notice, body: bytes, headers: Mapping[str, str]) -> ProviderEvent:
    """Return the event's row: a new one, or the one that it repeats."""
    found = _find(provider, notice)
    if found is not None:
        return found
    event_id = notice.event_id[:255]
    is_id_unsigned = notice.body_sha256 is not None
    same_id = ProviderEvent.objects.filter(provider=provider, event_id=event_id)
    if is_id_unsigned and same_id.exists():
        # Another body may have been replayed under this id. The real event must be stored too.
        event_id = f"{event_id[:190]}:{notice.body_sha256}"
    try:
        with transaction.atomic():
            return ProviderEvent.objects.create(
                provider=provider,
                event_id=event_id,
                event_type=notice.event_type[:100],
                livemode=notice.livemode,
                body=body,
                body_sha256=notice.body_sha256,
                headers={
                    name: sentence(headers[name], 2000)
                    for name in STORED_HEADERS
                    if name in headers
                },
                about={
                    "order_id": notice.order_id,
                    "provider_order_id": notice.provider_order_id,
                    "payment_id": notice.payment_id,
                },
            )
    except IntegrityError:
        found = _find(provider, notice)
        if found is None:
            raise
        return found


def _find(provider: str, notice: Notice) -> ProviderEvent | None:
    same = (
        Q(event_id=notice.event_id)
        if notice.body_sha256 is None
        else Q(body_sha256=notice.body_sha256)
    )
    return ProviderEvent.objects.filter(same, provider=provider).first()
