from __future__ import annotations

import time
from argparse import ArgumentParser
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand

from chat.models import Message
from chat.rendering.document import to_html


class Command(BaseCommand):
    help = (
        "Renders the stored replies again, the oldest first, after an update that changed their HTML. It may be "
        "stopped and started again at any time, with --after and the id that it printed last."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--after", type=UUID, help="begin after the message with this id")
        parser.add_argument(
            "--batch", type=int, default=200, help="messages that are read at a time"
        )
        parser.add_argument("--pause", type=float, default=0.1, help="seconds between two batches")

    def handle(self, *args: Any, **options: Any) -> None:
        after: UUID | None = options["after"]
        changed = total = 0
        while True:
            found = (
                Message.objects.filter(role=Message.Role.ASSISTANT).exclude(text="").order_by("id")
            )
            page = list(
                (found.filter(id__gt=after) if after else found).only("text", "html")[
                    : options["batch"]
                ]
            )
            if not page:
                break
            for message in page:
                html = to_html(message.text)
                if html != message.html:
                    # A reply that was changed meanwhile has new HTML.
                    unchanged = Message.objects.filter(
                        pk=message.pk, html=message.html, text=message.text
                    )
                    changed += unchanged.update(html=html)
            total, after = total + len(page), page[-1].pk
            self.stdout.write(f"{total} messages read, {changed} changed, up to {after}")
            time.sleep(options["pause"])
        self.stdout.write("All replies are rendered.")
