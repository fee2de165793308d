"""Pages of a document's insights: what is for sale, a category before and after its purchase, and another try."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from billing.metering import settlement
from chat import access
from chat.documents.models import Document
from chat.errors import ChatError
from chat.insights import cards, offers, unlock
from chat.insights.models import Category, Insight
from chat.insights.offers import Offer
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors
from chatproject.lib.http import Request

TYPICAL = timedelta(seconds=20)  # of an insight, for the estimate


@require_safe
@never_cache
@handles_chat_errors
def insights(request: Request, document_id: UUID) -> HttpResponse:
    """Show what is for sale for a document, and what was bought."""
    document = access.owned(request.user, Document, document_id)
    context = {"document": document, "offers": offers.of_document(request.user, document)}
    return render(request, "chat/insights.html", page_context(request) | context)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def category(request: Request, document_id: UUID, category_slug: str) -> HttpResponse:
    """Show a category: its offer, or the cards of its job. A POST buys it at the price that was shown."""
    document = access.owned(request.user, Document, document_id)
    refusal = None
    if request.method == "POST":
        sent = request.POST.get("price", "")
        price = int(sent) if sent.isascii() and sent.isdecimal() and len(sent) < 19 else -1
        try:
            unlock.unlock(
                user=request.user, document_id=document.pk, slug=category_slug, price=price
            )
            return redirect("chat:insight_category", document.pk, category_slug)
        except ChatError as error:
            if error.code == "not_found":
                raise
            refusal = error
    offer = offers.of_category(request.user, document, category_slug)
    context = _context(request, document, offer) | {"refusal": refusal}
    page = render(request, "chat/insight_category.html", page_context(request) | context)
    page.status_code = 409 if refusal else 200
    return page


def _context(request: Request, document: Document, offer: Offer) -> dict[str, Any]:
    context: dict[str, Any] = {"document": document, "offer": offer, "billing": settings.BILLING}
    if offer.job is None:
        context["examples"] = _examples(offer)
        if settings.BILLING and not offer.is_free:
            available = settlement.account_of(request.user.pk).available
            context |= {"available": available, "missing": max(0, offer.price - available)}
        return context
    found = list(offer.job.insights.all())
    context["cards"] = [
        {
            "insight": one,
            "parts": cards.parts(one.schema, one.data) if one.data is not None else [],
            "reason": cards.reason(one) if one.status == Insight.Status.FAILED else "",
            "may_retry": one.status == Insight.Status.FAILED and one.retries < unlock.RETRIES,
        }
        for one in found
    ]
    still = [one for one in found if one.status in Insight.OPEN]
    context |= {
        "done": sum(one.status == Insight.Status.DONE for one in found),
        "is_active": bool(still),
        "seconds": round(TYPICAL.total_seconds()) * (1 + len(still) // 6),
    }
    return context


def _examples(offer: Offer) -> list[dict[str, Any]]:
    return [
        {"type": one, "parts": cards.parts(one.schema, one.example or {})} for one in offer.examples
    ]


@require_safe
@never_cache
@handles_chat_errors
def preview(request: Request, category_slug: str) -> HttpResponse:
    """Show staff the offer of a category, also of one that is not for sale."""
    found = Category.objects.filter(slug=category_slug).first()
    if found is None or not request.user.has_perm("insights.view_category"):
        raise ChatError("not_found")
    offer = offers.preview(found)
    context = {"offer": offer, "examples": _examples(offer), "is_preview": True}
    return render(request, "chat/insight_category.html", page_context(request) | context)


@require_POST
@handles_chat_errors
def retry(request: Request, insight_id: UUID) -> HttpResponse:
    """Try a failed insight again, and show its category."""
    one = unlock.of_user(request.user, insight_id)
    try:
        unlock.retry(user=request.user, insight_id=insight_id)
    except ChatError as error:
        if error.code != "limit_reached":
            raise
        messages.error(request, error.message)
    return redirect(one.job)
