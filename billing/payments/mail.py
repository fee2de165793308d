"""Mails about payments, in plain text: to buyers, and to the staff of BILLING_ALERT_EMAIL.

Sending stores a row in the outbox (chatproject.lib.mail) and takes no time.
"""

from __future__ import annotations

import logging
from uuid import UUID

from django.conf import settings
from django.core.mail import send_mail
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.translation import gettext as _

from billing.models import AutoTopUp, Order, Refund
from chatproject.lib import alerts, languages


def send_receipt(order_id: UUID) -> None:
    """Mail a buyer the purchase and the link to its receipt."""
    order = Order.objects.select_related("user").get(pk=order_id)
    number = f"{order.invoice_no:06d}"
    with languages.use(order.user.language):
        subject = _("Receipt %(number)s") % {"number": number}
        _send("receipt", subject, order.user.email, order=order)


def send_refunded(refund_id: UUID) -> None:
    """Mail a buyer that money is on its way back."""
    refund = Refund.objects.select_related("order__user").get(pk=refund_id)
    order = refund.order
    with languages.use(order.user.language):
        _send("refunded", _("Your refund"), order.user.email, order=order, refund=refund)


def send_top_up_failed(order_id: UUID, *, to_be_confirmed: bool) -> None:
    """Mail a user that an automatic purchase failed, and what to do about it."""
    order = Order.objects.select_related("user").get(pk=order_id)
    top_up = AutoTopUp.objects.get(user=order.user)
    with languages.use(order.user.language):
        _send(
            "top_up_failed",
            _("Your automatic purchase did not go through"),
            order.user.email,
            order=order,
            top_up=top_up,
            to_be_confirmed=to_be_confirmed,
        )


def _send(template: str, subject: str, to: str, *, order: Order, **context: object) -> None:
    site = settings.SITE_URL
    context |= {
        "order": order,
        "site_name": settings.SITE_NAME,
        "link": site and site + reverse("billing:order", args=[order.pk]),
        "shop_link": site and site + reverse("billing:packages"),
    }
    text = render_to_string(f"billing/email/{template}.txt", context)
    send_mail(f"{settings.SITE_NAME}: {subject}", text, None, [to])


def alert(subject: str, text: str) -> None:
    """Mail staff about an error with money that needs a person."""
    notify_staff(subject, text, level=logging.ERROR)


def notify_staff(subject: str, text: str, *, level: int = logging.WARNING) -> None:
    """Mail staff about an event that is in order but worth knowing."""
    alerts.send(subject, text, settings.BILLING_ALERT_EMAIL, level=level)
