"""Mails about payments, in plain text: to buyers, and to the staff of BILLING_ALERT_EMAIL.

Called after a commit, never inside a transaction: a mail server may take its time.
"""

from __future__ import annotations

import logging
from uuid import UUID

import redis
from django.conf import settings
from django.core.mail import send_mail
from django.template.loader import render_to_string
from django.urls import reverse

from billing import queue
from billing.models import AutoTopUp, Order, Refund

logger = logging.getLogger(__name__)


def deliver_receipt(order_id: UUID) -> None:
    """Mail a receipt through the queue, or directly while the queue is unreachable: nothing repeats it."""
    try:
        queue.enqueue_receipt(order_id)
    except redis.RedisError as error:
        logger.warning("the receipt of order %s is mailed without the queue: %s", order_id, error)
        send_receipt(order_id)


def deliver_refunded(refund_id: UUID) -> None:
    """Mail about a refund through the queue, or directly while the queue is unreachable."""
    try:
        queue.enqueue_refunded(refund_id)
    except redis.RedisError as error:
        logger.warning("the mail of refund %s is sent without the queue: %s", refund_id, error)
        send_refunded(refund_id)


def send_receipt(order_id: UUID) -> None:
    """Tell a buyer what was bought and where the receipt is."""
    order = Order.objects.select_related("user").get(pk=order_id)
    _send("receipt", f"Receipt {order.invoice_no:06d}", order.user.email, order=order)


def send_refunded(refund_id: UUID) -> None:
    """Tell a buyer that money is on its way back."""
    refund = Refund.objects.select_related("order__user").get(pk=refund_id)
    order = refund.order
    _send("refunded", "Your refund", order.user.email, order=order, refund=refund)


def send_top_up_failed(order_id: UUID, *, to_be_confirmed: bool) -> None:
    """Tell a user that credits could not be bought by themselves, and what to do about it."""
    order = Order.objects.select_related("user").get(pk=order_id)
    top_up = AutoTopUp.objects.get(user=order.user)
    _send(
        "top_up_failed",
        "Your automatic purchase did not go through",
        order.user.email,
        order=order,
        top_up=top_up,
        to_be_confirmed=to_be_confirmed,
    )


def alert(subject: str, text: str) -> None:
    """Call staff: something about money is wrong and waits for a person."""
    logger.error("%s: %s", subject, text)
    _to_staff(subject, text)


def notify_staff(subject: str, text: str) -> None:
    """Tell staff something that they want to know, but that is in order."""
    logger.warning("%s: %s", subject, text)
    _to_staff(subject, text)


def _to_staff(subject: str, text: str) -> None:
    if settings.BILLING_ALERT_EMAIL:
        send_mail(f"{settings.SITE_NAME}: {subject}", text, None, settings.BILLING_ALERT_EMAIL)


def _send(template: str, subject: str, to: str, *, order: Order, **context: object) -> None:
    context |= {
        "order": order,
        "site_name": settings.SITE_NAME,
        "link": _link("billing:order", order.pk),
        "shop_link": _link("billing:packages"),
    }
    text = render_to_string(f"billing/email/{template}.txt", context)
    send_mail(f"{settings.SITE_NAME}: {subject}", text, None, [to])


def _link(name: str, *arguments: object) -> str:
    return f"{settings.SITE_URL}{reverse(name, args=arguments)}" if settings.SITE_URL else ""
