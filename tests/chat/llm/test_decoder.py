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
    ProviderTimeout,
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
        b'{\n  "choices": [\n',
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


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(content: Any, **choice: Any) -> bytes:
    return event(choices=[{"delta": {"content": content}, **choice}])


STOP = event(choices=[{"delta": {}, "finish_reason": "stop"}])


def reply_of(*pieces: bytes) -> tuple[str, str, str]:
    """Return text, reasoning and last finish reason of a stream that ends without an error."""
    events, error = decode(*pieces)
    assert error is None
    forms = merged(events)
    return (
        "".join(form.get("text", "") for form in forms),
        "".join(form.get("reasoning", "") for form in forms),
        [form["finish"] for form in forms if "finish" in form][-1],
    )


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [{"index": "0", "delta": {}}]},
        {"choices": [{"index": None, "delta": None}]},
        {"choices": [{"delta": []}]},
        {"choices": [{"delta": {}, "finish_reason": False}]},
        {"choices": [{"delta": {}, "finish_reason": {}}]},
        {"choices": [{"delta": {"content": {}, "role": 5}}]},
        {"choices": [{"delta": {"content": True}}]},
        {"choices": [{"delta": {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}}]},
        {"choices": [{"delta": {"reasoning": False, "refusal": []}}]},
        {"choices": [{"delta": {"tool_calls": "none"}}]},
        {"choices": [{"delta": {"tool_calls": {}}}]},
        {"choices": {"a": 1}},
        {"choices": "none"},
        {"choices": None, "usage": "none"},
        {"choices": [], "usage": {"prompt_tokens": {"a": 1}, "completion_tokens": True}},
        {"choices": [{"delta": {}}], "usage": 5, "x_groq": "none"},
        {"choices": [{"delta": {}}], "created": "now", "id": 7, "logprobs": float("-inf")},
        {"choices": [{"delta": {}}], "error": False},
        {"choices": [{"delta": {}, "error": None}], "error": {"message": None, "code": 0}},
        {"type": "ping"},
        {"code": 200, "message": "success"},
        {},
        None,
        "ping",
        7,
        [],
    ],
)
def test_field_of_odd_type_is_passed_over(chunk):
    odd = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    assert reply_of(text("Hi"), odd, text(" there"), STOP) == ("Hi there", "", "stop")


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({"content": 42}, ("42", "")),
        ({"content": [{"type": "text", "text": "a"}, "b"]}, ("ab", "")),
        ({"content": {"type": "text", "text": {"value": "a"}}}, ("a", "")),
        ({"content": [{"type": "thinking", "thinking": "t"}]}, ("", "t")),
        ({"content": [{"type": "reasoning", "reasoning": [{"text": "t"}]}]}, ("", "t")),
        ({"content": "a", "index": "x", "reasoning_content": ["t", {"text": "u"}]}, ("a", "tu")),
        ({"reasoning": {"text": "t"}, "content": None}, ("", "t")),
        ({"reasoning_text": "t", "content": None}, ("", "t")),
        ({"refusal": [{"refusal": "no"}]}, ("no", "")),
        ("bare", ("bare", "")),
    ],
)
def test_needed_field_is_read_in_other_types(delta, expected):
    assert reply_of(event(choices=[{"index": "0", "delta": delta}]), STOP)[:2] == expected


