"""The prompt of a run: the path through the conversation's tree, cut to the context window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from chat.llm.tokens import count_tokens, token_upper_bound, typical_tokens
from chat.models import Message, Run
from chatproject.lib import rows

CHUNK = 50  # messages of one walk for a prompt; most need no second

# Walks from a message up to the root, the newest first, with what a prompt needs of each.
TEXTS = """
WITH RECURSIVE path AS (
    SELECT id, parent_id, role, text, 0 AS depth FROM chat_message WHERE id = {first}
    UNION ALL
    SELECT m.id, m.parent_id, m.role, m.text, path.depth + 1
    FROM chat_message m JOIN path ON m.id = path.parent_id
    WHERE path.depth + 1 < {chunk}
)
"""
TEXTS_SQL = f"""
{TEXTS.format(first="%s", chunk=CHUNK)}
SELECT role, text, parent_id FROM path ORDER BY depth
"""  # noqa: S608 # of names alone

# The first walk for the reply of `run`, a row of the statement that this is a part of.
NEWEST = f"""
({TEXTS.format(first="run.message_id", chunk=CHUNK)}
  SELECT json_agg(json_build_array(role, text, parent_id) ORDER BY depth) FROM path)
"""  # noqa: S608 # of names alone

SMALLEST_REPLY = 16  # tokens


@dataclass(frozen=True, slots=True)
class Prompt:
    """What goes to the model.

    `tokens` is the estimate of its size, `token_upper_bound` a bound that it hardly exceeds, `max_tokens` the
    reply's cap.
    """

    messages: list[dict[str, str]]
    tokens: int
    token_upper_bound: int
    max_tokens: int


def build(run: Run, *, shrink: float = 1.0) -> Prompt:
    """The prompt of a run: system prompt, then as many of the newest messages as the window holds.

    The message that is answered is always in it. Built from the tree alone, so that nothing is in
    it twice. `shrink` below 1 leaves more of the window free, for a provider that counts more
    tokens than we do.
    """
    model = run.model
    reply_tokens = min(model.max_output_tokens, model.context_tokens // 2)
    budget = int((model.context_tokens - reply_tokens) * shrink)
    turns: list[dict[str, str]] = []
    system = run.assistant.system_prompt.strip()
    used = count_tokens(system) if system else 0
    if run.prefix:
        used += count_tokens(run.prefix)
    for role, text in _turns(run):
        cost = count_tokens(text)
        if turns and used + cost > budget:
            break
        used += cost
        turns.append({"role": role, "content": text})
    if system:
        turns.append({"role": "system", "content": system})
    turns.reverse()
    room = model.context_tokens - used
    cap = min(model.max_output_tokens, run.max_tokens or model.max_output_tokens)
    if run.prefix:
        # The reply has begun: the model goes on from there, and the cap counts what there is.
        turns.append({"role": "assistant", "content": run.prefix})
        cap = max(SMALLEST_REPLY, cap - typical_tokens(run.prefix))
    texts = [turn["content"] for turn in turns]
    return Prompt(
        messages=turns,
        tokens=sum(map(typical_tokens, texts)),
        token_upper_bound=sum(map(token_upper_bound, texts)),
        max_tokens=min(cap, max(SMALLEST_REPLY, room)),
    )


def _turns(run: Run) -> Iterator[tuple[str, str]]:
    """Role and text of what precedes the reply, newest first.

    Replies without text are left out, and what then stands side by side from the same role is
    joined: many chat templates insist that the roles alternate.
    """
    joined: tuple[str, str] | None = None
    for role, text in _ancestors(run):
        if not text.strip():
            continue
        if joined is None:
            joined = (role, text)
        elif joined[0] == role:
            joined = (role, f"{text}\n\n{joined[1]}")
        else:
            yield joined
            joined = (role, text)
    if joined is not None:
        yield joined


def _ancestors(run: Run) -> Iterator[tuple[str, str]]:
    """Role and text of the messages before a reply, read no further than they are asked for.

    Neither the reply nor the one that it answers need be stored yet: then they are about to be, or
    only imagined. The walk begins at a stored reply itself, which has no text yet.
    """
    message_id: UUID | str | None = run.message_id
    reply: Message | None = run._state.fields_cache.get("message")
    if reply is not None and reply._state.adding:
        message_id = reply.parent_id
        asked: Message | None = reply._state.fields_cache.get("parent")
        if asked is not None and asked._state.adding:
            yield asked.role, asked.text
            message_id = asked.parent_id
    found = run.newest
    while message_id is not None:
        for role, text, parent_id in found or rows.all(TEXTS_SQL, [message_id]):
            yield role, text
            message_id = parent_id
        found = None
