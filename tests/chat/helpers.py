from __future__ import annotations

import itertools

from django.utils import timezone

from accounts.models import User
from chat.models import Assistant, Conversation, Run
from chat.runs import start

_numbers = itertools.count(1)


def client_id() -> str:
    return f"test-{next(_numbers)}"


def begin(owner: User, assistant: Assistant, **fields) -> Conversation:
    """An empty conversation."""
    return Conversation.objects.create(
        owner=owner, assistant=assistant, updated_at=timezone.now(), **fields
    )


def send(user: User, conversation: Conversation, text: str = "Hello", **fields) -> Run:
    """A queued run for a new message."""
    fields.setdefault("client_id", client_id())
    return start.send(user=user, conversation_id=conversation.pk, text=text, **fields).run
