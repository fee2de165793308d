"""Separates thoughts from text, for models whose server leaves them in the text as tags.

- `<think>plan</think>Answer`: thoughts at the beginning of a reply;
- `plan</think>Answer`: the opening tag was a part of the prompt. The thoughts are published as text
  before the tag comes; `TextIsReasoning` then reclassifies them;
- "Write `<think>` first": text, in the middle of a reply or in code.

The scanner costs nothing per token after the beginning of a reply, as long as no "<" comes: its
caller passes such text by (`is_plain`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto
from typing import TypeAlias

import msgspec

from chat.llm.decoder import ReasoningDelta, TextDelta

NAMES = ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think")
CLOSINGS = {f"<{name}>": f"</{name}>" for name in NAMES} | {
    "[think]": "[/think]",  # Magistral
    "◁think▷": "◁/think▷",  # Kimi
    "<|begin_of_thought|>": "<|end_of_thought|>",
    # gpt-oss, in the format "harmony"
    "<|channel|>analysis<|message|>": "<|end|><|start|>assistant<|channel|>final<|message|>",
}
OPENING = re.compile(f"<({'|'.join(NAMES)})>", re.IGNORECASE)
CLOSING = re.compile(f"</({'|'.join(NAMES)})>", re.IGNORECASE)
LONE_CLOSINGS = tuple(f"</{name}>" for name in NAMES)
BLOCK_GAP = "\n\n"  # between two blocks of thoughts
FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)


class TextIsReasoning(msgspec.Struct, frozen=True):
    """All text of the reply so far was reasoning."""


Piece: TypeAlias = TextDelta | ReasoningDelta | TextIsReasoning


class State(Enum):
    BEGINNING = auto()  # nothing but white space, or thoughts, has come
    THINKING = auto()  # within tags
    TEXT = auto()  # a lone closing tag may still come
    ENDED = auto()  # all that comes is text


class ThoughtScanner:
    """Reads the text of a reply piece by piece; `is_continued` if it goes on from an earlier text."""

    def __init__(self, *, is_continued: bool) -> None:
        self._state = State.TEXT if is_continued else State.BEGINNING
        self._held = ""  # not returned yet: the next characters decide
        self._closing = re.compile("")
        self._closing_tag = ""
        self._has_thoughts = False
        self._is_block_empty = True
        self._gap = ""  # before the next block of thoughts
        self.is_plain = is_continued  # text without a "<" need not be scanned

    @property
    def has_ended(self) -> bool:
        """Whether no text needs to be scanned any longer."""
        return self._state is State.ENDED

    @property
    def has_tags(self) -> bool:
        """Whether thoughts were found in tags."""
        return self._has_thoughts

    def feed(self, text: str, before: Callable[[], str]) -> list[Piece]:
        """Return the pieces of the reply that this text completes.

        `before` returns the text of the reply as far as earlier calls have returned it.
        """
        pieces: list[Piece] = []
        self._held += text
        while self._step(pieces, before):
            pass
        self.is_plain = self._state is State.TEXT and not self._held
        return pieces

    def release(self) -> list[Piece]:
        """Return the pieces that were held back; call it when the reply has ended."""
        held, self._held = self._held, ""
        self.is_plain = self._state is State.TEXT
        if self._state is State.BEGINNING and self._has_thoughts:
            held = held.lstrip()
        if self._state is State.TEXT and CLOSING.fullmatch(held):
            return [TextIsReasoning()]
        if not held:
            return []
        return [self._thought(held) if self._state is State.THINKING else TextDelta(held)]

    def _step(self, pieces: list[Piece], before: Callable[[], str]) -> bool:
        """Take one step; returns whether another one may follow."""
        if not self._held:
            return False
        match self._state:
            case State.BEGINNING:
                return self._begin()
            case State.THINKING:
                return self._think(pieces)
            case State.TEXT:
                return self._watch(pieces, before)
            case State.ENDED:
                pieces.append(TextDelta(self._held))
                self._held = ""
                return False

    def _begin(self) -> bool:
        text = self._held.lstrip()
        lower = text[:40].lower()
        for opening, closing in CLOSINGS.items():
            if lower.startswith(opening):
                self._state, self._closing_tag = State.THINKING, closing
                self._closing = re.compile(re.escape(closing), re.IGNORECASE)
                self._has_thoughts = self._is_block_empty = True
                self._held = text[len(opening) :]
                return True
        if not text or any(opening.startswith(lower) for opening in CLOSINGS):
            return False
        if self._has_thoughts:
            self._state, self._held = State.ENDED, text
        else:
            self._state = State.TEXT
        return True

    def _think(self, pieces: list[Piece]) -> bool:
        closing = self._closing.search(self._held)
        if closing is None:
            end = after = len(self._held) - len(beginning_of((self._closing_tag,), self._held))
        else:
            end, after = closing.span()
        thoughts, self._held = self._held[:end], self._held[after:]
        if self._is_block_empty:
            thoughts = thoughts.lstrip()
        if thoughts:
            pieces.append(self._thought(thoughts))
        if closing is not None:
            self._state = State.BEGINNING
        return closing is not None

    def _thought(self, text: str) -> ReasoningDelta:
        if self._is_block_empty:
            self._is_block_empty = False
            text, self._gap = self._gap + text, BLOCK_GAP
        return ReasoningDelta(text)

    def _watch(self, pieces: list[Piece], before: Callable[[], str]) -> bool:
        found = CLOSING.search(self._held)
        if found is None:
            end = len(self._held) - len(beginning_of(LONE_CLOSINGS, self._held))
            self._return_text(end, pieces)
            return False
        self._return_text(found.start(), pieces)
        tag, following = found[0], self._held[len(found[0]) : len(found[0]) + 1]
        so_far = before() + "".join(p.text for p in pieces if isinstance(p, TextDelta))
        if OPENING.search(so_far):
            self._state = State.ENDED
            return True
        is_lone = ends_thoughts(so_far, following)
        if is_lone is None:
            return False
        if is_lone:
            pieces.append(TextIsReasoning())
            self._state, self._has_thoughts, self._gap = State.BEGINNING, True, BLOCK_GAP
            self._held = self._held[len(tag) :]
        else:
            self._return_text(len(tag), pieces)
        return True

    def _return_text(self, end: int, pieces: list[Piece]) -> None:
        if end:
            pieces.append(TextDelta(self._held[:end]))
            self._held = self._held[end:]


def beginning_of(tags: tuple[str, ...], text: str) -> str:
    """Return the end of `text` that may be the beginning of one of the tags; empty if none."""
    first, longest = tags[0][0], max(map(len, tags))
    at = text.find(first, max(0, len(text) - longest + 1))
    while at >= 0:
        tail = text[at:].lower()
        if any(tag.startswith(tail) for tag in tags):
            return text[at:]
        at = text.find(first, at + 1)
    return ""


def ends_thoughts(before: str, following: str) -> bool | None:
    """Return whether a closing tag without an opening one ends thoughts, or is only mentioned.

    It is mentioned in code, after a quotation mark, and between words. None if the next character
    decides and `following` is still empty.
    """
    if len(FENCE.findall(before)) % 2:
        return False
    line = before[before.rfind("\n") + 1 :]
    if line.count("`") % 2 or line.endswith(("`", '"', "'", "(", "“", "«")):
        return False
    if not line.strip() or not line[-1].isspace():
        return True
    if not following:
        return None
    return following in "\r\n" or not (following.isspace() or following in ",.;:!?)")


def split_thoughts(text: str) -> tuple[str, str]:
    """Return the text and the thoughts of a whole reply."""
    texts: list[str] = []
    thoughts: list[str] = []
    scanner = ThoughtScanner(is_continued=False)
    for piece in [*scanner.feed(text, str), *scanner.release()]:
        if isinstance(piece, TextDelta):
            texts.append(piece.text)
        elif isinstance(piece, ReasoningDelta):
            thoughts.append(piece.text)
        else:
            thoughts += texts
            texts = []
    return "".join(texts), "".join(thoughts).strip()
