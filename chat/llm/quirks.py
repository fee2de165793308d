"""Quirks of a model's server: the parts of a request that it refuses, and the form it takes instead.

`LanguageModel.quirks` stores them as JSON, one entry for each subject:

    {"temperature": {"value": "left out", "learned": "2026-11-30T03:12:00+00:00"}}

A worker adds an entry after a request that was adapted to a refusal had succeeded (llm/request.py);
staff read and edit them as lines, "temperature: left out". The vocabulary is below: no other subject
or value is stored, and an entry that this release does not know is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CAP = "cap"
INSTRUCTIONS = "instructions"
LONGEST_REPLY = "longest reply"
CONTINUATION = "continuation"

LEFT_OUT = "left out"

CAP_FIELDS = ("max_tokens", "max_completion_tokens")
SYSTEM, DEVELOPER, FIRST_USER_MESSAGE = "system message", "developer message", "first user message"
FORMS_OF_INSTRUCTIONS = (SYSTEM, DEVELOPER, FIRST_USER_MESSAGE)

SHORTEST_REPLY = 16  # tokens
FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
# Without these there is no request, or its cost has no bound.
NEVER_LEFT_OUT = frozenset(("model", "messages", *CAP_FIELDS))
MOST = 50  # entries of a model
# Subjects of a server alone: no role and no field of a request brings them about.
OF_THE_SERVER = frozenset((CAP, LONGEST_REPLY))

VOCABULARY = (
    f"Write one for each line: {CAP}: {' or '.join(CAP_FIELDS)}; "
    f"{INSTRUCTIONS}: {', '.join(FORMS_OF_INSTRUCTIONS[:-1])} or {FORMS_OF_INSTRUCTIONS[-1]}; "
    f"{LONGEST_REPLY}: a number of tokens; {CONTINUATION}: {LEFT_OUT}; "
    f"or a field of the request, such as temperature: {LEFT_OUT}."
)


@dataclass(frozen=True, slots=True)
class Quirks:
    """The quirks of one model.

    `cap` is the field for the reply's cap, empty for the one that the server usually takes.
    `longest_reply` is the highest cap in tokens, 0 without one. `left_out` are fields that are not
    sent. `continues` is False if the server refused to continue a partial reply.
    """

    cap: str = ""
    instructions: str = SYSTEM
    longest_reply: int = 0
    continues: bool = True
    left_out: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, stored: Mapping[str, Any], learned: Mapping[str, str] | None = None) -> Quirks:
        """Return the quirks of a model's row, and those learned since as subjects and values.

        Entries that are not in the vocabulary are ignored.
        """
        if not stored and not learned:
            return NONE
        values = {
            subject: one["value"] for subject, one in stored.items() if is_known(subject, one)
        }
        values |= learned or {}
        return cls(
            cap=values.pop(CAP, ""),
            instructions=values.pop(INSTRUCTIONS, SYSTEM),
            longest_reply=int(values.pop(LONGEST_REPLY, 0)),
            continues=values.pop(CONTINUATION, "") != LEFT_OUT,
            left_out=frozenset(values),
        )

    def lower(self, cap: int) -> int:
        """Return a cap in tokens, or the longest reply of the model if that is lower."""
        return min(cap, self.longest_reply) if self.longest_reply else cap


NONE = Quirks()


def is_known(subject: str, entry: Any) -> bool:
    """Return whether a stored entry is in the vocabulary."""
    return isinstance(entry, Mapping) and is_valid(subject, entry.get("value"))


def is_valid(subject: str, value: Any) -> bool:
    """Return whether the vocabulary has this value for this subject."""
    if not isinstance(value, str):
        return False
    if subject == CAP:
        return value in CAP_FIELDS
    if subject == INSTRUCTIONS:
        return value in FORMS_OF_INSTRUCTIONS
    if subject == LONGEST_REPLY:
        return value.isascii() and value.isdecimal() and SHORTEST_REPLY <= int(value[:10]) < 10**9
    if value != LEFT_OUT:
        return False
    return bool(FIELD.fullmatch(subject)) and subject not in NEVER_LEFT_OUT


def parse_line(line: str) -> tuple[str, str]:
    """Return subject and value of a line of staff's. Raises ValueError with a sentence."""
    subject, colon, value = (part.strip() for part in line.partition(":"))
    if not colon or not is_valid(subject, value):
        raise ValueError(f"“{line.strip()[:80]}” is not a quirk. {VOCABULARY}")
    return subject, value


def entry(value: str, learned: str) -> dict[str, str]:
    """Return the stored form of a value; `learned` is an ISO 8601 time."""
    return {"value": value, "learned": learned}
