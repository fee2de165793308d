"""The instructions of a user for one conversation: a system prompt that is added to the assistant's."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from django.db import transaction
from django.utils.translation import gettext as _

from chat import access, protocol
from chat.errors import ChatError
from chat.models import Conversation
from chat.streaming import user_channel
from chatproject.lib import languages

if TYPE_CHECKING:
    from accounts.models import User

LONGEST = 10_000  # characters


def change(*, user: User, conversation_id: UUID, text: str) -> Conversation:
    """Set the instructions of a conversation, from its next reply on, and announce them to the user's pages.

    Raises ChatError `not_found`, `not_allowed`, `text_too_long`, `bad_text`, or `run_active` while a reply is
    generated, since its maximum cost was fixed with the present instructions.
    """
    text = text.strip()
    if not protocol.is_storable(text):
        raise ChatError("bad_text")
    if len(text) > LONGEST:
        words = _("The instructions are longer than %(most)s characters. Shorten them.")
        raise ChatError("text_too_long", words % {"most": languages.number(LONGEST)})
    with transaction.atomic():
        # The lock excludes a message that is being stored.
        conversation = access.conversation(user, conversation_id, write=True, lock=True)
        if conversation.system_prompt == text:
            return conversation
        if conversation.runs.active().exists():
            raise ChatError("run_active")
        conversation.system_prompt = text
        Conversation.objects.filter(pk=conversation.pk).update(system_prompt=text)
    event = protocol.InstructionsChanged(conversation=conversation.pk, system_prompt=text)
    user_channel.announce_instructions(conversation.owner_id, event)
    return conversation