def message(content: Any, reason: str | None = None, **fields: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": content, **fields}}
    return event(choices=[{"index": 0, **choice, "finish_reason": reason}])


ENVELOPE = {"code": 0, "message": "success"}
GOOGLE = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # a message in place of each delta: pieces, or all of the reply so far
        (message("He") + message("llo") + message(" you", "stop"), ("Hello you", "")),
        (message("He") + message("Hello") + message("Hello you", "stop"), ("Hello you", "")),
        (message("Hello you") + message("Hello you", "stop"), ("Hello you", "")),
        (message("ha") + message("ha") + message("", "stop"), ("haha", "")),
        (message("a") + message("b") + message("ab") + message("", "stop"), ("abab", "")),
        (
            message("", reasoning="t") + message("", reasoning="tu") + message("Hi", "stop"),
            ("Hi", "tu"),
        ),
        (
            event(choices=[{"delta": {"reasoning": "t"}}])
            + message("Hi", "stop", reasoning_content="t"),
            ("Hi", "t"),
        ),
        # chunks within other objects
        (event(**ENVELOPE, data=json.loads(text("Hi")[6:])) + STOP, ("Hi", "")),
        (event(data=text("Hi")[6:].decode()) + STOP, ("Hi", "")),
        (
            event(output={"choices": [{"message": {"content": "Hi"}}]}, usage=None) + STOP,
            ("Hi", ""),
        ),
        # fields of events in other forms
        (b"Data" + text("Hi")[4:] + b"DATA" + text(" you")[4:] + STOP, ("Hi you", "")),
        (b"data " + text("Hi")[4:] + b"EVENT: chunk\n" + STOP, ("Hi", "")),
        # text beside its place
        (
            event(choices=[{"delta": {"role": "assistant"}}])
            + event(choices=[{"delta": {"text": "Hi"}}])
            + event(choices=[{"delta": {"text": " you"}, "finish_reason": "stop"}]),
            ("Hi you", ""),
        ),
        (
            event(choices=[{"content": "Hi"}])
            + event(choices=[{"index": "0", "content": " you"}])
            + STOP,
            ("Hi you", ""),
        ),
        # choices that are not counted from 0
        (text("Hi", index=1) + text(" you", index=1) + STOP, ("Hi you", "")),
        # JSON of several lines among the events
        (
            text("Hi")
            + json.dumps({"choices": [{"delta": {"content": " you"}}]}, indent=2).encode()
            + b"\n\n"
            + STOP,
            ("Hi you", ""),
        ),
    ],
)
def test_odd_stream_loses_no_text(body, expected):
    for at in range(len(body) + 1):
        assert reply_of(body[:at], body[at:])[:2] == expected


def test_error_of_several_lines_is_reported():
    events, error = decode(text("Hi") + json.dumps(GOOGLE, indent=2).encode() + b"\n")
    assert events == [TextDelta("Hi")]
    assert isinstance(error, ProviderReported)
    assert "overloaded" in error.detail


def test_page_after_text_is_no_fault_of_address():
    for page in (b"<html><body>502 Bad Gateway</body></html>\n", b"data: <html>\n\n"):
        events, error = decode(text("Hi") + page)
        assert events == [TextDelta("Hi")]
        assert isinstance(error, ProviderMalformed)
        assert error.cause == "malformed"


def test_messages_without_end_are_cut():
    events, error = decode(message("He") + message("llo"))
    assert (merged(events), type(error)) == ([{"text": "Hello"}], ProviderCut)
    events, error = decode(message("He"))
    assert (events, type(error)) == ([TextDelta("He")], ProviderCut)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","message":{"role":"assistant","content":"Hi"},"done":false}\n'
        b'{"model":"m","message":{"content":""},"done":true}\n',
        b'{"message":{"content":"Hi"},"done":false}\n',
        b'{"model":"m","response":"Hi","done":false}\n',
        b'data: {"candidates":[{"content":{"parts":[{"text":"Hi"}]}}],"usageMetadata":'
        b'{"promptTokenCount":3}}\n\n',
        b'[{\n  "candidates": [{"content": {"parts": [{"text": "Hi"}]}}]\n}\n]\n',
        b'event: message_start\ndata: {"type":"message_start","message":{"role":"assistant"}}\n\n',
        b'data: {"type":"response.created","response":{"error":null,"usage":null}}\n\n',
        b'data: {"content":"Hi","stop":false,"id_slot":0}\n\n',
        b'data: {"index":1,"token":{"text":"Hi"},"generated_text":null}\n\n',
        b'data: {"type":"message-start","id":"x"}\n\n',
        b'data: {"response":"Hi","p":"abc"}\n\ndata: [DONE]\n\n',
    ],
)
def test_event_of_other_api_names_base_url(body):
    for at in range(len(body) + 1):
        events, error = decode(body[:at], body[at:])
        assert not [one for one in events if not isinstance(one, Usage)]
        assert isinstance(error, ProviderMalformed)
        assert (error.cause, error.message) == ("address", REFUSALS["address"])
        assert "base URL" in error.detail


