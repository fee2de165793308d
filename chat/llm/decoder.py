"""Decodes the bytes of a provider's stream into events.

The format is server-sent events (WHATWG HTML standard, "Server-sent events") with one JSON object
of OpenAI's chat completions in each, as providers actually send it: tests/chat/llm/streams/ and
tests/chat/data/provider_answers.json have examples, decoded at every possible split point.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec

from chat.llm import lenient_json
from chat.llm.chunks import (
    Chunk,
    CompletionDetails,
    ContentPart,
    Delta,
    Function,
    PromptDetails,
    ToolCall,
    UsageObject,
    as_list,
    as_object,
    decode_chunk,
    lenient_chunk,
)
from chat.llm.errors import (
    ProviderCut,
    ProviderError,
    ProviderMalformed,
    ProviderReported,
    ProviderTimeout,
)
from chat.llm.refusals import is_page, read_error, refusal_of, seconds_to_wait

logger = logging.getLogger(__name__)

LINE_LIMIT = 1024 * 1024  # bytes of one event whose end has not arrived
TOKENS_LIMIT = 2**31 - 1  # of one reply; no real reply comes near
REASON_CHARACTERS = 30  # of an unknown finish reason


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
    """The provider ended the reply: `stop`, `length`, `tool_calls`, `content_filter`, or another reason.

    Usage may follow. More text may follow, too: then the reason was premature, and another one comes.
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

# msgspec.ValidationError (JSON of another shape) is a DecodeError; bad UTF-8 is not.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# Finish reasons of other APIs, in lower case, by OpenAI's word for them.
REASONS = {
    "length": (
        *("max_tokens", "max_output_tokens", "max_completion_tokens", "max_new_tokens"),
        *("max_length", "model_length", "model_context_window_exceeded", "context_length"),
        *("context_length_exceeded", "context_window_exceeded", "token_limit", "error_limit"),
        *("token_limit_reached", "length_limit", "limit", "incomplete"),
        *("max_context_length", "output_limit", "truncated", "length_capped"),
    ),
    "content_filter": (
        *("content_filtered", "contentfilter", "content-filter", "safety", "image_safety"),
        *("recitation", "blocklist", "prohibited_content", "spii", "sensitive", "blocked"),
        *("guardrail_intervened", "error_toxic", "refusal", "moderation", "filtered"),
        *("content_moderation", "model_armor", "risk_control"),
    ),
    "error": (
        *("network_error", "insufficient_system_resource", "failed", "failure"),
        *("internal_error", "server_error", "model_error", "engine_error"),
        *("unknown_error", "other_error", "overloaded"),
    ),
    "cut": (
        *("abort", "aborted", "cancel", "cancelled", "canceled", "interrupted", "interrupt"),
        *("preempted", "disconnected", "shutdown", "user_cancelled", "user_cancel"),
    ),
    "timeout": (
        *("timed_out", "time_out", "time_limit", "max_time", "deadline_exceeded"),
        *("request_timeout", "generation_timeout"),
    ),
    "stop": (
        *("eos", "eos_token", "end_turn", "stop_sequence", "complete", "completed", "normal"),
        *("stop_token", "end", "finished", "done"),
    ),
    "": ("null", "none", "undefined", "finish_reason_unspecified"),
}
FAULTS: dict[str, type[ProviderError]] = {
    "error": ProviderReported,
    "cut": ProviderCut,
    "timeout": ProviderTimeout,
}
WORDS = {other: word for word, others in REASONS.items() for other in (word, *others)}

BOM = b"\xef\xbb\xbf"
REPLACEMENT = "\ufffd"
DATA = re.compile(rb"data *:", re.IGNORECASE)  # the standard's form is in small letters
# A line of an event stream; one that begins with ":" is a comment.
FIELD = re.compile(rb"([\w-]*) *:|(?:data|event|id|retry)$")

# Fields and types of events by which other APIs than OpenAI's chat completions are known.
OTHER_APIS = (
    ("Ollama", {"done", "message"}),
    ("Ollama", {"done", "response"}),
    ("Gemini", {"candidates"}),
    ("Anthropic", {"message_start"}),
    ("Anthropic", {"content_block_delta"}),
    ("OpenAI's responses", {"response.created"}),
    ("OpenAI's responses", {"response.output_text.delta"}),
    ("llama.cpp", {"content", "stop"}),
    ("text-generation-inference", {"token", "generated_text"}),
    ("Cohere", {"message-start"}),
    ("Cohere", {"content-delta"}),
    ("Cohere", {"text-generation"}),
    ("Cloudflare", {"response", "p"}),
)
# Objects that some gateways wrap chunks in.
WRAPPERS = ("data", "result", "chunk", "response", "body", "output", "completion", "Response")

