"""Fake Stripe and Razorpay on this machine, as their own client libraries call them.

    with FakePay() as pay:                               # in a test: the fixture of fixture.py
        settings.STRIPE_API_BASE = pay.url
        ...
        pay.stripe.pay(order.provider_order_id)          # what buyers do
        pay.stripe.refund(payment_id, 500)               # what staff do in the dashboard
        pay.postman.flush()                              # webhooks, signed as the providers sign

By hand: `python -m tests.support.fakepay`. Objects have the fields of Stripe's API 2026-10-28.endive
and of Razorpay's v1 that our code reads.
"""

from __future__ import annotations

from tests.support.fakepay.postman import Postman, Switches
from tests.support.fakepay.razorpay_side import RazorpaySide
from tests.support.fakepay.server import FakePay
from tests.support.fakepay.stripe_side import StripeSide

__all__ = ["FakePay", "Postman", "RazorpaySide", "StripeSide", "Switches"]