def test_arguments_may_be_an_object():
    call = {"index": "1", "id": "c", "function": {"name": "f", "arguments": {"a": [1]}}}
    events, _ = decode(event(choices=[{"delta": {"tool_calls": [call]}}]))

    assert events == [ToolCallDelta(1, "c", "f", '{"a":[1]}')]


def test_odd_shape_is_logged_once_without_its_content(caplog):
    odd = event(choices=[{"delta": {"content": "secret", "reasoning": 5}, "index": "0"}])
    decode(odd, odd, text("x"))
    decode(odd)

    assert caplog.text.count("is not as expected") <= 1  # none if another test was the first
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((b'"a\\ud83d"', b'"\\ude00b"'), "a\U0001f600b"),
        ((b'"a\\ud83d"', b'"b"'), "a\ufffdb"),
        ((b'"\\ude00b"',), "\ufffdb"),
        ((b'"a\\ud83d"',), "a\ufffd"),
        ((b'"\\ud83d"', b'"\\ud83d"', b'"\\ude00"'), "\ufffd\U0001f600"),
        ((b'"\\ud83d\\ude00\\ud83d"', b'""', b'"\\ude00"'), "\U0001f600\U0001f600"),
        ((b'"\xe2\x9c z"', b'" more"'), "\ufffd z more"),
        ((b'"\xff"',), "\ufffd"),
    ],
)
def test_broken_characters_cost_a_character(pieces, expected):
    for field in (b"content", b"reasoning"):
        chunks = [b'data: {"choices":[{"delta":{"%b":%b}}]}\n\n' % (field, p) for p in pieces]
        found = reply_of(*chunks, STOP)
        assert found == ((expected, "", "stop") if field == b"content" else ("", expected, "stop"))


def test_half_of_a_pair_survives_other_events():
    usage = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 1})
    first = b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n'
    second = b'data: {"choices":[{"delta":{"content":"\\ude00"}}]}\n\n'
    assert reply_of(first, usage, second, STOP)[0] == "\U0001f600"
    reasoning = event(choices=[{"delta": {"reasoning": "t"}}])
    assert reply_of(first, reasoning, STOP)[:2] == ("\ufffd", "t")


