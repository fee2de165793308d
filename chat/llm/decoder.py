"""Decodes the bytes of a provider's stream into events.

The format is server-sent events (WHATWG HTML standard, "Server-sent events") with one JSON object
of OpenAI's chat completions in each, as providers actually send it: tests/chat/llm/streams/ has an
example of each provider, decoded at every possible split point.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from chat.llm.errors import (
    ProviderCut,
    ProviderError,
    ProviderMalformed,
    ProviderReported,
)
from chat.llm.refusals import read_error, refusal_of, seconds_to_wait

LINE_LIMIT = 1024 * 1024  # bytes of one event whose end has not arrived
TOKENS_LIMIT = 2**31 - 1  # of one reply; no real reply comes near


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """The next piece of the reply."""

    text: str


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    """The next piece of the model's reasoning, which is no part of the reply."""

    text: str


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of the tool call number `index`; `arguments` is the next piece of its JSON text.

    `id` and `name` are empty except in a call's first piece.
    """

    index: int
    id: str
    name: str
    arguments: str


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The reply is complete: `stop`, `length`, `tool_calls`, `content_filter`, or another reason.

    Occurs once at most (a mere [DONE] also ends a reply); usage may follow.
    """

    reason: str


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens as counted by the provider; a later event replaces an earlier one.

    `cached_tokens` are part of `prompt_tokens`, `reasoning_tokens` part of `completion_tokens`.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int


Event: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta | Finish | Usage


class ContentPart(msgspec.Struct):
    """A part of the content, as Mistral's reasoning models send it."""

    text: str | None = None
    thinking: list[ContentPart] | None = None


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Delta(msgspec.Struct):
    content: str | list[ContentPart] | None = None
    reasoning_content: str | None = None  # DeepSeek, llama.cpp, vLLM
    reasoning: str | None = None  # OpenRouter, Groq, Ollama, newer vLLM; some send both
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct):
    index: int | None = None
    delta: Delta | None = None  # Azure sends choices without one for its content filter
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct):
    cached_tokens: float | None = None


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: float | None = None


class UsageObject(msgspec.Struct):
    prompt_tokens: float | None = None  # some gateways write 12.0
    completion_tokens: float | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Groq(msgspec.Struct):
    usage: UsageObject | None = None
    error: str | None = None


class Chunk(msgspec.Struct):
    """The fields of a `chat.completion.chunk` that are read; msgspec skips the others."""

    choices: list[Choice] | None = None  # absent or empty in Azure's first and in usage chunks
    usage: UsageObject | None = None
    x_groq: Groq | None = None
    error: dict[str, Any] | str | None = None


decode_chunk = msgspec.json.Decoder(Chunk).decode

# msgspec.ValidationError (JSON of another shape) is a DecodeError; bad UTF-8 is not.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)

BOM = b"\xef\xbb\xbf"
IGNORED_FIELDS = (b":", b"event", b"id", b"retry")  # a line that begins with ":" is a comment


