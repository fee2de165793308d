from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from billing.models import Order
from billing.payments import checkout
from billing.payments.providers.base import ProviderError

logger = logging.getLogger(__name__)


class Command(BaseCommand):
    help = (
        "Syncs the orders of the last days with their providers, also if no webhook ever arrived. "
        "Safe to run at any time."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--days", type=int, default=3, help="how far to look back (%(default)s)"
        )
        parser.add_argument(
            "--all",
            action="store_true",
            help="also paid orders, to find their refunds and disputes",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        since = timezone.now() - timedelta(days=options["days"])
        orders = Order.objects.filter(created_at__gte=since, provider_order_id__isnull=False)
        if not options["all"]:
            orders = orders.exclude(status__in=Order.SETTLED)
        checked = changed = failed = 0
        for order in orders.order_by("pk").iterator():
            checked += 1
            try:
                after = checkout.sync_order(order.pk)
            except ProviderError as error:
                failed += 1
                self.stderr.write(f"{order.pk}: {error}")
                continue
            except Exception as error:
                # One odd order keeps no other one from its credits.
                logger.exception("%s cannot be synced", order)
                failed += 1
                self.stderr.write(f"{order.pk}: {error!r}")
                continue
            if after.status != order.status:
                changed += 1
                self.stdout.write(f"{order.pk}: {order.status} is now {after.status}")
        self.stdout.write(f"{checked} orders checked, {changed} changed, {failed} failed.")
        if failed:
            raise CommandError("Some providers did not answer. Run this again later.")