WHOLE = {
    "choices": [{"message": {"content": "Hi", "reasoning_content": "t"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(WHOLE).encode(),
        b"\xef\xbb\xbf\n  \n " + json.dumps(WHOLE).encode() + b"\n\n",
        json.dumps(WHOLE, indent=2).encode(),
        json.dumps(WHOLE, indent=2).replace("\n", "\r\n\r\n").encode() + b"\r\n",
        json.dumps([WHOLE]).encode(),
        b"data: " + json.dumps(WHOLE).encode(),
        json.dumps({**WHOLE, "error": {"code": 0, "message": "Success"}}).encode(),
        json.dumps({**WHOLE, "error": "null"}).encode(),
        b"data: data: " + json.dumps(WHOLE).encode() + b"\n\ndata: [DONE]\n\n",
    ],
)
def test_whole_completion_is_a_reply(body):
    for pieces in ([body], [body[at : at + 1] for at in range(len(body))]):
        events, error = decode(*pieces)
        assert error is None
        assert events == [ReasoningDelta("t"), TextDelta("Hi"), Finish("stop"), Usage(3, 1, 0, 0)]


@pytest.mark.parametrize(
    "data",
    [
        b"data: " + json.dumps(json.dumps({"choices": [{"delta": {"content": "Hi"}}]})).encode(),
        text("Hi").strip() + b" " + STOP.strip() + b"data: [DONE]",
        text("H").strip() + text("i").strip(),
        event(choices=[{"text": "Hi"}]).strip(),
        text("H").strip() + text("i").removeprefix(b"data: ").strip(),
    ],
)
def test_events_that_a_gateway_wrapped_are_found(data):
    assert reply_of(data + b"\n\n", STOP)[0] == "Hi"


def test_message_after_its_deltas_adds_no_text():
    summary = event(choices=[{"message": {"content": "Hi there"}, "finish_reason": "stop"}])
    assert reply_of(text("Hi"), text(" there"), summary) == ("Hi there", "", "stop")


def test_cut_body_of_json_is_cut():
    _, error = decode(json.dumps(WHOLE, indent=1).encode()[:-9])
    assert isinstance(error, ProviderCut)


@pytest.mark.parametrize(
    "body",
    [b'{"status": "ok"}', b"Ollama is running", b"data: Bad Gateway\n\n", b"<html>", b"\n\n<p>"],
)
def test_body_without_reply_is_malformed(body):
    events, error = decode(body)
    assert events == []
    assert isinstance(error, ProviderMalformed)
    assert error.cause == ("address" if b"<" in body else "malformed")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'data: {"object":"error","message":"boom","code":400}\n\n', "request"),
        (b'data: {"type":"error","code":"server_error","message":"boom"}\n\n', None),
        (b'data: {"code":"DataInspectionFailed","message":"x"}\n\n', "content"),
        (b'data: {"detail":"Incorrect API key provided"}\n\n', "key"),
        (b'data: {"error_code":336,"error_msg":"boom"}\n\n', None),
        (b'data: {"base_resp":{"status_code":1008,"status_msg":"insufficient balance"}}', "quota"),
        (b'data: {"choices":[{"delta":{},"error":{"code":402,"message":"x"}}]}\n\n', "quota"),
        (b'data: {"choices":[],"error":"overloaded"}\n\n', None),
        (b'data: {"header":{"code":11200,"message":"invalid api key"}}\n\n', "key"),
        (b'{"Response":{"Error":{"Code":"AuthFailure","Message":"x"},"RequestId":"1"}}', "key"),
        (b'data: {"error":["overloaded"]}\n\n', None),
        (b'event: error\ndata: {"message":"boom"}\n\n', None),
        (b"event: error\ndata: boom\n\n", None),
        (b'event: error\ndata: {"error":{"code":429,"message":"x"}}\n\n', None),
        (b"Error: the key is an invalid API key\n", "key"),
        (b'[{"error":{"code":401,"message":"x"}}]', "key"),
    ],
)
def test_error_of_any_shape_is_reported(data, reason):
    events, error = decode(data)
    assert events == []
    assert isinstance(error, ProviderReported)
    assert error.reason == reason


def test_event_after_error_event_is_data_again():
    events, error = decode(b"event: error\n\n", text("Hi"), STOP)
    assert (events, error) == ([TextDelta("Hi"), Finish("stop")], None)


@pytest.mark.parametrize(
    "keep_alive",
    [
        b"data: : PROCESSING\n\n",
        b": PROCESSING\n\n",
        b"data:\n\n",
        b"data\n\n",
        b"data: null\n\n",
        b"data: ping\n\n",
        b"event: ping\ndata: {}\n\n",
        b"id: 7\nretry: 5\nx-trace: 1\n\n",
    ],
)
def test_keep_alive_is_passed_over(keep_alive):
    assert reply_of(keep_alive, text("Hi"), keep_alive, STOP, keep_alive)[0] == "Hi"


