"""The page that plays the bank of the sandbox provider. Development only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import redis
from django.contrib.auth.models import AbstractBaseUser
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods

from billing import queue
from billing.models import Order, SandboxPayment
from billing.payments import providers
from billing.payments.providers import sandbox as bank

logger = logging.getLogger(__name__)


@require_http_methods(["GET", "POST"])
def sandbox(request: HttpRequest, payment_id: str) -> HttpResponse:
    """Shows what is to be paid, and does what the buyer decides."""
    payment = _payment(request, payment_id)
    if request.method != "POST":
        order = get_object_or_404(Order, pk=payment.order_id)
        return render(request, "billing/sandbox.html", {"payment": payment, "order": order})
    action = request.POST.get("action", "")
    if action == "later":
        bank.pay_later(payment.pk)
    elif action in ACTIONS:
        _report(payment.pk, ACTIONS[action](payment.pk))
    else:
        raise Http404
    return redirect(payment.cancel_url if action == "cancel" else payment.return_url)


ACTIONS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "pay": bank.pay,
    "decline": bank.decline,
    "cancel": bank.close,
}


def _payment(request: HttpRequest, payment_id: str) -> SandboxPayment:
    """The signed-in buyer's own payment."""
    try:
        providers.get("sandbox")
    except LookupError:
        raise Http404 from None
    assert isinstance(request.user, AbstractBaseUser)  # the middleware has looked
    return get_object_or_404(SandboxPayment, pk=payment_id, user_id=request.user.pk)


def _report(payment_id: str, event_types: Iterable[str]) -> None:
    try:
        for event_type in event_types:
            queue.enqueue_sandbox(payment_id, event_type)
    except redis.RedisError as error:
        # As with a provider whose webhooks get lost: the return page or the poller finds out.
        logger.warning("the test bank could not report: %s", error)
