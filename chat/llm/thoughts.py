"""Separates thoughts from text, for models whose server leaves them in the text as tags.

- `<think>plan</think>Answer`: thoughts at the beginning of a reply;
- `plan</think>Answer`: the opening tag was a part of the prompt. The thoughts are published as text
  before the tag comes; `TextIsReasoning` then reclassifies them;
- `<|START_RESPONSE|>Answer<|END_RESPONSE|>`: the marks around an answer are dropped;
- "Write `<think>` first": text, in the middle of a reply or in code.

The scanner costs nothing per token after the beginning of a reply, as long as no first character of a
tag comes: its caller passes such text by (`is_plain`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto
from typing import TypeAlias

import msgspec

from chat.llm.decoder import ReasoningDelta, TextDelta

# Tags like <think>, which may have attributes; matched without regard to case, as all tags are.
NAMES = (
    *("think", "thinking", "thought", "thoughts", "reasoning"),
    *("seed:think", "antthinking", "thought_process"),
)
NAME = "|".join(NAMES)
TAG = re.compile(rf"<({NAME})(?:\s[^<>]{{0,200}})?>", re.IGNORECASE)
TAG_BEGUN = re.compile(rf"<(?:{NAME})\s[^<>]{{0,200}}|</(?:{NAME})\s{{1,9}}", re.IGNORECASE)

# Other openings of thoughts and their closings.
MARKS = {
    "[think]": "[/think]",  # Magistral
    "◁think▷": "◁/think▷",  # Kimi
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|start_thinking|>": "<|end_thinking|>",  # Cohere
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "<|think|>": "<|/think|>",
    "<|channel>": "<channel|>",  # Gemma
    "<|channel>thought": "<channel|>",
    "<|channel|>analysis<|message|>": "<|end|>",  # gpt-oss, in the format "harmony"
    "<|start|>assistant<|channel|>analysis<|message|>": "<|end|>",
}
# Marks around the answer, which are no part of it.
ANSWERS = {
    "<|begin_of_solution|>": "<|end_of_solution|>",
    "<|start_response|>": "<|end_response|>",
    "<|channel|>final<|message|>": "<|return|>",
    "<|start|>assistant<|channel|>final<|message|>": "<|return|>",
}
# The same after thoughts; without them these are text.
ANSWERS_AFTER_THOUGHTS = ANSWERS | {"<answer>": "</answer>", "<response>": "</response>"}
# Closings that may come without an opening.
LONE = (
    *("[/think]", "◁/think▷", "<|end_of_thought|>", "<|end_thinking|>", "<|inner_suffix|>"),
    *("<|/think|>", "<channel|>", "<|end|><|start|>assistant"),
)
CLOSING = re.compile(rf"</({NAME})\s{{0,9}}>|{'|'.join(map(re.escape, LONE))}", re.IGNORECASE)
OPENINGS = (*(f"<{name}>" for name in NAMES), *MARKS)
CLOSINGS = (*(f"</{name}>" for name in NAMES), *LONE)
FIRST_CHARACTERS = "<[◁"  # of all tags
LONGEST_TAG = 250  # characters
# One of these is in each closing.
PARTS_OF_CLOSINGS = ("</", "[/", "◁/", "|>")
BLOCK_GAP = "\n\n"  # between two blocks of thoughts
FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)


class TextIsReasoning(msgspec.Struct, frozen=True):
    """All text of the reply so far was reasoning."""


Piece: TypeAlias = TextDelta | ReasoningDelta | TextIsReasoning


class State(Enum):
    BEGINNING = auto()  # nothing but white space, or thoughts, has come
    THINKING = auto()  # within tags
    TEXT = auto()  # a lone closing tag may still come
    ANSWER = auto()  # the mark of its end may still come
    ENDED = auto()  # all that comes is text


class ThoughtScanner:
    """Reads the text of a reply piece by piece; `is_continued` if it goes on from an earlier text."""

    def __init__(self, *, is_continued: bool) -> None:
        self._state = State.TEXT if is_continued else State.BEGINNING
        self._held = ""  # not returned yet: the next characters decide
        self._opening = self._closing = re.compile("")
        self._tags: tuple[str, ...] = ()  # the opening and closing tags of this block
        self._answer_end, self._end_of_answer = "", re.compile("")
        self._is_answer_empty = True
        self._nested = 0  # openings within thoughts whose closing has not come
        self._has_thoughts = False
        self._is_block_empty = True
        self._gap = ""  # before the next block of thoughts
        self.is_plain = is_continued  # text without FIRST_CHARACTERS need not be scanned

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
        is_text = self._state is State.TEXT or (
            self._state is State.ANSWER and not self._is_answer_empty
        )
        self.is_plain = is_text and not self._held
        return pieces

    def release(self) -> list[Piece]:
        """Return the pieces that were held back; call it when the reply has ended."""
        held, self._held = self._held, ""
        self.is_plain = self._state in {State.TEXT, State.ANSWER}
        if self._state is State.BEGINNING and self._has_thoughts:
            held = held.lstrip()
        if self._state is State.TEXT and CLOSING.fullmatch(held):
            return [TextIsReasoning()]
        if self._state is State.ANSWER:
            held = self._end_of_answer.sub("", held)
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
            case State.ANSWER:
                return self._answer(pieces)
            case State.ENDED:
                pieces.append(TextDelta(self._held))
                self._held = ""
                return False

    def _begin(self) -> bool:
        text = self._held.lstrip()
        lower = text[:LONGEST_TAG].lower()
        answers = ANSWERS_AFTER_THOUGHTS if self._has_thoughts else ANSWERS
        closings = CLOSINGS if self._has_thoughts else ()
        if not text or is_begun(lower, (*OPENINGS, *answers, *closings)):
            return False
        if (tag := TAG.match(text)) is not None:
            name = tag[1].lower()
            opening, closing = rf"<{name}(?:\s[^<>]{{0,200}})?>", rf"</{name}\s{{0,9}}>"
            self._open(text[tag.end() :], opening, closing, (f"<{name}>", f"</{name}>"))
            return True
        found = max(filter(lower.startswith, MARKS), key=len, default="")
        if found:
            closing = MARKS[found]
            self._open(text[len(found) :], re.escape(found), re.escape(closing), (found, closing))
            return True
        found = next(filter(lower.startswith, answers), "")
        if found:
            self._state, self._held = State.ANSWER, text[len(found) :]
            self._answer_end = answers[found]
            self._end_of_answer = re.compile(rf"{re.escape(self._answer_end)}\s*$", re.IGNORECASE)
            return True
        if self._has_thoughts and (closed := CLOSING.match(text)) is not None:
            self._held = text[closed.end() :]  # twice, or of a nested block
            self._nested = max(0, self._nested - 1)
            return True
        if self._has_thoughts:
            self._state, self._held = State.TEXT if self._nested else State.ENDED, text
        else:
            self._state = State.TEXT
        return True

    def _open(self, text: str, opening: str, closing: str, tags: tuple[str, ...]) -> None:
        """Begin a block of thoughts, of which `text` is the beginning."""
        self._state, self._held, self._tags = State.THINKING, text, tags
        self._opening = re.compile(opening, re.IGNORECASE)
        self._closing = re.compile(closing, re.IGNORECASE)
        self._has_thoughts = self._is_block_empty = True

    def _think(self, pieces: list[Piece]) -> bool:
        closing = self._closing.search(self._held)
        if closing is None:
            end = after = len(self._held) - len(beginning_of(self._tags, self._held))
        else:
            end, after = closing.span()
        thoughts, self._held = self._held[:end], self._held[after:]
        self._nested += len(self._opening.findall(thoughts))
        if self._is_block_empty:
            thoughts = thoughts.lstrip()
        if thoughts:
            pieces.append(self._thought(thoughts))
        if closing is not None:
            self._state = State.BEGINNING
        return closing is not None

    def _answer(self, pieces: list[Piece]) -> bool:
        """Return the answer but for its end, which may be the mark of it."""
        if self._is_answer_empty:
            self._held = self._held.lstrip()
        found = self._end_of_answer.search(self._held)
        if found is not None:
            end = found.start()
        else:
            end = len(self._held) - len(beginning_of((self._answer_end,), self._held))
        self._is_answer_empty = self._is_answer_empty and not end
        self._return_text(end, pieces)
        return False

    def _thought(self, text: str) -> ReasoningDelta:
        if self._is_block_empty:
            self._is_block_empty = False
            text, self._gap = self._gap + text, BLOCK_GAP
        return ReasoningDelta(text)

    def _watch(self, pieces: list[Piece], before: Callable[[], str]) -> bool:
        found = CLOSING.search(self._held)
        if found is None:
            end = len(self._held) - len(beginning_of(CLOSINGS, self._held))
            self._return_text(end, pieces)
            return False
        self._return_text(found.start(), pieces)
        tag, following = found[0], self._held[len(found[0]) : len(found[0]) + 1]
        so_far = before() + "".join(p.text for p in pieces if isinstance(p, TextDelta))
        if TAG.search(so_far) or any(mark in so_far.lower() for mark in MARKS):
            self._state = State.ENDED
            return True
        is_lone = ends_thoughts(so_far, following)
        if is_lone is None:
            return False
        if is_lone:
            pieces.append(TextIsReasoning())
            self._state, self._has_thoughts, self._gap = State.BEGINNING, True, BLOCK_GAP
            self._nested = max(0, self._nested - 1)
            self._held = self._held[len(tag) :]
        else:
            self._return_text(len(tag), pieces)
        return True

    def _return_text(self, end: int, pieces: list[Piece]) -> None:
        if end:
            pieces.append(TextDelta(self._held[:end]))
            self._held = self._held[end:]


def is_begun(text: str, tags: tuple[str, ...]) -> bool:
    """Return whether text in lower case is the beginning of a tag, which is longer."""
    if any(tag.startswith(text) and tag != text for tag in tags):
        return True
    return TAG_BEGUN.fullmatch(text) is not None


def beginning_of(tags: tuple[str, ...], text: str) -> str:
    """Return the end of `text` that may be the beginning of one of the tags; empty if none."""
    for at in range(max(0, len(text) - LONGEST_TAG), len(text)):
        if text[at] in FIRST_CHARACTERS and is_begun(text[at:].lower(), tags):
            return text[at:]
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
