"""The tool `remember`: notes about the user for later chats (chat/conversations/notes.py)."""

from __future__ import annotations

from typing import Annotated

from django.utils.translation import gettext, gettext_lazy
from msgspec import Meta

from chat.conversations import notes
from chat.errors import ChatError
from chat.models import UserNote
from chat.tools.registry import Display, ToolContext, ToolError, ToolResult, tool
from chatproject.lib import rate_limits

TOO_OFTEN = gettext_lazy("Too many notes were stored. Try again later.")


def _may_remember(context: ToolContext) -> bool:
    return notes.may_remember(context.user_id, context.conversation_id)


@tool(
    name="remember",
    title=gettext_lazy("Memory"),
    progress=gettext_lazy("Noting…"),
    has_effect=True,
    available=_may_remember,
)
def remember(
    context: ToolContext,
    note: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=UserNote.MAX_CHARACTERS,
            description="One fact in a short sentence, such as: Lives in Lisbon.",
        ),
    ],
) -> ToolResult:
    """Store a lasting fact about the user for later chats. Use it when the user asks you to remember something, or
    tells a preference that will matter again; never for secrets, passwords or health, unless asked to."""
    try:
        made = notes.remember(run_id=context.run_id, call=context.call, text=note)
    except ChatError as error:
        raise ToolError(error.message) from None
    except rate_limits.RateLimited:
        raise ToolError(TOO_OFTEN) from None
    return ToolResult(
        text=f"Stored: {made.text}",
        summary=gettext("Stored a note about you"),  # its text is for the owner's eyes
        parts=(Display("note", {"note": str(made.pk), "text": made.text}),),
    )