@pytest.mark.parametrize(
    "end",
    [b"data: [DONE]", b'data: "[DONE]"', b"data: DONE", b"data: data: [DONE]", b"data: <[DONE]>"],
)
def test_done_is_found_in_other_forms(end):
    decoder = StreamDecoder()
    decoder.feed(text("Hi") + end + b"\n")
    assert decoder.ended
    decoder.close()


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("FINISH_REASON_MAX_TOKENS", "length"),
        ("maxTokens", "length"),
        ("truncated", "length"),
        ("contentFiltered", "content_filter"),
        ("MODEL_ARMOR", "content_filter"),
        ("FINISH_REASON_STOP", "stop"),
        ("finished", "stop"),
        ("SAFETY", "content_filter"),
        ("content_filter: PROHIBITED_CONTENT", "content_filter"),
        ("FinishReason.MAX_TOKENS", "length"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("end_turn", "stop"),
        ("STOP", "stop"),
        ({"type": "length"}, "length"),
        ("something_new", "something_new"),
        ("a\x00\ud83d" + "b" * 50, "a" + "b" * 29),
        ("\x00", "other"),
    ],
)
def test_finish_reason_is_translated(reason, word):
    events, _ = decode(text("Hi"), event(choices=[{"delta": {}, "finish_reason": reason}]))
    assert events == [TextDelta("Hi"), Finish(word)]


@pytest.mark.parametrize("reason", ["null", "", "NONE", None, 0])
def test_finish_reason_without_meaning_is_none(reason):
    events, error = decode(text("Hi", finish_reason=reason))
    assert events == [TextDelta("Hi")]
    assert isinstance(error, ProviderCut)


def test_finish_reason_before_more_output_is_premature():
    decoder = StreamDecoder()
    assert decoder.feed(event(choices=[{"delta": {"reasoning": "t"}, "finish_reason": "stop"}]))
    assert decoder.finished
    assert decoder.is_doubtful
    assert decoder.feed(text("Hi")) == [TextDelta("Hi")]
    assert not decoder.finished
    assert decoder.feed(event(choices=[{"delta": {}, "finish_reason": "length"}])) == [
        Finish("length")
    ]
    assert decoder.finished
    assert not decoder.is_doubtful
    assert decoder.feed(STOP) == []  # the first after the output counts


def test_finish_reason_on_each_chunk_ends_nothing():
    chunks = [text(word, finish_reason="stop") for word in ("one", " two", " three")]
    assert reply_of(*chunks) == ("one two three", "", "stop")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("abort", ProviderCut),
        ("CANCELLED", ProviderCut),
        ("timeout", ProviderTimeout),
        ("time_limit", ProviderTimeout),
        ("failed", ProviderReported),
    ],
)
def test_finish_reason_of_fault_keeps_text(reason, kind):
    events, error = decode(text("Hi"), event(choices=[{"delta": {}, "finish_reason": reason}]))
    assert events == [TextDelta("Hi")]
    assert type(error) is kind


def test_finish_reason_error_is_reported():
    events, error = decode(b'data: {"choices":[{"delta":{},"finish_reason":"error"}]}\n\n')

    assert events == []
    assert isinstance(error, ProviderReported)


