"""Builds the prompt of a run: the path to its reply, cut to the model's context window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import Any
from uuid import UUID

from billing.metering import pricing
from chat.attachments import content
from chat.attachments.content import Files
from chat.conversations import notes
from chat.conversations.path import path_to_root
from chat.llm.quirks import Quirks
from chat.llm.thoughts import PARTS_OF_CLOSINGS, split_thoughts
from chat.llm.tokens import TEMPLATE_TOKENS, count_tokens, token_upper_bound, typical_tokens
from chat.models import Conversation, LanguageModel, Message, Run
from chatproject.lib.db import prepared

CHUNK = 50  # messages of one walk for a prompt; most prompts need no second one

NEXT_CHUNK = f"""
{path_to_root("%s", CHUNK, "role", "text", "attached")}
SELECT role, text, attached::json, parent_id FROM path ORDER BY depth
"""  # noqa: S608 # of names alone

# The first chunk, as a part of a statement that has a chat_run named `run`: saves a query.
FIRST_CHUNK = f"""
({path_to_root("run.message_id", CHUNK, "role", "text", "attached")}
  SELECT json_agg(json_build_array(role, text, attached, parent_id) ORDER BY depth) FROM path)
"""  # noqa: S608 # of names alone

# The instructions of the project and of the conversation, in the same way, the notes about the run's user, and
# whether it has documents.
INSTRUCTIONS = f"""
(SELECT json_build_array(project.instructions, conversation.system_prompt,
    CASE WHEN NOT conversation.temporary THEN {notes.selecting("run.user_id", "run.queued_at")} END,
    conversation.has_own_documents OR COALESCE(project.has_documents, false))
  FROM chat_conversation AS conversation
  LEFT JOIN chat_project AS project ON project.id = conversation.project_id
  WHERE conversation.id = run.conversation_id)