class StreamDecoder:
    """Decodes the bytes of a `text/event-stream`, however the network splits them.

    Reads server-sent events by their specification (html.spec.whatwg.org, 9.2), with extensions for
    real providers: a data line with a whole JSON object counts at once, blank line or not; `error:`
    lines report an error (older llama.cpp), and so may a line of bare JSON (proxies).

    `feed` never raises, so that the events before a fault are not lost with it: it returns them and
    sets `ended`; `close` raises.
    """

    def __init__(self) -> None:
        self.finished = False  # the reply is complete: a finish reason or [DONE] arrived
        self.ended = False  # nothing more will be read: [DONE] or a fault
        self._failure: ProviderError | None = None
        self._rest = b""  # a line whose end has not arrived
        self._after_cr = False  # the last byte was CR: an LF now belongs to it
        self._first = True
        self._pending = bytearray()  # data lines that are not yet a whole JSON object
        self._usage: Usage | None = None

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that these bytes complete."""
        events: list[Event] = []
        for line in self._lines(data):
            if self.ended:
                break
            if line:
                self._line(line, events)
            elif self._pending:
                self._blank(events)
        if len(self._rest) + len(self._pending) > LINE_LIMIT:
            self._fail(ProviderMalformed(f"an event of more than {LINE_LIMIT} bytes"))
        return events

    def close(self) -> None:
        """End the stream. Raises the fault, if any; ProviderCut when the end is missing."""
        if self._rest.strip() == b"data: [DONE]":
            self.finished = True
        if self._failure is not None:
            raise self._failure
        if not self.finished:
            raise ProviderCut("the stream ended without a finish reason and without [DONE]")

    def _lines(self, data: bytes) -> list[bytes]:
        if not data:
            return []
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines

    def _line(self, line: bytes, events: list[Event]) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(BOM)
        if line.startswith(b"data:"):
            self._data(line[5:], events)
        elif line.startswith(b"error:"):
            self._error(line[6:])
        elif line.startswith(b"{"):
            self._data(line, events)
        elif not line.startswith(IGNORED_FIELDS):
            self._fail(ProviderMalformed(f"not an event stream: {shown(line)}"))

    def _data(self, data: bytes, events: list[Event]) -> None:
        if self._pending:
            self._pending += b"\n" + data
            return
        try:
            self._chunk(decode_chunk(data), events)
        except UNREADABLE as error:
            if data.strip() == b"[DONE]":
                self.finished = self.ended = True
            elif type(error) is msgspec.DecodeError:
                # Not JSON: the first line of several, or garbage; the blank line decides.
                self._pending += data.strip()
            else:
                self._fail(ProviderMalformed(f"not a chunk: {error}: {shown(data)}"))

    def _error(self, data: bytes) -> None:
        """Handle an `error:` line of older llama.cpp: the error object itself, unwrapped."""
        try:
            self._fail(reported(msgspec.json.decode(data, type=dict[str, Any])))
        except UNREADABLE:
            self._fail(reported(data.decode(errors="replace").strip()))

    def _blank(self, events: list[Event]) -> None:
        """Handle the end of an event whose JSON took several lines."""
        data, self._pending = bytes(self._pending), bytearray()
        try:
            self._chunk(decode_chunk(data), events)
        except UNREADABLE as error:
            self._fail(ProviderMalformed(f"not a chunk: {error}: {shown(data)}"))

    def _chunk(self, chunk: Chunk, events: list[Event]) -> None:
        for choice in chunk.choices or ():
            if choice.index:
                continue  # a second choice was not requested
            if choice.delta is not None:
                self._delta(choice.delta, events)
            if choice.finish_reason == "error":
                self._fail(ProviderReported("finish_reason error"))
            elif choice.finish_reason and not self.finished:
                self.finished = True
                events.append(Finish(choice.finish_reason))
        usage = chunk.usage or (chunk.x_groq and chunk.x_groq.usage)
        if usage:
            self._count(usage, events)
        error = chunk.error or (chunk.x_groq and chunk.x_groq.error)
        if error:
            self._fail(reported(error))

    def _delta(self, delta: Delta, events: list[Event]) -> None:
        reasoning = delta.reasoning_content or delta.reasoning
        if reasoning:
            events.append(ReasoningDelta(reasoning))
        if isinstance(delta.content, str):
            if delta.content:
                events.append(TextDelta(delta.content))
        elif delta.content:
            for part in delta.content:
                events.extend(ReasoningDelta(p.text) for p in part.thinking or () if p.text)
                if part.text:
                    events.append(TextDelta(part.text))
        if delta.refusal:
            events.append(TextDelta(delta.refusal))
        if delta.tool_calls:
            self._tool_calls(delta.tool_calls, events)

    def _tool_calls(self, calls: list[ToolCall], events: list[Event]) -> None:
        for position, call in enumerate(calls):
            function = call.function or Function()
            index = position if call.index is None else call.index
            name, arguments = function.name or "", function.arguments or ""
            events.append(ToolCallDelta(index, call.id or "", name, arguments))

    def _count(self, usage: UsageObject, events: list[Event]) -> None:
        prompt = usage.prompt_tokens_details or PromptDetails()
        completion = usage.completion_tokens_details or CompletionDetails()
        counted = Usage(
            prompt_tokens=tokens(usage.prompt_tokens),
            completion_tokens=tokens(usage.completion_tokens),
            cached_tokens=tokens(prompt.cached_tokens),
            reasoning_tokens=tokens(completion.reasoning_tokens),
        )
        if counted != self._usage:  # some servers repeat it
            self._usage = counted
            events.append(counted)

    def _fail(self, failure: ProviderError) -> None:
        # An error chunk may begin with its finish reason; the error object that follows is clearer.
        if self._failure is None or isinstance(failure, ProviderReported):
            self._failure = failure
        self.ended = True


def tokens(count: float | None) -> int:
    """Return a count within the range of money arithmetic and of the database, for any input."""
    return min(max(0, int(count or 0)), TOKENS_LIMIT)


def reported(error: object) -> ProviderReported:
    """Return the error for an error object in the stream, of any shape."""
    report = read_error(error)
    detail = f"reported in the stream: {report.title} {report.message}"
    return ProviderReported(detail, refusal_of(0, report), retry_after=seconds_to_wait(report))


def shown(data: bytes) -> str:
    """Return the beginning of the data, for the log."""
    return repr(data[:100])
