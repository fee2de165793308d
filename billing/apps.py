from __future__ import annotations

from django.apps import AppConfig


class BillingConfig(AppConfig):
    """Credits: ledger, prices, payments, usage. See docs/billing.md."""

    name = "billing"

    def ready(self) -> None:
        from billing import privacy, receivers
        from billing.metering import plan_limits

        receivers.connect()
        plan_limits.connect()
        privacy.register()