"""  # noqa: S608 # of names alone

# For the prompts of several models: one walk, whatever their windows.
LONGEST_PATH = 2_000
WHOLE_PATH = f"""
{path_to_root("%s", LONGEST_PATH, "role", "text", "attached")}
SELECT role, text, attached::json, parent_id FROM path ORDER BY depth
"""  # noqa: S608 # of names alone

# Role, text, attachments and parent of a message, as these statements return them.
Row = tuple[str, str, list[Any] | None, Any]

SMALLEST_REPLY = 16  # tokens

# For a model that continues a reply only when it is asked to.
GO_ON = (
    "Your last message was cut off. Continue it exactly where it stopped, in the middle of a word if"
    " need be. Do not repeat any of it, and do not comment on the interruption."
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The messages sent to the model, and `max_tokens`, the reply's cap.

    `tokens` is the estimated size of the prompt, which does not exceed `token_upper_bound`; `size` is
    the estimate that the window is filled by, which is rather too high. `is_single`: of the
    conversation it has only the message to be answered. The content of a message with images has parts.
    """

    messages: list[dict[str, Any]]
    tokens: int
    token_upper_bound: int
    max_tokens: int
    size: int
    is_single: bool
    is_untrusted: bool = False  # it has files, or remembers results of tools with texts of others
    # Of a request of the API: further fields of the provider's request, and its temperature.
    fields: Mapping[str, Any] | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of a prompt, with the attachments of a user's message.

    `remembered` are the calls of tools of a reply, with the beginnings of their results (runs/steps.py).
    """

    role: str
    text: str
    files: Files | None = None
    remembered: str = ""

    @property
    def counted(self) -> int:
        return sum(map(count_tokens, self._texts)) + (self.files.counted if self.files else 0)

    @property
    def typical(self) -> int:
        return sum(map(typical_tokens, self._texts)) + (self.files.typical if self.files else 0)

    @property
    def bound(self) -> int:
        return sum(map(token_upper_bound, self._texts)) + (self.files.bound if self.files else 0)

    @property
    def _texts(self) -> tuple[str, ...]:
        return (self.text, self.remembered) if self.remembered else (self.text,)


def build(run: Run, *, within: int | None = None, with_files: bool = False) -> Prompt:
    """Return the prompt of a run: system prompt with the project's instructions, then as many of the newest
    messages as fit.

    The message to be answered is always included. The prompt is built from the tree alone, so that
    no message is in it twice. `within` is a lower limit of its `size`, for a provider that counts more
    tokens than this module or has a smaller window. `with_files` reads the contents of attachments, which only
    the worker needs: a quote counts their tokens.
    """
    model = run.model
    longest_reply = Quirks.of(model.quirks).lower(model.max_output_tokens)
    system = joined(run.assistant.system_prompt, run.instructions)
    asking = GO_ON if run.prefix and not continues(run) else ""
    window = _fill(run, (system, run.prefix, asking), within)
    turns, used = window.turns, window.used
    is_single = len(turns) == 1
    if system:
        turns.append(Turn("system", system))
    turns.reverse()
    free = model.context_tokens - used
    cap = min(longest_reply, run.max_tokens or longest_reply)
    if run.prefix:
        # The model continues this text; the part that this run has made counts against the cap.
        turns.append(Turn("assistant", run.prefix))
        cap = max(SMALLEST_REPLY, cap - typical_tokens(run.prefix[run.continued :]))
        if asking:
            turns.append(Turn("user", asking))
    upper_bound = TEMPLATE_TOKENS + sum(turn.bound for turn in turns)
    if run.prefix and run.price is not None and run.most:
        # The prefix is input now, which may cost more than the output that the cap was lowered by.
        affordable = pricing.affordable(
            run.price, prompt_tokens=upper_bound, credits=run.most, fee=run.fee
        )
        cap = min(cap, max(SMALLEST_REPLY, affordable))
    return Prompt(
        messages=_messages(turns, with_files=with_files),
        tokens=sum(turn.typical for turn in turns),
        token_upper_bound=upper_bound,
        max_tokens=min(cap, max(SMALLEST_REPLY, free)),
        size=used,
        is_single=is_single,
        is_untrusted=window.is_untrusted,
    )


@dataclass(frozen=True, slots=True)
class Window:
    """The messages that fit into the context window of a run's model, newest first.

    `used` of the `room` tokens for a prompt are taken. `first` is the oldest message that fits, if others are
    left out; None if the whole conversation fits.
    """

    turns: list[Turn]
    used: int
    room: int
    first: UUID | str | None
    is_untrusted: bool = False


def window(
    conversation: Conversation, model: LanguageModel, end: UUID | None, rows: list[Row]
) -> Window:
    """Return the window of a conversation's next message, still empty, to a model.

    `rows` are the messages before it, from `end` on to the first one, as the walk returns them.
    """
    sent = Message(role=Message.Role.USER, parent_id=end)
    run = Run(message=Message(parent=sent), assistant=conversation.assistant, model=model)
    run.newest = rows
    system = joined(conversation.assistant.system_prompt, instructions_of(conversation))
    return _fill(run, (system,))


def _fill(run: Run, others: Iterable[str], within: int | None = None) -> Window:
    """Take as many of the newest messages before a reply as fit beside the other texts of the prompt."""
    model = run.model
    longest_reply = Quirks.of(model.quirks).lower(model.max_output_tokens)
    budget = model.context_tokens - min(longest_reply, model.context_tokens // 2)
    if within is not None:
        budget = min(budget, within)
    turns: list[Turn] = []
    oldest: list[UUID | str | None] = []  # of each turn
    is_cut = is_untrusted = False
    files = content.Room()
    used = sum(count_tokens(text) for text in others if text)
    for role, text, attached, message_id in _turns(run):
        if role == Message.Role.ASSISTANT:
            turn = Turn(role, text, remembered=_remembered(attached) if attached else "")
        else:
            turn = Turn(role, text, Files.of(model, attached, files) if attached else None)
        cost = turn.counted
        if turns and used + cost > budget:
            is_cut = True
            break
        used += cost
        turns.append(turn)
        is_untrusted = is_untrusted or _is_untrusted(attached)
        oldest.append(message_id)
    if len(turns) > 1 and turns[-1].role == Message.Role.ASSISTANT:
        # Many chat templates insist that the user begins.
        used -= turns.pop().counted
        is_cut = True
    return Window(
        turns, used, budget, oldest[len(turns) - 1] if is_cut and turns else None, is_untrusted
    )


def _is_untrusted(attached: list[dict[str, Any]]) -> bool:
    """Return whether attachments, or remembered results of tools, may have texts of others than the user."""
    return any(one.get("untrusted", "tool" not in one) for one in attached)


def _remembered(calls: list[dict[str, Any]]) -> str:
    """Return the calls that an earlier reply made, with the beginnings of their results, for the model.

    A text, as not every model and server takes the messages of calls in a prompt without tools.
    """
    lines = [
        f"- {one['tool']}({one['arguments']}): {one['memory']}" for one in calls if "tool" in one
    ]
    if not lines:
        return ""
    return "\n".join(
        ("(Results of tools that this reply used, as data and shortened:", *lines, ")")
    )


def joined(*instructions: str | None) -> str:
    """Return the instructions of assistant, project and conversation as one text, without empty ones.

    Many chat templates take a single system message.
    """
    texts = [text.strip() for text in instructions if text]
    return "\n\n".join(filter(None, texts))


def instructions_of(conversation: Conversation) -> str:
    """Return the instructions of a conversation's project and its own."""
    project = conversation.project
    return joined(project.instructions if project else "", conversation.system_prompt)