USED = {"prompt_tokens": 20, "completion_tokens": 10}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": None}, (3, 0, 0, 0)),
        ({"prompt_tokens": 3.0, "completion_tokens": 2}, (3, 2, 0, 0)),
        ({"prompt_tokens": -3, "completion_tokens": 10**30}, (0, TOKENS_LIMIT, 0, 0)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": None}}, (3, 0, 0, 0)),
        ({"completion_tokens_details": {"reasoning_tokens": 4}}, (0, 0, 0, 4)),
        ({"prompt_tokens": "12", "completion_tokens": "x"}, (12, 0, 0, 0)),
        ([{"prompt_tokens": 3, "completion_tokens": 2}], (3, 2, 0, 0)),
        # reasoning beside the completion, or within
        (
            USED | {"total_tokens": 60, "completion_tokens_details": {"reasoning_tokens": 30}},
            (20, 40, 0, 30),
        ),
        (
            USED | {"total_tokens": 30, "completion_tokens_details": {"reasoning_tokens": 5}},
            (20, 10, 0, 5),
        ),
        (USED | {"completion_tokens_details": {"reasoning_tokens": 30}}, (20, 40, 0, 30)),
        (USED | {"total_tokens": 75}, (20, 55, 0, 45)),
        (USED | {"total_tokens": 5}, (20, 10, 0, 0)),
        ({"prompt_tokens": 20, "total_tokens": 30}, (20, 10, 0, 0)),
        ({"completion_tokens": 10, "total_tokens": 30}, (20, 10, 0, 0)),
        # cached input
        (USED | {"prompt_cache_hit_tokens": 8}, (20, 10, 8, 0)),
        (USED | {"cached_tokens": 8}, (20, 10, 8, 0)),
        (USED | {"cache_read_input_tokens": 8}, (20, 10, 8, 0)),
        (USED | {"num_cached_tokens": 8}, (20, 10, 8, 0)),
        (USED | {"cached_prompt_tokens": "8"}, (20, 10, 8, 0)),
        (USED | {"cached_input_tokens": 8}, (20, 10, 8, 0)),
        (USED | {"input_cached_tokens": 8}, (20, 10, 8, 0)),
        (USED | {"cache_read_tokens": 8}, (20, 10, 8, 0)),
        (USED | {"prompt_cache_tokens": 8}, (20, 10, 8, 0)),
        (USED | {"prompt_tokens_details": {"cache_read_input_tokens": 8}}, (20, 10, 8, 0)),
        (USED | {"prompt_tokens_details": {"cache_read_tokens": "8"}}, (20, 10, 8, 0)),
        (
            USED | {"cache_read_input_tokens": 100, "cache_creation_input_tokens": 5},
            (125, 10, 100, 0),
        ),
        (USED | {"cached_tokens": 8, "total_tokens": 38}, (28, 10, 8, 0)),
        # other names
        (
            {
                "inputTokens": 4,
                "outputTokens": 832,
                "totalTokens": 2326,
                "cacheReadInputTokens": 1490,
            },
            (1494, 832, 1490, 0),
        ),
        (
            {
                "input_tokens": 20,
                "output_tokens": 10,
                "input_tokens_details": {"cached_tokens": 8},
                "output_tokens_details": {"reasoning_tokens": 3},
            },
            (20, 10, 8, 3),
        ),
        (
            {
                "promptTokenCount": 20,
                "candidatesTokenCount": 10,
                "totalTokenCount": 33,
                "thoughtsTokenCount": 3,
            },
            (20, 13, 0, 3),
        ),
    ],
)
def test_token_counts_are_read_and_bounded(usage, expected):
    events, _ = decode(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")

    assert events == [Usage(*expected)]
    assert all(type(count) is int for count in msgspec.structs.astuple(events[0]))


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([{"prompt_tokens": 20}, {"completion_tokens": 9}], Usage(20, 9, 0, 0)),
        ([USED, {"prompt_tokens": 20, "completion_tokens": 15}], Usage(20, 15, 0, 0)),
        ([USED, {"prompt_tokens": 0, "completion_tokens": 0}], Usage(20, 10, 0, 0)),
    ],
)
def test_later_usage_replaces_all_but_by_zeros(reports, expected):
    events, _ = decode(*(event(choices=[], usage=usage) for usage in reports))
    assert events[-1] == expected


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [{"delta": {}, "usage": USED}]},
        {"choices": [], "x_groq": {"usage": USED}},
        {"choices": [], "usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 10}},
    ],
)
def test_usage_is_found_in_other_places(chunk):
    events, _ = decode(event(**chunk))
    assert events == [Usage(20, 10, 0, 0)]
