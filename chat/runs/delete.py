"""Deletion of conversations, whose replies that are being generated are stopped first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from chat import access
from chat.conversations import lifecycle, sharing
from chat.models import Conversation, Run
from chat.runs.stop import stop_run

if TYPE_CHECKING:
    from accounts.models import User


def delete(*, user: User, conversation_ids: Sequence[UUID]) -> tuple[list[Conversation], datetime]:
    """Stop the active runs of conversations mark them as deleted and end their shares; return what `lifecycle.change` does.

    Raises ChatError like `lifecycle.change` and `stop_run`.
    """
    found = [each.pk for each in access.conversations(user, conversation_ids)]
    for run_id in Run.objects.active().filter(conversation__in=found).values_list("pk", flat=True):
        stop_run(user=user, run_id=run_id)
    deleted = lifecycle.change(user=user, conversation_ids=found, action="delete")
    sharing.end_all(deleted[0])
    return deleted
