"""The context gauge: how much of a model's context window a conversation takes, and where it is cut.

Measured for its page and after a reply, never while a message is stored or generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from chat.conversations import prompt_builder
from chat.conversations.path import path_to_root
from chat.llm.tokens import BYTES_PER_TOKEN, TOKENS_PER_MESSAGE
from chat.models import Conversation, LanguageModel, Message
from chatproject.lib.db import prepared

QUIET = 70  # percent, below which the gauge is not shown

# The size of a branch, without reading its texts.
SIZE = f"""
{path_to_root("%s", prompt_builder.LONGEST_PATH)}
SELECT count(*), COALESCE(sum(octet_length(m.text)), 0), COALESCE(bool_or(m.attached IS NOT NULL), false)
FROM path JOIN chat_message m ON m.id = path.id
"""  # noqa: S608 # of names alone


@dataclass(frozen=True, slots=True)
class Context:
    """How much of the `room` for a prompt a conversation takes, in tokens.

    `first` is the oldest message that is still sent, if older ones are left out.
    """

    tokens: int
    room: int
    first: UUID | None = None

    @property
    def percent(self) -> int:
        """The filled part; 100 where messages are left out."""
        return 100 if self.first else min(99, 100 * self.tokens // max(1, self.room))

    @property
    def is_quiet(self) -> bool:
        return self.percent < QUIET


def measure(
    conversation: Conversation, model: LanguageModel, messages: Sequence[Message] | None = None
) -> Context:
    """Return the context of a conversation with a model.

    `messages` are the newest ones of its branch, oldest first. No query is made if they are all of them, or fill the
    window. Otherwise there is one query, and others for a branch that may fill half of the window.
    """
    rows: list[prompt_builder.Row] = []
    end = conversation.leaf_id
    if messages:
        end = messages[-1].pk
        rows = [(one.role, one.text, one.attached, one.parent_id) for one in reversed(messages)]
    is_whole = end is None or bool(rows and rows[-1][3] is None)
    room = model.context_tokens - min(model.max_output_tokens, model.context_tokens // 2)
    size = sum(len(text) for _, text, _, _ in rows)  # at least so many bytes
    if not is_whole and size // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE * len(rows) <= room:
        [(count, size, has_files)] = prepared.all(SIZE, [end])
        tokens = int(size) // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE * count
        is_short = count < prompt_builder.LONGEST_PATH and not has_files
        # The room is at least half of the window.
        if is_short and 4 * tokens < model.context_tokens:
            return Context(tokens, room)
        rows = prepared.all(prompt_builder.WHOLE_PATH, [end])
    found = prompt_builder.window(conversation, model, end, rows)
    first = UUID(str(found.first)) if found.first else None
    return Context(found.used, found.room, first)
