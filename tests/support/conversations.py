"""Conversations and their messages, for tests."""

from __future__ import annotations

import itertools

from django.utils import timezone

from accounts.models import User
from chat.models import Assistant, Conversation, Message, Run, new_id
from chat.runs import start

_numbers = itertools.count(1)


def client_id() -> str:
    """Return a client_id that is not in use."""
    return f"test-{next(_numbers)}"


def begin(owner: User, assistant: Assistant, **fields) -> Conversation:
    """Create an empty conversation."""
    return Conversation.objects.create(
        owner=owner, assistant=assistant, updated_at=timezone.now(), **fields
    )


def send(user: User, conversation: Conversation, text: str = "Hello", **fields) -> Run:
    """Send a message; return its queued run."""
    fields.setdefault("client_id", client_id())
    return start.send(user=user, conversation_id=conversation.pk, text=text, **fields).run


def add_turns(owner: User, conversation: Conversation, turns: int) -> list[Message]:
    """Add finished turns to an empty conversation; return their messages, oldest first."""
    parent, made = None, []
    for number in range(turns):
        sent = Message.objects.create(
            conversation=conversation, parent=parent, role="user", text=f"Question {number}"
        )
        parent = Message.objects.create(
            conversation=conversation,
            parent=sent,
            role="assistant",
            text=f"Answer {number}",
            html=f"<p>Answer {number}</p>",
        )
        Run.objects.create(
            conversation=conversation,
            message=parent,
            user=owner,
            client_id=str(new_id()),
            assistant=conversation.assistant,
            model=conversation.assistant.model,
            model_snapshot={"name": "Stub"},
            status="done",
            ended_at=timezone.now(),
        )
        made += [sent, parent]
    conversation.leaf = parent
    conversation.save()
    return made