# Top-level fields of errors that are not wrapped, and codes that mean no error.
ERROR_FIELDS = ("message", "msg", "detail", "errors", "error_msg", "error_message", "errorMessage")
SUCCESSES = (0, 200, "0", "200", "ok", "success")

_passed_over: set[str] = set()  # shapes that this process has logged
SHAPES_LIMIT = 200
LONGEST_PIECE = 20  # characters of a message that may come twice as the same piece


class StreamDecoder:
    """Decodes the body of a response, however the network splits it.

    Reads server-sent events by their specification (html.spec.whatwg.org, 9.2), with extensions for
    real providers: a data line with a whole JSON object counts at once, blank line or not, as does
    `Data:`; `error:` lines report an error (older llama.cpp), and so may bare JSON (proxies, Google); a
    body of JSON is the answer of a server that does not stream. An event of another API means that the
    base URL is not the right one.

    `feed` never raises, so that the events before a fault are not lost with it: it returns them and
    sets `ended`; `close` raises. `feed(b"")` is the end of the body, at which a last line counts
    without its line end.
    """

    def __init__(self) -> None:
        self.finished = False  # [DONE], or a finish reason that no output has followed
        self.ended = False  # nothing more will be read: [DONE] or a fault
        self._failure: ProviderError | None = None
        self._rest = b""  # a line whose end has not arrived
        self._after_cr = False  # the last byte was CR: an LF now belongs to it
        self._is_first = True
        self._pending = bytearray()  # data lines that are not yet a whole JSON object
        self._is_bare = False  # they have no "data:": a body of JSON, up to its end
        self._is_body = False  # the first data had no "data:"
        self._is_block = False  # the pending data have no "data:", and end with a closing bracket
        self._in_error_event = False
        self._half: TextDelta | ReasoningDelta | None = None  # the first half of a surrogate pair
        # Whether a line may take the fast path: nothing of the six above is set.
        self._is_regular = False
        self._reason = ""  # the last finish reason, premature or not
        self._index = 0  # of the choice that is read
        self._has_output = False  # text, or a tool call
        self._has_reasoning = False
        self._is_elsewhere = False  # the text is beside the places for it
        self._messages: dict[str, list[str]] = {}  # texts of choices without a delta, by kind
        self._sends_pieces = False  # they are the reply's pieces, not all of it so far
        self._odd = b""  # the first data that was passed over
        self._usage: Usage | None = None

    @property
    def is_doubtful(self) -> bool:
        """Whether the provider reported the end of a reply that has no output yet.

        Some send a finish reason at the end of the model's reasoning, before the text.
        """
        return self.finished and not self._has_output and self._reason == "stop"

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that these bytes complete; without bytes, those of the body's end."""
        events: list[Event] = []
        for line in self._lines(data):
            if self.ended:
                break
            if self._is_regular:
                if not line:
                    continue
                if line.startswith(b"data:"):
                    data_line = line[5:]
                    try:
                        chunk = decode_chunk(data_line)
                    except UNREADABLE:
                        self._line(line, events)
                    else:
                        self._chunk(chunk, data_line, events)
                    continue
            self._line(line, events)
        if not data:
            self._end(events)
        if self._half is not None and (self.ended or not data):
            events.append(type(self._half)(REPLACEMENT))
            self._half = None
        if len(self._rest) + len(self._pending) > LINE_LIMIT:
            self._fail(ProviderMalformed(f"an event of more than {LINE_LIMIT} bytes"))
        return events

    def close(self) -> None:
        """End the stream. Raises the fault, if any; ProviderCut when the end is missing."""
        if self._failure is not None:
            raise self._failure
        if self.finished or self._reason:
            return
        if self._odd and not self._has_output:
            raise ProviderMalformed(f"no event of a reply: {shown(self._odd)}")
        raise ProviderCut("the stream ended without a finish reason and without [DONE]")

    def _lines(self, data: bytes) -> list[bytes]:
        if not data:
            rest, self._rest = self._rest, b""
            return [rest] if rest else []
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines

    def _line(self, line: bytes, events: list[Event]) -> None:
        """Handle a line that is not one of the usual ones."""
        if self._is_first:
            line = line.removeprefix(BOM)
        count = len(events)
        text = line.strip()
        if self._is_bare:
            self._pending += line + b"\n"
        elif self._is_block and not DATA.match(text):
            self._block(line, events)
        elif not text:
            self._blank(events)
        elif found := DATA.match(text):
            self._data(text[found.end() :], events)
        elif text[:6].lower() == b"event:":
            self._in_error_event = text[6:].strip() == b"error"
        elif text[:6].lower() == b"error:":
            self._error(text[6:])
        elif text.startswith((b"{", b"[")):
            self._bare(text, events)
        elif (field := FIELD.match(text)) is None:
            page = is_page(text.decode(errors="replace")) and not self._has_output
            detail = f"not an event stream: {shown(line)}"
            self._fail(ProviderMalformed(detail, is_of_address=page))
        elif field[1] and text[field.end() :].lstrip().startswith(b"{"):
            self._pass_over("a field of an event with JSON", text)
        if text:
            self._is_first = False
        self._mend(events, count)
        self._is_regular = not (
            self._is_first or self._pending or self._in_error_event or self._half is not None
        )

    def _blank(self, events: list[Event]) -> None:
        """Handle the end of an event, whose JSON may have taken several lines."""
        self._in_error_event = False
        data, self._pending = bytes(self._pending), bytearray()
        if not data:
            return
        self._json(data, events)
        if self._pending:
            self._pending.clear()
            self._fail(ProviderMalformed(f"not a chunk: {shown(data)}"))

    def _block(self, line: bytes, events: list[Event]) -> None:
        """Handle a line of JSON over several lines, among the events (Google's errors)."""
        self._pending += line + b"\n"
        if not line.startswith((b"}", b"]")):
            return
        data, self._pending = bytes(self._pending), bytearray()
        self._json(data, events)
        self._is_block = bool(self._pending)

    def _data(self, data: bytes, events: list[Event]) -> None:
        data = data.strip()
        while found := DATA.match(data):  # some gateways wrap events twice
            data = data[found.end() :].strip()
        if self._pending and self._is_block:
            self._fail(ProviderMalformed(f"not a chunk: {shown(bytes(self._pending))}"))
        elif self._pending:
            self._pending += b"\n" + data
        elif self._in_error_event:
            self._error(data)
        elif data and not data.startswith(b":"):  # keep-alives
            self._json(data, events)

    def _error(self, data: bytes) -> None:
        """Handle the data of an error event, or an `error:` line: the error itself, unwrapped."""
        try:
            error = lenient_json.loads(data)
        except ValueError:
            error = data.decode(errors="replace")
        self._fail(reported(error))

    def _bare(self, data: bytes, events: list[Event]) -> None:
        """Handle JSON that has no `data:`: an error of a proxy, or the beginning of a body of JSON."""
        if self._pending:
            self._pending += b"\n" + data
            return
        was_first = self._is_first
        self._is_body = self._is_body or was_first
        self._json(data, events)
        self._is_bare = was_first and bool(self._pending)
        self._is_block = not was_first and bool(self._pending)
        if self._is_block:
            self._pending += b"\n"
        if not self._pending:
            self._odd = self._odd or data

    def _json(self, data: bytes, events: list[Event]) -> None:
        """Handle data that should be a JSON object; the beginning of one becomes `_pending`."""
        try:
            self._chunk(decode_chunk(data), data, events)
            return
        except UNREADABLE as refused:
            error = refused
        if data.strip(b'"<[]> ').upper() == b"DONE":
            self.finished = self.ended = True
            return
        try:
            values = lenient_json.loads_all(data)
        except ValueError:
            if data.startswith((b"{", b"[")):
                self._pending += data  # the first of several lines, or garbage
            elif data.startswith(b"<"):
                page = not self._has_output
                self._fail(ProviderMalformed(f"not a chunk: {shown(data)}", is_of_address=page))
            else:
                self._pass_over("data that is no JSON", data)
            return
        is_mistyped = isinstance(error, msgspec.ValidationError)
        shape = str(error) if is_mistyped else "JSON with characters that it must not have"
        for each in values[0] if len(values) == 1 and isinstance(values[0], list) else values:
            self._pass_over(shape, data)
            if isinstance(each, dict):
                self._chunk(lenient_chunk(each), each, events)
            elif isinstance(each, str) and each.startswith(("{", "data:", "[DONE]")):
                self._data(each.encode(errors="replace"), events)  # encoded twice

    def _chunk(self, chunk: Chunk, data: bytes | dict[str, Any], events: list[Event]) -> None:
        """Handle a chunk, which was decoded from `data`."""
        usage = chunk.usage or chunk.google_usage
        error = chunk.error
        count = len(events)
        for choice in chunk.choices or ():
            if choice.index and choice.index != self._index:
                if self._has_output or self._index:
                    continue  # a second choice was not requested
                self._index = choice.index  # some servers do not count from 0
            delta, whole = choice.delta, choice.message
            if whole is not None and not (delta and delta.content):
                self._message(whole, events, is_last=bool(choice.finish_reason))
            elif delta is not None:
                self._delta(delta, events)
            elif choice.text:  # as in OpenAI's older completions API
                self._delta(Delta(content=choice.text), events)
            if len(events) == count and (self._is_elsewhere or not self._has_output):
                self._find_text(data, events)
            if choice.finish_reason:
                self._finish(choice.finish_reason, events)
            usage = usage or choice.usage
            error = error or choice.error
        if chunk.x_groq is not None:
            usage = usage or chunk.x_groq.usage
            error = error or chunk.x_groq.error
        if usage is not None:
            self._count(usage, events)
        if error and is_error(error):
            self._fail(reported(error))
        elif not chunk.choices:
            fields = lenient_json.loads(data) if isinstance(data, bytes) else data
            if self._unwrap(fields, events) or self._is_foreign(fields):
                return
            if usage is None:
                self._other(fields)

    def _find_text(self, data: bytes | dict[str, Any], events: list[Event]) -> None:
        """Read text from other fields than `content`, when no chunk before had its text there."""
        fields = lenient_json.loads(data) if isinstance(data, bytes) else data
        choice = as_object(next(iter(as_list(fields.get("choices"))), None))
        found = as_object(choice.get("delta")).get("text") or choice.get("content")
        if isinstance(found, str) and found:
            self._is_elsewhere = True
            self._delta(Delta(content=found), events)

    def _unwrap(self, fields: dict[str, Any], events: list[Event]) -> bool:
        """Read a chunk that is wrapped in another object; returns whether there is one."""
        for name in WRAPPERS:
            inner = fields.get(name)
            if isinstance(inner, str) and inner.startswith("{"):
                with suppress(ValueError):
                    inner = lenient_json.loads(inner.encode(errors="replace"))
            if not isinstance(inner, dict):
                continue
            if error := inner.get("Error"):  # Tencent
                self._fail(reported(error))
                return True
            if any(map(inner.get, ("choices", "usage", "error"))):
                self._chunk(lenient_chunk(inner), inner, events)
                return True
        return False

    def _is_foreign(self, fields: dict[str, Any]) -> bool:
        """Fail for an event of another API, unless the reply has begun; returns whether it is one."""
        kinds = (fields.get("type"), fields.get("event_type"))
        names = {*fields, *(kind for kind in kinds if isinstance(kind, str))}
        api = next((api for api, marks in OTHER_APIS if marks <= names), "")
        if not api or self._has_output:
            return False
        detail = f"an event of another API ({api}): the base URL is not that of chat completions"
        self._fail(ProviderMalformed(detail, is_of_address=True))
        return True

    def _message(self, whole: Delta, events: list[Event], *, is_last: bool) -> None:
        """Handle a message in place of a delta: the whole reply, all of it so far, or its next piece."""
        if self._has_output and not self._messages:
            return  # the reply so far came in deltas, which this one repeats
        thoughts = whole.reasoning_content or whole.reasoning or whole.reasoning_text or ""
        if self._has_reasoning and not self._messages:
            thoughts = ""
        whole.reasoning_content = self._news("thoughts", thoughts, is_last)
        whole.reasoning = whole.reasoning_text = None
        if isinstance(whole.content, str):
            whole.content = self._news("text", whole.content, is_last)
        self._delta(whole, events)

    def _news(self, kind: str, text: str, is_last: bool) -> str:
        """Return the part of a message's text that the messages before did not have."""
        pieces = self._messages.setdefault(kind, [])
        so_far = "".join(pieces)
        is_repeated = so_far == text and (is_last or len(text) > LONGEST_PIECE)
        grows = len(text) > len(so_far) and text.startswith(so_far)
        if pieces and (is_repeated or (grows and not self._sends_pieces)):
            text = text[len(so_far) :]
        elif pieces and text:
            self._sends_pieces = True  # it does not begin with all before
        if text:
            pieces.append(text)
        return text

    def _delta(self, delta: Delta, events: list[Event]) -> None:
        reasoning = delta.reasoning_content or delta.reasoning or delta.reasoning_text
        if reasoning:
            self.finished = False
            self._has_reasoning = True
            events.append(ReasoningDelta(reasoning))
        content = delta.content
        if content:
            if isinstance(content, str):
                self.finished = False
                self._has_output = True
                events.append(TextDelta(content))
            else:
                self._parts(content, events)
        if delta.refusal:
            self._parts([ContentPart(text=delta.refusal)], events)
        if delta.tool_calls:
            self._tool_calls(delta.tool_calls, events)

    def _parts(self, parts: Iterable[ContentPart], events: list[Event]) -> None:
        for part in parts:
            thoughts = [ReasoningDelta(p.text) for p in part.thinking or () if p.text]
            events += thoughts
            if part.text:
                self._has_output = True
                events.append(TextDelta(part.text))
            if thoughts or part.text:
                self.finished = False

    def _tool_calls(self, calls: list[ToolCall], events: list[Event]) -> None:
        for position, call in enumerate(calls):
            function = call.function or Function()
            index = position if call.index is None else call.index
            name, arguments = function.name or "", function.arguments or ""
            events.append(ToolCallDelta(index, call.id or "", name, arguments))
            self._has_output = True
            self.finished = False

    def _finish(self, reason: str, events: list[Event]) -> None:
        snake_case = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", reason).lower()
        # Also "FINISH_REASON_STOP", "FinishReason.STOP" and Google's "content_filter: RECITATION".
        plain = re.sub(r"^(finish|stop)_?reason[_.]", "", snake_case)
        parts = re.split(r"[:.\s]+", plain)
        word = next((WORDS[one] for one in (plain, parts[0], parts[-1]) if one in WORDS), None)
        if word is None:
            word = re.sub(r"[^\w.: -]", "", reason, flags=re.ASCII)[:REASON_CHARACTERS] or "other"
        if word in FAULTS:
            self._fail(FAULTS[word](f"finish_reason {reason}"))
        elif word and (not self.finished or not self._reason):
            self.finished = True
            self._reason = word
            events.append(Finish(word))

    def _count(self, usage: UsageObject, events: list[Event]) -> None:
        counted = usage_of(usage)
        earlier = self._usage
        if earlier is not None:  # the last report of some servers has zeros
            counted = Usage(
                prompt_tokens=counted.prompt_tokens or earlier.prompt_tokens,
                completion_tokens=counted.completion_tokens or earlier.completion_tokens,
                cached_tokens=counted.cached_tokens or earlier.cached_tokens,
                reasoning_tokens=counted.reasoning_tokens or earlier.reasoning_tokens,
            )
        if counted != earlier:  # some servers repeat it
            self._usage = counted
            events.append(counted)

    def _other(self, fields: dict[str, Any]) -> None:
        """Handle an object that is no chunk: an error that is not wrapped, or of no interest."""
        for name, code in (("base_resp", "status_code"), ("header", "code")):  # MiniMax, iFlytek
            wrapped = as_object(fields.get(name))
            if wrapped.get(code):
                self._fail(reported(wrapped))
                return
        is_named = "error" in (fields.get("object"), fields.get("type"))
        is_success = fields.get("code", fields.get("status")) in SUCCESSES
        sentences = filter(None, map(fields.get, ERROR_FIELDS))
        is_worded = any("role" not in as_object(sentence) for sentence in sentences)
        if is_named or (is_worded and not is_success):
            self._fail(reported(fields))

    def _mend(self, events: list[Event], first: int) -> None:
        """Make the texts of the events from index `first` on well-formed Unicode.

        Halves of a surrogate pair at the end of one event and the beginning of the next are joined.
        """
        fresh = events[first:]
        del events[first:]
        for event in fresh:
            half = self._half
            if isinstance(event, TextDelta | ReasoningDelta):
                self._half = None
                text = event.text
                if type(half) is type(event):
                    text = half.text + text
                elif half is not None:
                    events.append(type(half)(REPLACEMENT))
                if "\ud800" <= text[-1] <= "\udbff":
                    self._half = type(event)(text[-1])
                    text = text[:-1]
                if text:
                    events.append(type(event)(well_formed(text)))
                continue
            if half is not None and not isinstance(event, Usage):
                self._half = None
                events.append(type(half)(REPLACEMENT))
            if isinstance(event, ToolCallDelta):
                event = ToolCallDelta(
                    event.index, event.id, event.name, well_formed(event.arguments)
                )
            events.append(event)

    def _end(self, events: list[Event]) -> None:
        """Handle the end of the body: the last data may lack its blank line."""
        data, self._pending = bytes(self._pending), bytearray()
        if data and not self.ended:
            count = len(events)
            self._json(data, events)
            if self._is_bare and not self._pending:
                self._odd = self._odd or data
            self._pending.clear()  # it was cut in the middle
            self._mend(events, count)
        if self._is_body and len(self._messages.get("text", ())) == 1 and not self._reason:
            self.finished = True  # a whole reply, without a reason

    def _pass_over(self, shape: str, data: bytes) -> None:
        """Note data of an unexpected shape; each shape is logged once in this process."""
        self._odd = self._odd or data
        if shape not in _passed_over and len(_passed_over) < SHAPES_LIMIT:
            _passed_over.add(shape)
            logger.warning(
                "a provider's event is not as expected: %s; it is read as far as possible", shape
            )

    def _fail(self, failure: ProviderError) -> None:
        # An error chunk may begin with its finish reason; the error object that follows is clearer.
        if self._failure is None or isinstance(failure, ProviderReported):
            self._failure = failure
        self.ended = True


