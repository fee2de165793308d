"""The body of a request, and its other forms for servers that refuse a part of it.

Servers with OpenAI's API differ in the fields and roles that they take, and no list of servers stays
right. So a request is sent in the usual form, and the part that a refusal names (llm/refusals.py) is
sent in another form, each once: `AdaptedRequest.adapt` changes the next body. The form that was accepted
is stored for the model (llm/quirks.py), whose next requests begin with it.

| the refusal names | the next request has |
|---|---|
| the field of the cap | the other field |
| a cap that is too large | the cap that the refusal states or leaves room for; else half of it |
| the system or developer role | the role that it asks for, or the instructions in the first user message |
| any other field that was sent | no such field |

A field that was not sent, or a form that was tried, changes nothing: the refusal is final.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from chat.llm.errors import ProviderError, Refusal
from chat.llm.quirks import (
    CAP,
    CAP_FIELDS,
    DEVELOPER,
    FIRST_USER_MESSAGE,
    INSTRUCTIONS,
    LEFT_OUT,
    LONGEST_REPLY,
    NEVER_LEFT_OUT,
    NONE,
    SHORTEST_REPLY,
    SYSTEM,
    Quirks,
    is_valid,
)
from chat.llm.quotes import SHARED, texts, without

MOST_ADAPTATIONS = 8  # of one request
MOST_HALVINGS = 3  # of a cap that is refused without a number
MOST_CHARACTERS = 1_000  # of a refusal that are read

CAP_NAME = re.compile(r"max(imum)?_?(completion|output|new)?_?tokens", re.IGNORECASE)
TOKENS = re.compile(r"tokens?|max\w*length", re.IGNORECASE)
ROLES = re.compile(r"system|developer|roles? must alternate", re.IGNORECASE)
# From these words to the end of the sentence the server names the roles that it takes.
ROLES_TAKEN = re.compile(
    r"(?:\buse\b|\bexpected\b|one of|supported (?:values|roles))[^.\n]*", re.IGNORECASE
)
NOT_TAKEN = re.compile(
    r"unsupported|unrecogni[sz]ed|unknown|unexpected|invalid(?!_request)|(not|n't) (be )?(support|permit|allow|accept)"
    r"|must|only|should|range|at (most|least)|greater than|less than|between|deprecated",
    re.IGNORECASE,
)
CONTINUATION_WORDS = re.compile(
    r"prefill|\bprefix\b|continue_final_message|add_generation_prompt|ends? with a user message"
    r"|last (message|role)|final message",
    re.IGNORECASE,
)
# Fields by which a request continues a partial reply: without them the server would begin in its middle.
CONTINUATION_FIELDS = frozenset(("continue_final_message", "add_generation_prompt"))

PARTS_OF_FIELDS = {"include_usage": "stream_options"}  # also refused by the name of a part
BEFORE_A_NAME = r"(?:parameters?|params?|arguments?|fields?|propert(?:y|ies)|options?|keys?)\W{1,4}"


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A request: `messages` in OpenAI's format, `max_tokens` as the cap of the reply.

    `extra` is added to the request's body unchanged (tools, stop, reasoning_effort …), except for
    the fields that `quirks` leave out, but for those in `required`. `has_fallback`: another model will be asked if this request
    fails.
    """

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int
    temperature: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    has_fallback: bool = False
    quirks: Quirks = NONE
    required: frozenset[str] = frozenset()


