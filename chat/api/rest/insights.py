"""Insights into documents: what is for sale, its purchase, its cards, and another try."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from ninja import Query, Router, Schema
from ninja.responses import Status
from pydantic import Field

from accounts.models import Scope, User
from billing import credits
from chat import access
from chat.api.rest import idempotency, paging
from chat.api.rest.auth import ApiRequest, needs
from chat.api.rest.errors import Problem
from chat.api.rest.schemas import Body, Credits, Cursor, Limit, Page, responses
from chat.documents.models import Document
from chat.insights import offers, unlock
from chat.insights.models import Insight, InsightJob
from chat.insights.offers import Offer
from chatproject.lib import rate_limits

router = Router(tags=["insights"])

LIMIT = "insights"

LIMITED = (
    "A key with a spending limit cannot buy insights. Use another key, or the page of the document."
)


class InsightOut(Schema):
    """An insight. `data` fits the schema of its type; quotes have their sender and time."""

    id: UUID
    key: str
    name: str
    status: str = Field(description="queued, running, done or failed.")
    error: str = Field(description="The code of a failure, or empty.")
    data: dict[str, Any] | None


class InsightJobOut(Schema):
    """A purchase. `status` is active, done, partial, failed or stopped; `charged` is null until its first end."""

    id: UUID
    document: UUID
    category: str
    status: str
    price: Credits
    charged: Credits | None
    total: int
    insights: list[InsightOut]


class InsightOffer(Schema):
    """A category for a document. `reason` says why it cannot be bought now; `job` is what was bought of it."""

    category: str
    name: str
    description: str
    price: Credits
    types: list[str]
    reason: str
    job: InsightJobOut | None


class InsightUnlock(Body):
    """A purchase, as its idempotency key remembers it."""

    category: str
    price: str | None


@router.get(
    "/documents/{uuid:document_id}/insights",
    auth=needs(Scope.DOCUMENTS),
    response=responses({200: Page[InsightOffer]}),
)
def list_insights(
    request: ApiRequest, document_id: UUID, cursor: Cursor = "", limit: Limit = 50
) -> dict[str, Any]:
    """List the categories for a document, with the insights that were bought."""
    user = request.auth.user
    document = access.owned(user, Document, document_id)
    items = [_offered(one) for one in offers.of_document(user, document)]
    return paging.page(items, cursor, limit)


@router.post(
    "/documents/{uuid:document_id}/insights/{slug:category_slug}/unlock",
    auth=needs(Scope.DOCUMENTS),
    response=responses({200: InsightJobOut, 201: InsightJobOut}, 402, 409),
    openapi_extra=idempotency.DESCRIBED,
)
def unlock_insights(
    request: ApiRequest,
    document_id: UUID,
    category_slug: str,
    price: Annotated[str | None, Query(max_length=30)] = None,
) -> Status[dict[str, Any]]:
    """Buy a category for a document: once, however often it is asked for; then the answer is 200.

    With `price`, the credits that were shown, another price is refused with `price_changed`.
    """
    sent = InsightUnlock(category=category_slug, price=price)
    user: User = request.auth.user
    rate_limits.hit(LIMIT, user.pk)
    key = request.auth.key
    if key is not None and (key.limit_total is not None or key.limit_month is not None):
        raise Problem("not_allowed", status=403, message=LIMITED)
    try:
        seen = None if price is None else credits.parse(price)
    except ValueError as error:
        fields = [{"field": "price", "message": "It is a number of credits."}]
        raise Problem("invalid_request", fields=fields) from error
    with idempotency.once(request, f"insights {document_id}", sent):
        job, is_new = unlock.unlock(
            user=user, document_id=document_id, slug=category_slug, price=seen
        )
    return Status(201 if is_new else 200, _job(job))


@router.post(
    "/insights/{uuid:insight_id}/retry",
    auth=needs(Scope.DOCUMENTS),
    response=responses({200: InsightOut}),
)
def retry_insight(request: ApiRequest, insight_id: UUID) -> dict[str, Any]:
    """Try a failed insight again, free of charge; one that goes on or is done is returned as it is."""
    rate_limits.hit(LIMIT, request.auth.user.pk)
    return _insight(unlock.retry(user=request.auth.user, insight_id=insight_id))


def _offered(offer: Offer) -> dict[str, Any]:
    return {
        "category": offer.category.slug,
        "name": offer.category.shown_name,
        "description": offer.category.shown_description,
        "price": credits.exact(offer.price),
        "types": [one.shown_name for one in offer.types],
        "reason": offer.reason,
        "job": _job(offer.job) if offer.job else None,
    }


def _job(job: InsightJob) -> dict[str, Any]:
    return {
        "id": job.pk,
        "document": job.document_id,
        "category": job.category.slug,
        "status": job.status,
        "price": credits.exact(job.price),
        "charged": None if job.charged is None else credits.exact(job.charged),
        "total": job.total,
        "insights": [_insight(one) for one in job.insights.order_by("position")],
    }


def _insight(one: Insight) -> dict[str, Any]:
    return {
        "id": one.pk,
        "key": one.key,
        "name": one.shown_name,
        "status": one.status,
        "error": one.error,
        "data": one.data,
    }