def usage_of(usage: UsageObject) -> Usage:
    """Return the tokens of a usage object.

    Providers differ in whether the reasoning is a part of the completion, and cached input a part of
    the prompt: the total decides, if there is one.
    """
    prompt_details = usage.prompt_tokens_details or usage.input_tokens_details or PromptDetails()
    details = usage.completion_tokens_details or usage.output_tokens_details or CompletionDetails()
    prompt = first_of(
        usage.prompt_tokens, usage.input_tokens, usage.google_prompt, usage.camel_input
    )
    completion = first_of(
        usage.completion_tokens, usage.output_tokens, usage.google_completion, usage.camel_output
    )
    reasoning = first_of(details.reasoning_tokens, usage.reasoning_tokens, usage.google_reasoning)
    cached = first_of(
        prompt_details.cached_tokens,
        prompt_details.cache_read_tokens,
        prompt_details.cache_read_input_tokens,
        usage.cached_tokens,
        usage.prompt_cache_hit_tokens,
        usage.cache_read_input_tokens,
        usage.num_cached_tokens,
        usage.cached_prompt_tokens,
        usage.cached_input_tokens,
        usage.prompt_cache_tokens,
        usage.cache_read_tokens,
        usage.input_cached_tokens,
        usage.google_cached,
        usage.camel_cached,
    )
    total = first_of(usage.total_tokens, usage.google_total, usage.camel_total)
    written = first_of(
        usage.cache_creation_input_tokens, usage.cache_write_tokens, usage.camel_written
    )
    beside = total - prompt - completion
    if cached > prompt or (cached and beside == cached + written):
        prompt += cached + written
    elif beside > 0 and not prompt:
        prompt = beside
    elif beside > 0:
        reasoning = reasoning or (beside if completion else 0)
        completion += beside
    elif not total and reasoning > completion > 0:
        completion += reasoning
    return Usage(
        prompt_tokens=min(prompt, TOKENS_LIMIT),
        completion_tokens=min(completion, TOKENS_LIMIT),
        cached_tokens=cached,
        reasoning_tokens=reasoning,
    )


def first_of(*counts: float | None) -> int:
    """Return the first count that is not zero, within the range of money and of the database."""
    return min(max(0, int(next(filter(None, counts), 0))), TOKENS_LIMIT)


def is_error(error: Any) -> bool:
    """Return whether the field `error` of a chunk has an error: some servers fill it with nothing."""
    if isinstance(error, dict):
        words = [value for value in error.values() if value and value not in SUCCESSES]
        return any(not isinstance(word, str) or word.lower() not in SUCCESSES for word in words)
    return bool(error) and error not in ("null", "None", "none")


def reported(error: Any) -> ProviderReported:
    """Return the error for an error object in the stream, of any shape."""
    report = read_error(error)
    detail = f"reported in the stream: {report.title} {report.message}"
    return ProviderReported(detail, refusal_of(0, report), retry_after=seconds_to_wait(report))


def well_formed(text: str) -> str:
    """Join surrogate pairs, and replace halves that stand alone by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shown(data: bytes) -> str:
    """Return the beginning of the data, for the log; of JSON, which has text of a reply, only its size."""
    if data.lstrip().startswith((b"{", b"[", b"data:")):
        return f"{len(data)} bytes"
    return repr(data[:100])
