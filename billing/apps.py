from __future__ import annotations

from django.apps import AppConfig


class BillingConfig(AppConfig):
    """Credits. The ledger joins the way of a message at the two places marked in chat.runs."""

    name = "billing"