class AdaptedRequest:
    """A request in the form that its server accepts, as far as refusals have shown it.

    `learned` are the quirks that the refusals of this request have shown, as subjects and values of
    llm/quirks.py: to be stored when the request has succeeded.
    """

    def __init__(self, request: CompletionRequest, cap_field: str) -> None:
        quirks = request.quirks
        self.request = request
        self.learned: dict[str, str] = {}
        self._cap = quirks.cap or cap_field
        self._max_tokens = quirks.lower(request.max_tokens)
        self._instructions = quirks.instructions
        self._left_out = set(quirks.left_out - request.required)
        self._tried = {self._cap, self._instructions}
        self._halvings = 0
        self._adaptations = 0

    def body(self) -> dict[str, Any]:
        """Return the request's body."""
        request = self.request
        body: dict[str, Any] = {
            "model": request.model,
            "messages": self._messages(),
            "stream": True,
            "stream_options": {"include_usage": True},
            self._cap: self._max_tokens,
            **request.extra,
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        for name in self._left_out:
            body.pop(name, None)
        if "stream" not in body:
            body.pop("stream_options", None)
        return body

    def _messages(self) -> list[dict[str, Any]]:
        messages = self.request.messages
        if self._instructions == SYSTEM:
            return messages
        if self._instructions == DEVELOPER:
            return [
                {**one, "role": "developer"} if one["role"] == "system" else one for one in messages
            ]
        instructions = [one["content"] for one in messages if one["role"] == "system"]
        others = [one for one in messages if one["role"] != "system"]
        if not instructions:
            return others
        if not others or others[0]["role"] != "user":
            others.insert(0, {"role": "user", "content": ""})
        first = others[0]["content"]
        if isinstance(first, str):
            content: Any = "\n\n".join(filter(None, (*instructions, first)))
        else:  # a list of parts
            content = [{"type": "text", "text": text} for text in instructions] + first
        return [{**others[0], "content": content}, *others[1:]]

    def adapt(self, error: ProviderError) -> bool:
        """Change the form of the request by a refusal; return whether there is another form to ask for.

        `error.detail` are the server's words, uncleaned. Words that they share with the request's
        messages are not the server's, which may have quoted them.
        """
        refusal = error.refusal
        if refusal is None or self._adaptations == MOST_ADAPTATIONS:
            return False
        is_adapted = False
        if refusal.reason == "cap":
            is_adapted = self._is_meant(TOKENS, error.detail) and self._lower_cap(refusal)
        elif refusal.reason in {"parameter", "request"}:
            is_adapted = self._adapt_parameter(refusal, error.detail)
        self._adaptations += is_adapted
        return is_adapted

    def _is_meant(self, name: re.Pattern[str], detail: str) -> bool:
        """Return whether a refusal names something in words of its own, or in a field for that."""
        return name.search(detail) is None or name.search(self._own_words(detail)) is not None

    def _own_words(self, detail: str) -> str:
        detail = " ".join(detail[:MOST_CHARACTERS].split())
        for text in texts(self.request.messages):
            plain = " ".join(text.split())
            if len(plain) >= SHARED:
                detail = without(detail, plain)
        return detail

    def _lower_cap(self, refusal: Refusal) -> bool:
        """Lower the cap to the allowed one, or without a usable number to half of it."""
        allowed = refusal.allowed or 0
        if SHORTEST_REPLY <= allowed < self._max_tokens:
            self._max_tokens = allowed
            if refusal.is_longest:
                self.learned[LONGEST_REPLY] = str(allowed)
            return True
        if self._halvings == MOST_HALVINGS or self._max_tokens < 2 * SHORTEST_REPLY:
            return False
        self._halvings += 1
        self._max_tokens //= 2
        self.learned.pop(LONGEST_REPLY, None)  # it was refused, too
        return True

    def _adapt_parameter(self, refusal: Refusal, detail: str) -> bool:
        name = refusal.parameter
        if name in {"system", "developer"}:
            return self._is_meant(ROLES, detail) and self._move_instructions(detail)
        if CAP_NAME.fullmatch(name):
            return self._is_meant(CAP_NAME, detail) and self._rename_cap(refusal)
        kept = NEVER_LEFT_OUT | CONTINUATION_FIELDS | self.request.required
        sent = [name for name in self.body() if name not in kept]
        if name:
            meant = [one for one in sent if re.fullmatch(names_of(one), name)]
            meant = [one for one in meant if self._is_meant(re.compile(names_of(one)), detail)]
        else:
            own = self._own_words(detail)
            places = {one: place for one in sent if (place := mention(one, own)) >= 0}
            meant = sorted(places, key=places.__getitem__) if NOT_TAKEN.search(own) else []
        if not meant or refusal.is_missing:
            return False
        self._left_out.add(meant[0])
        if is_valid(meant[0], LEFT_OUT):
            self.learned[meant[0]] = LEFT_OUT
        return True

    def _rename_cap(self, refusal: Refusal) -> bool:
        """Send the cap in the other field: the one that is missing, or in place of the refused one."""
        other = CAP_FIELDS[self._cap == CAP_FIELDS[0]]
        is_sent = refusal.parameter != other
        if other in self._tried or is_sent == refusal.is_missing:
            return False
        self._cap = other
        self._tried.add(other)
        self.learned[CAP] = other
        return True

    def _move_instructions(self, detail: str) -> bool:
        """Send the system messages in another role, or in the first user message."""
        is_sent = any(one["role"] == "system" for one in self.request.messages)
        if not is_sent or self._instructions == FIRST_USER_MESSAGE:
            return False
        taken = " ".join(ROLES_TAKEN.findall(detail)).lower()
        others = ((DEVELOPER, "developer"), (SYSTEM, "system"))
        forms = [form for form, word in others if word in taken and form not in self._tried]
        self._instructions = forms[0] if forms else FIRST_USER_MESSAGE
        self._tried.add(self._instructions)
        self.learned[INSTRUCTIONS] = self._instructions
        return True


def refuses_continuation(error: ProviderError) -> bool:
    """Return whether a refusal of a request that ends with a partial reply concerns that reply."""
    refusal = error.refusal
    if refusal is None or refusal.reason not in {"parameter", "request"}:
        return False
    named = refusal.parameter
    is_named = named in CONTINUATION_FIELDS or named == "prefix"
    return is_named or CONTINUATION_WORDS.search(error.detail) is not None


def names_of(name: str) -> str:
    """Return a pattern of the names by which servers refuse a field: also in camel case, or a part."""
    camel = re.sub(r"_(\w)", lambda found: found[1].upper(), name)
    parts = [part for part, whole in PARTS_OF_FIELDS.items() if whole == name]
    return rf"(?:{'|'.join(map(re.escape, (name, camel, *parts)))})"


def mention(name: str, words: str) -> int:
    """Return the place where words name a field; -1 if they do not.

    A field whose name is a common word counts only in quotes, or after "parameter" and the like.
    """
    names = names_of(name)
    if "_" in name or name == "temperature":
        found = re.search(rf"(?<!\w){names}(?!\w)", words)
    else:
        before, after = rf"{BEFORE_A_NAME}{names}(?!\w)", rf"(?<!\w){names} (?:is|are) (?:not|un)"
        found = re.search(rf"['\"`]{names}['\"`]|{before}|{after}", words)
    return found.start() if found else -1
