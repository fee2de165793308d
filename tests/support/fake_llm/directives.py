"""The request as the fake provider reads it: OpenAI's fields, and directives in the last message."""

from __future__ import annotations

import re
import sys
from typing import Any

import msgspec

WORDS = re.compile(r"\[\[([^\[\]]*)\]\]")
HAS_JSON = re.compile(r"\[\[[^\[\]]*\bjson=")
HAS_LENGTH = re.compile(r"\[\[[^\[\]]*\blength=")


class Directives(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All directives: `[[tokens=200 rate=0]]`. Times are in seconds, counts in tokens of the reply.

    A fault with a count happens after that many tokens of the reply, those included that a request
    to continue brought along.
    """

    # the reply
    tokens: int = 24  # cut to the request's max_tokens, and then with the finish reason "length"
    reasoning: int = 0  # reasoning tokens sent first
    tags: str = (
        ""  # send them in the text: between "whole" tags, or with the tag at their "end" alone
    )
    calls: int = 0  # after the text, so many calls of the first tool of the request
    # Calls of tools before the reply, if the request has tools: "name:arguments", by "&" those of one answer, by ";"
    # the answers. Spaces and brackets of the arguments are quoted as in addresses: calculate:{"expression":"1+1"}
    use: str = ""
    insists: bool = False  # such calls come also when the request forbids them
    said: int = 0  # tokens of text before the calls of each such answer
    sample: bool = False  # the reply is Markdown of all kinds, from sample.md
    # the reply is JSON that fits the schema of the request: "valid", "fenced" with prose around it, "wrong" without its
    # first property, "cut" in its middle, or "repair", which is wrong until the user asks again
    json: str = ""
    cite: int = 0  # the last token is the mark of this passage: " [1]"
    finish: str = "stop"  # finish_reason
    # end after that many tokens with the finish reason "length", unless asked to continue from there
    length: int = -1
    nousage: bool = False  # no usage, even though the client asked for it
    stamps: bool = False  # tokens with number and time of emission, see stamps.py
    # its speed
    headers: float = 0.0  # wait before the response headers
    first: float = 0.0  # wait before the first token, headers sent
    rate: float = 50.0  # tokens per second; 0: as fast as possible
    at_once: int = 0  # this many tokens are sent together with the first one
    ping: float = 0.0  # while the first token is not due, a keep-alive comment this often
    chunk: int = 0  # split what is sent into network writes of this many bytes
    # refusals
    status: int = 0  # answer with this HTTP status instead
    code: str = ""  # error.code of that answer
    retry_after: float = -1.0  # its Retry-After header in seconds
    retry_date: float = -1.0  # the same as a date, this many seconds from now
    echo: bool = False  # quote the message and the Authorization header in that answer
    reset: bool = False  # break the connection before the first byte instead
    only: str = ""  # the model whose requests fail or break; those for others are sound
    fail: int = -1  # only the first so many requests with the same key fail or break; -1: all
    # faults
    cut: int = -1  # close the connection
    short: int = -1  # end the body properly, but without finish_reason and [DONE]
    silent: int = -1  # keep the connection open and send nothing more
    report: int = -1  # send the usage so far, unless `nousage`
    hold: int = -1  # wait for `FakeLLM.release(key)`, then go on
    garbage: int = -1  # send something that is not JSON
    error: int = -1  # send an error object and end
    # names
    key: str = ""  # of the request, for `fail`, `hold` and the record; by default the message
    group: str = ""  # of streams that `FakeLLM.end` ends together


FAULTS = (
    "report",
    "hold",
    "garbage",
    "silent",
    "error",
    "short",
    "cut",
)  # in this order after one token
FAULTLESS: dict[str, Any] = {"status": 0, "reset": False} | dict.fromkeys(
    (fault for fault in FAULTS if fault != "hold"), -1
)


def parse_directives(text: str) -> Directives:
    """Return the directives of a message. Raises ValueError for an unknown one: a typo fails a test."""
    words = [word for found in WORDS.findall(text) for word in found.split()]
    pairs = dict(word.partition("=")[::2] for word in words)
    return msgspec.convert(pairs, Directives, strict=False)


class Request(msgspec.Struct):
    """The fields of OpenAI's request that change the reply; others are ignored."""

    messages: list[dict[str, Any]]
    model: str = "fake"
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None

    def limit(self) -> int:
        """The number of tokens that the reply may have."""
        return self.max_completion_tokens or self.max_tokens or sys.maxsize

    def asked(self) -> tuple[str, str]:
        """The user message to be answered, and the beginning of its reply that the request brought along.

        That beginning is the last message; or a message without directives follows it, which asks for the
        rest of a reply with a `length`.
        """
        roles = [message["role"] for message in self.messages]
        if roles[-1:] == ["assistant"]:
            return last_user_text(self.messages), self.messages[-1]["content"]
        if roles[-3:] == ["user", "assistant", "user"]:
            message, last = last_user_text(self.messages[:-1]), last_user_text(self.messages)
            if "[[" not in last and HAS_JSON.search(message):
                return message, ""
            if "[[" not in last and HAS_LENGTH.search(message):
                return message, self.messages[-2]["content"]
        return last_user_text(self.messages), ""


def last_user_text(messages: list[dict[str, Any]]) -> str:
    """The text of the last user message, whose content may come in parts."""
    for message in reversed(messages):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content
            return "".join(part["text"] for part in content if part["type"] == "text")
    return ""
