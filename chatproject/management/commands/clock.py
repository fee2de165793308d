from __future__ import annotations

import signal
from typing import Any

from django.core.management.base import BaseCommand

from chatproject.clock import Clock
from chatproject.lib.metrics import shared
from chatproject.ops import start_report


class Command(BaseCommand):
    help = "Runs the periodic tasks until SIGTERM or SIGINT."

    def handle(self, *args: Any, **options: Any) -> None:
        clock = Clock()
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: clock.stop.set())
        start_report.start()
        shared.start("clock")
        clock.run()