def with_notes(
    instructions: Iterable[str | None], found: Iterable[str] | None, model: LanguageModel
) -> str:
    """Return the instructions of project and conversation with the notes about the user, for a model."""
    return joined(*instructions, notes.in_prompt(found, model.context_tokens))


def _messages(turns: Iterable[Turn], *, with_files: bool) -> list[dict[str, Any]]:
    rows = content.rows_of([one.files for one in turns if one.files]) if with_files else {}
    return [
        {
            "role": one.role,
            "content": one.files.content(one.text, rows)
            if one.files and with_files
            else f"{one.remembered}\n\n{one.text}"
            if one.remembered
            else one.text,
        }
        for one in turns
    ]


def build_each(run: Run, models: Iterable[LanguageModel]) -> dict[int, Prompt]:
    """Return the prompts of a made-up run, by the keys of the models that it could have; one query.

    Neither the reply nor the message that it answers is stored. At most LONGEST_PATH messages are read.
    """
    asked = run.message.parent
    assert asked is not None
    if asked.parent_id is not None:
        rows = prepared.all(WHOLE_PATH, [asked.parent_id])
        run.newest = [*rows[:-1], (*rows[-1][:3], None)]  # the walk ends with them
    of_sizes: dict[tuple[object, ...], Prompt] = {}
    found: dict[int, Prompt] = {}
    for run.model in models:
        model = run.model
        longest_reply = Quirks.of(model.quirks).lower(model.max_output_tokens)
        sizes = (model.context_tokens, longest_reply, model.vision, model.image_tokens)
        if sizes not in of_sizes:
            of_sizes[sizes] = build(run)
        found[model.pk] = of_sizes[sizes]
    return found


def continues(run: Run) -> bool:
    """Return whether the model of a run continues a partial reply at the end of its prompt."""
    return bool(run.model.continuation) and Quirks.of(run.model.quirks).continues


def _turns(run: Run) -> Iterator[tuple[str, str, list[dict[str, Any]], UUID | str | None]]:
    """Yield role, text, attachments and id of the messages before the reply, newest first.

    Replies without text are left out, and adjacent messages of one role are then joined: many chat
    templates insist that the roles alternate. The id is then that of the oldest.
    """
    # A model must not read its own thoughts again. Replies of today have none in their text.
    ancestors = (
        (role, split_thoughts(text)[0], None, message_id)
        if role == "assistant" and any(part in text for part in PARTS_OF_CLOSINGS)
        else (role, text, attached, message_id)
        for role, text, attached, message_id in _ancestors(run)
    )
    messages = (message for message in ancestors if message[1].strip() or message[2])
    for role, adjacent in groupby(messages, key=itemgetter(0)):
        found = list(adjacent)[::-1]
        texts = "\n\n".join(text for _, text, _, _ in found if text.strip())
        files = chain.from_iterable(attached or () for _, _, attached, _ in found)
        yield role, texts, list(files), found[0][3]


def _ancestors(
    run: Run,
) -> Iterator[tuple[str, str, list[dict[str, Any]] | None, UUID | str | None]]:
    """Yield role, text, attachments and id of the messages before the reply, reading chunks only as needed.

    Neither the reply nor the message that it answers need be stored: they may be about to be, or be
    made up for an estimate. The walk begins at a stored reply itself, which has no text yet.
    """
    message_id: UUID | str | None = run.message_id
    reply: Message | None = run._state.fields_cache.get("message")
    if reply is not None and reply._state.adding:
        message_id = reply.parent_id
        asked: Message | None = reply._state.fields_cache.get("parent")
        if asked is not None and asked._state.adding:
            yield asked.role, asked.text, asked.attached, None
            message_id = asked.parent_id
    found = run.newest
    while message_id is not None:
        for role, text, attached, parent_id in found or prepared.all(NEXT_CHUNK, [message_id]):
            yield role, text, attached, message_id
            message_id = parent_id
        found = None
