"""The fields of a `chat.completion.chunk` that are read, and the reading of chunks with other types.

`decode_chunk` is the fast path: typed, and right for nearly every chunk of nearly every provider.
`lenient_chunk` takes the others: it reads the fields that are needed in any form that providers were
seen to send, and passes over the rest.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec


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
    reasoning_text: str | None = None  # GitHub's models
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class PromptDetails(msgspec.Struct):
    cached_tokens: float | None = None
    cache_read_tokens: float | None = None
    cache_read_input_tokens: float | None = None


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: float | None = None


class UsageObject(msgspec.Struct):
    """Counts of tokens, under the names that providers give them."""

    prompt_tokens: float | None = None  # some gateways write 12.0
    completion_tokens: float | None = None
    total_tokens: float | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    input_tokens: float | None = None  # as in OpenAI's responses API, and Anthropic's
    output_tokens: float | None = None
    input_tokens_details: PromptDetails | None = None
    output_tokens_details: CompletionDetails | None = None
    reasoning_tokens: float | None = None
    cached_tokens: float | None = None  # Moonshot
    num_cached_tokens: float | None = None  # Mistral
    cached_prompt_tokens: float | None = None
    cached_input_tokens: float | None = None
    prompt_cache_tokens: float | None = None
    cache_read_tokens: float | None = None
    input_cached_tokens: float | None = None
    prompt_cache_hit_tokens: float | None = None  # DeepSeek
    cache_read_input_tokens: float | None = None  # Anthropic, and gateways in front of it
    cache_creation_input_tokens: float | None = None
    cache_write_tokens: float | None = None
    camel_input: float | None = msgspec.field(default=None, name="inputTokens")  # Bedrock
    camel_output: float | None = msgspec.field(default=None, name="outputTokens")
    camel_total: float | None = msgspec.field(default=None, name="totalTokens")
    camel_cached: float | None = msgspec.field(default=None, name="cacheReadInputTokens")
    camel_written: float | None = msgspec.field(default=None, name="cacheWriteInputTokens")
    google_prompt: float | None = msgspec.field(default=None, name="promptTokenCount")
    google_completion: float | None = msgspec.field(default=None, name="candidatesTokenCount")
    google_total: float | None = msgspec.field(default=None, name="totalTokenCount")
    google_cached: float | None = msgspec.field(default=None, name="cachedContentTokenCount")
    google_reasoning: float | None = msgspec.field(default=None, name="thoughtsTokenCount")


class Choice(msgspec.Struct):
    index: int | None = None
    delta: Delta | None = None  # Azure sends choices without one for its content filter
    message: Delta | None = None  # of a whole completion in place of a stream
    text: str | None = None
    finish_reason: str | None = None
    usage: UsageObject | None = None  # Moonshot
    error: Any = None  # OpenRouter


class Groq(msgspec.Struct):
    usage: UsageObject | None = None
    error: Any = None


class Chunk(msgspec.Struct):
    """The fields of a `chat.completion.chunk` that are read; msgspec skips the others."""

    choices: list[Choice] | None = None  # absent or empty in Azure's first and in usage chunks
    usage: UsageObject | None = None
    google_usage: UsageObject | None = msgspec.field(default=None, name="usageMetadata")
    x_groq: Groq | None = None
    error: Any = None


decode_chunk = msgspec.json.Decoder(Chunk).decode


def lenient_chunk(data: dict[str, Any]) -> Chunk:
    """Return the chunk of a decoded JSON object in which some fields may have other types."""
    groq = as_object(data.get("x_groq"))
    return Chunk(
        choices=[_choice(choice) for choice in as_list(data.get("choices"))],
        usage=_usage(data.get("usage")),
        google_usage=_usage(data.get("usageMetadata")),
        x_groq=Groq(usage=_usage(groq.get("usage")), error=groq.get("error")),
        error=data.get("error"),
    )


def _choice(data: Any) -> Choice:
    choice = as_object(data)
    reason = choice.get("finish_reason")
    if isinstance(reason, dict):
        reason = reason.get("type") or reason.get("reason")
    return Choice(
        index=int(as_number(choice.get("index")) or 0),
        delta=_delta(choice.get("delta")),
        message=_delta(choice.get("message")),
        text=as_text(choice.get("text")),
        finish_reason=reason if isinstance(reason, str) else None,
        usage=_usage(choice.get("usage")),
        error=choice.get("error"),
    )


def _delta(data: Any) -> Delta | None:
    if isinstance(data, str):
        return Delta(content=data)
    if not isinstance(data, dict):
        return None
    content = data.get("content")
    return Delta(
        content=as_text(content) if is_scalar(content) else _parts(content),
        reasoning_content=_joined(data.get("reasoning_content")),
        reasoning=_joined(data.get("reasoning")),
        reasoning_text=_joined(data.get("reasoning_text")),
        refusal=_joined(data.get("refusal")),
        tool_calls=[
            _tool_call(call) for call in as_list(data.get("tool_calls")) if as_object(call)
        ],
    )


def _parts(content: Any) -> list[ContentPart]:
    return [_part(part) for part in as_list(content)]


def _part(data: Any) -> ContentPart:
    """Return a part of the content: bare text, or an object whose type is text, thinking or refusal."""
    if not isinstance(data, dict):
        return ContentPart(text=as_text(data))
    thinking = data.get("thinking") or data.get("reasoning")
    text = data.get("text") or data.get("refusal") or data.get("content")
    if isinstance(text, dict):
        text = text.get("value")
    return ContentPart(
        text=as_text(text),
        thinking=[ContentPart(text=_joined(thinking))] if thinking else None,
    )


def _joined(value: Any) -> str:
    """Return all text of a field that should be text, but may be a list of parts."""
    if is_scalar(value):
        return as_text(value) or ""
    parts = _parts(value)
    return "".join(
        (part.text or "") + "".join(inner.text or "" for inner in part.thinking or ())
        for part in parts
    )


def _tool_call(data: Any) -> ToolCall:
    call = as_object(data)
    function = as_object(call.get("function"))
    arguments = function.get("arguments")
    if isinstance(arguments, dict | list):
        # Nothing was called with an empty object yet: the text of the arguments may still follow.
        arguments = msgspec.json.encode(arguments).decode() if arguments else ""
    index = as_number(call.get("index"))
    return ToolCall(
        index=None if index is None else int(index),
        id=as_text(call.get("id")),
        function=Function(name=as_text(function.get("name")), arguments=as_text(arguments)),
    )


def _usage(data: Any) -> UsageObject | None:
    """Return the counts of a usage object, or of the first one in a list."""
    fields = as_object(next((each for each in as_list(data) if isinstance(each, dict)), None))
    if not fields:
        return None
    numbers = {name: as_number(fields.get(key)) for name, key in COUNTS.items()}
    return UsageObject(
        **numbers,
        prompt_tokens_details=_prompt_details(fields.get("prompt_tokens_details")),
        completion_tokens_details=_completion_details(fields.get("completion_tokens_details")),
        input_tokens_details=_prompt_details(fields.get("input_tokens_details")),
        output_tokens_details=_completion_details(fields.get("output_tokens_details")),
    )


COUNTS = {
    field.name: field.encode_name
    for field in msgspec.structs.fields(UsageObject)
    if "details" not in field.name
}


def _prompt_details(data: Any) -> PromptDetails:
    fields = as_object(data)
    return PromptDetails(
        **{name: as_number(fields.get(name)) for name in PromptDetails.__struct_fields__}
    )


def _completion_details(data: Any) -> CompletionDetails:
    return CompletionDetails(as_number(as_object(data).get("reasoning_tokens")))


def is_scalar(value: Any) -> bool:
    """Return whether a value is no object and no list."""
    return not isinstance(value, dict | list)


def as_text(value: Any) -> str | None:
    """Return text, or a number as text; None for anything else."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def as_number(value: Any) -> float | None:
    """Return a number, or the one in a text; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def as_object(value: Any) -> dict[str, Any]:
    """Return an object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return a list; an object or a text counts as a list of one, anything else as an empty one."""
    if isinstance(value, list):
        return value
    return [value] if isinstance(value, dict | str) else []
