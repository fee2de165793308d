"""The decoder of a reply's bytes, without a network: see streams/README.md."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chat.llm.decoder import (
    LINE_LIMIT,
    TOKENS_LIMIT,
    Event,
    Finish,
    ReasoningDelta,
    StreamDecoder,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from chat.llm.errors import (
    REFUSALS,
    ProviderCut,
    ProviderError,
    ProviderMalformed,
    ProviderReported,
)

STREAMS = Path(__file__).parent / "streams"
NAMES = sorted(path.stem for path in STREAMS.glob("*.sse"))
LINE_ENDS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


def decode(*pieces: bytes) -> tuple[list[Event], ProviderError | None]:
    """Return all events, and the error with which the stream ended."""
    decoder = StreamDecoder()
    # Without bytes `feed` means the end of the body.
    events = [event for piece in [*filter(None, pieces), b""] for event in decoder.feed(piece)]
    try:
        decoder.close()
    except ProviderError as error:
        return events, error
    return events, None


def merged(events: list[Event]) -> list[dict[str, Any]]:
    """Return events in the form of the .json files."""
    return [form for _, group in groupby(events, kind) for form in joined(list(group))]


def kind(event: Event) -> tuple[type, int]:
    return type(event), event.index if isinstance(event, ToolCallDelta) else 0


def joined(events: list[Any]) -> list[dict[str, Any]]:
    match events[0]:
        case TextDelta():
            return [{"text": "".join(event.text for event in events)}]
        case ReasoningDelta():
            return [{"reasoning": "".join(event.text for event in events)}]
        case ToolCallDelta(index, call_id, name):
            assert not any(event.id or event.name for event in events[1:])
            return [{"tool_call": [index, call_id, name, "".join(e.arguments for e in events)]}]
        case Finish():
            return [{"finish": event.reason} for event in events]
        case _:
            return [
                {
                    "usage": [
                        event.prompt_tokens,
                        event.completion_tokens,
                        event.cached_tokens,
                        event.reasoning_tokens,
                    ]
                }
                for event in events
            ]


def ending(error: ProviderError | None) -> Any:
    return error and (type(error), error.detail, error.message, error.retryable)


@pytest.mark.parametrize("name", NAMES)
def test_stream_of_each_provider_is_decoded(name):
    expected = json.loads((STREAMS / f"{name}.json").read_text(encoding="utf-8"))

    events, error = decode((STREAMS / f"{name}.sse").read_bytes())

    assert merged(events) == expected["events"]
    if expected["error"] is None:
        assert error is None
    else:
        assert error is not None
        assert type(error).__name__ == expected["error"]["class"]
        assert error.retryable is expected["error"]["retryable"]
        assert expected["error"]["detail"] in error.detail
        assert getattr(error, "reason", None) == expected["error"].get("reason")


@pytest.mark.parametrize("line_end", LINE_ENDS)
@pytest.mark.parametrize("name", NAMES)
def test_split_bytes_give_same_events(name, line_end):
    plain = (STREAMS / f"{name}.sse").read_bytes()
    assert b"\r" not in plain
    events, error = decode(plain)
    assert events or error, "need a stream with an event or error"

    data = plain.replace(b"\n", LINE_ENDS[line_end])
    splits = [(data[:at], data[at:]) for at in range(len(data) + 1)]
    bytewise = [data[at : at + 1] for at in range(len(data))]
    for pieces in [*splits, bytewise]:
        again, error_again = decode(*pieces)
        assert again == events
        assert ending(error_again) == ending(error)


def test_event_is_decoded_when_its_line_ends():
    decoder = StreamDecoder()
    line = 'data: {"choices":[{"delta":{"content":"ж"}}]}\n'.encode()

    assert decoder.feed(line[:-1]) == []
    assert decoder.feed(line[-1:] + b"\n" + line * 2) == [TextDelta("ж")] * 3


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b'data: {"choices":[{"delta":{"content":"so far"}}]}\n\n', ["so far"]),
        (b'data: {"choices":[{"delta":{"cont', []),
        (b"", []),
    ],
)
def test_stream_without_end_is_cut(data, texts):
    events, error = decode(data)

    assert events == [TextDelta(text) for text in texts]
    assert isinstance(error, ProviderCut)


@pytest.mark.parametrize(
    "end",
    [
        b"data: [DONE]\n\n",
        b"data: [DONE]",  # without a line end: proxies that trim
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    ],
)
def test_done_or_finish_reason_is_end(end):
    _, error = decode(b'data: {"choices":[{"delta":{"content":"all"}}]}\n\n' + end)

    assert error is None


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: <html>\n\n",
        b'data: {"choices":[{"delta":{"content": \x00 \xff\n\n',
        b"<!doctype html>\n<html>\n",
        b'{\n  "choices": []\n}\n',
        b"\x00\x01\x02\n",
    ],
)
def test_garbage_ends_stream_after_earlier_events(garbage):
    events, error = decode(
        b'data: {"choices":[{"delta":{"content":"before"}}]}\n\n'
        + garbage
        + b'data: {"choices":[{"delta":{"content":"after"}}]}\n\n'
    )

    assert events == [TextDelta("before")]
    assert isinstance(error, ProviderMalformed)
    assert len(error.detail) < 300


@pytest.mark.parametrize(
    ("piece", "limit"),
    [
        (b"data: " + b"x" * 16_000, LINE_LIMIT),
        (b'data: {"' + b"x" * 16_000 + b"\n", 2 * LINE_LIMIT),
    ],
    ids=["one line", "data lines"],
)
def test_endless_event_is_malformed(piece, limit):
    """The stream ends before the event fills the memory."""
    decoder = StreamDecoder()
    sent = 0
    while not decoder.ended:
        assert sent <= limit
        assert decoder.feed(piece) == []
        sent += len(piece)
    with pytest.raises(ProviderMalformed):
        decoder.close()


def test_long_event_within_limit_is_decoded():
    text = "€" * 200_000
    line = b'data: {"choices":[{"delta":{"content":"' + text.encode() + b'"}}]}\n'

    events, _ = decode(*(line[at : at + 16_384] for at in range(0, len(line), 16_384)))

    assert events == [TextDelta(text)]


@pytest.mark.parametrize(
    ("error", "reason", "retryable"),
    [
        ({"code": "context_length_exceeded", "message": "x"}, "context", False),
        ({"code": 400, "type": "exceed_context_size_error", "message": "x"}, "context", False),
        ({"code": "insufficient_quota", "message": "x"}, "quota", False),
        ({"code": 402, "message": "x"}, "quota", False),
        ({"code": "content_filter", "message": "x"}, "content", False),
        ({"code": 401, "message": "x"}, "key", False),
        ({"code": 404, "message": "x"}, "address", False),
        ({"code": 403, "message": "x"}, "request", False),
        ({"code": 429, "message": "context size busy"}, None, True),
        ({"code": 503, "message": "x"}, None, True),
        ({"code": None, "type": "api_error", "message": None}, None, True),
        ("overloaded", None, True),
    ],
)
def test_reported_error_has_reason(error, reason, retryable):
    _, failure = decode(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")

    assert isinstance(failure, ProviderReported)
    assert failure.reason == reason
    assert failure.retryable is retryable
    assert failure.message == (REFUSALS[reason] if reason else ProviderReported.message)


def test_finish_reason_error_is_reported():
    events, error = decode(b'data: {"choices":[{"delta":{},"finish_reason":"error"}]}\n\n')

    assert events == []
    assert isinstance(error, ProviderReported)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": None}, (3, 0, 0, 0)),
        ({"prompt_tokens": 3.0, "completion_tokens": 2}, (3, 2, 0, 0)),
        ({"prompt_tokens": -3, "completion_tokens": 10**30}, (0, TOKENS_LIMIT, 0, 0)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": None}}, (3, 0, 0, 0)),
        ({"completion_tokens_details": {"reasoning_tokens": 4}}, (0, 0, 0, 4)),
    ],
)
def test_token_counts_are_bounded_integers(usage, expected):
    events, _ = decode(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")

    assert events == [Usage(*expected)]
    assert all(type(count) is int for count in msgspec.structs.astuple(events[0]))
