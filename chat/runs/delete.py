"""Deletion of conversations, whose replies that are being generated are stopped first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from chat import access
from chat.conversations import lifecycle
from chat.models import Conversation, Run
from chat.runs.stop import stop_run

if TYPE_CHECKING:
    from accounts.models import User


def delete(*, user: User, conversation_ids: Sequence[UUID]) -> tuple[list[Conversation], datetime]:
    """Stop the active runs of conversations and mark them as deleted; return what `lifecycle.change` does.

    Raises ChatError like `lifecycle.change` and `stop_run`.
    """
    found = [each.pk for each in access.conversations(user, conversation_ids)]
    for run_id in Run.objects.active().filter(conversation__in=found).values_list("pk", flat=True):
        stop_run(user=user, run_id=run_id)
    return lifecycle.change(user=user, conversation_ids=found, action="delete")
