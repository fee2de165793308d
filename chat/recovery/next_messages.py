"""Next messages that no worker has sent: it was killed after the end of the reply, or the message was refused for a time.

The clock calls `NextMessages.send` every two seconds.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime

from django.db.models import Exists, OuterRef

from chat.models import NextMessage, Run
from chat.runs import next_message
from chatproject.lib.batches import SetAside

logger = logging.getLogger(__name__)

EVERY = 2.0  # seconds
SECONDS = 1.0  # time limit of one turn, as the clock has other work; the next turn continues
BATCH = 50


class NextMessages:
    """Sends or pauses due messages; one that fails is set aside."""

    def __init__(self) -> None:
        self._set_aside = SetAside()

    def send(self, now: datetime) -> None:
        """Send or pause the messages of conversations in which no reply is being generated."""
        deadline = time.monotonic() + SECONDS
        active = Run.objects.active().filter(conversation=OuterRef("pk"))
        waiting = NextMessage.objects.filter(state=NextMessage.State.WAITING, due_at__lte=now)
        due = waiting.exclude(Exists(active)).order_by("due_at").values_list("pk", flat=True)
        found = due[: BATCH + self._set_aside.count]
        for conversation_id in found:
            if self._set_aside.is_due(conversation_id, now):
                subject = f"the next message of chat {conversation_id}"
                with self._set_aside.apart(conversation_id, subject, now):
                    next_message.proceed(conversation_id)
            if time.monotonic() > deadline:
                break
