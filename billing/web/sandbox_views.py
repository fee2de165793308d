"""The page of the sandbox provider's bank. Development only."""

from __future__ import annotations

import logging
from collections.abc import Callable

import redis
from django.contrib.auth.models import AbstractBaseUser
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods

from billing import queue
from billing.models import Order, SandboxPayment
from billing.payments import providers
from billing.payments.providers import sandbox as bank
from billing.payments.providers.base import ProviderNotConfigured

logger = logging.getLogger(__name__)


ACTIONS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "pay": bank.pay,
    "decline": bank.decline,
    "cancel": bank.close,
}


@require_http_methods(["GET", "HEAD", "POST"])
def sandbox(request: HttpRequest, payment_id: str) -> HttpResponse:
    """Show a payment of the signed-in buyer, and carry out the buyer's decision."""
    try:
        providers.get("sandbox")
    except ProviderNotConfigured:
        raise Http404 from None
    assert isinstance(request.user, AbstractBaseUser)  # accounts.access refuses all others
    payment = get_object_or_404(SandboxPayment, pk=payment_id, user_id=request.user.pk)
    if request.method != "POST":
        order = get_object_or_404(Order, pk=payment.order_id)
        return render(request, "billing/sandbox.html", {"payment": payment, "order": order})
    action = request.POST.get("action", "")
    if action == "later":
        bank.pay_later(payment.pk)
    elif action in ACTIONS:
        event_types = ACTIONS[action](payment.pk)
        try:
            for event_type in event_types:
                queue.enqueue_sandbox(payment.pk, event_type)
        except redis.RedisError as error:
            # As with a provider whose webhooks are lost: the return page or the poller asks.
            logger.warning("the test bank could not report: %s", error)
    else:
        raise Http404
    return redirect(payment.cancel_url if action == "cancel" else payment.return_url)
