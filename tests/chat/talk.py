from __future__ import annotations

from django.utils import timezone

from accounts.models import User
from chat.models import Conversation, Message, Run, new_id


def talk(owner: User, conversation: Conversation, turns: int) -> list[Message]:
    """A conversation of finished turns."""
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
