"""The wire protocol: decoding the frames of clients, encoding events."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import pytest

from chat import errors, protocol

RUN = UUID("01a20233-4297-7324-b834-bda0617df291")
SEND: dict[str, Any] = {"client_id": "a", "text": "Hi"}
REPEAT: dict[str, Any] = {"client_id": "a", "message": RUN}


@pytest.mark.parametrize(
    ("kind", "fields", "event"),
    [
        ("chat.send", SEND, protocol.ChatSend(client_id="a", text="Hi")),
        ("chat.send", SEND | {"conversation": RUN}, protocol.ChatSend(**SEND, conversation=RUN)),
        ("chat.send", SEND | {"parent": RUN}, protocol.ChatSend(**SEND, parent=RUN)),
        ("chat.send", SEND | {"model": 7}, protocol.ChatSend(**SEND, model=7)),
        ("chat.send", SEND | {"model": None}, protocol.ChatSend(**SEND, model=None)),
        (
            "chat.compare",
            SEND | {"models": [1, 2]},
            protocol.ChatCompare(**SEND, models=[1, 2]),
        ),
        ("run.regenerate", REPEAT, protocol.RunRegenerate(client_id="a", message=RUN)),
        ("run.regenerate", REPEAT | {"model": 7}, protocol.RunRegenerate(**REPEAT, model=7)),
        ("run.continue", REPEAT, protocol.RunContinue(client_id="a", message=RUN)),
        ("message.edit", REPEAT | {"text": "x"}, protocol.MessageEdit(**REPEAT, text="x")),
        ("branch.select", {"message": RUN}, protocol.BranchSelect(message=RUN)),
        ("run.stop", {"run": RUN}, protocol.RunStop(run=RUN)),
        ("resume", {"run": RUN}, protocol.Resume(run=RUN, after=0)),
        ("resume", {"run": RUN, "after": 7}, protocol.Resume(run=RUN, after=7)),
        ("ping", {}, protocol.Ping()),
    ],
)
def test_client_frames_are_decoded(kind, fields, event):
    frame = {"type": kind, **fields}
    assert protocol.decode(msgspec.json.encode(frame).decode()) == event


@pytest.mark.parametrize(
    "text", ["", "{", "hello", "{'type': 'ping'}", '{"type":"ping"}x', '"\ud800"', "\x00"]
)
def test_invalid_json_is_refused(text):
    with pytest.raises(protocol.NotJSON):
        protocol.decode(text)
    assert protocol.ref_of(text) is None


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        ("9" * 5_000, "bad_text"),
        ("1e999", "bad_text"),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "bad_json"),
    ],
    ids=["digits", "exponent", "nesting"],
)
def test_half_character_beside_odd_value_is_refused(rest, code):
    with pytest.raises(errors.ChatError, match=f"{code}:"):
        protocol.decode(f'{{"type":"ping","x":"\\ud800","y":{rest}}}')


def test_huge_number_leaves_the_ref():
    frame = f'{{"type":"resume","run":"b","after":{"9" * 5_000}}}'
    with pytest.raises(errors.ChatError, match="bad_json:"):
        protocol.decode(frame)
    assert protocol.ref_of(frame) == "b"


@pytest.mark.parametrize("text", ["null", "5", "[]", '"ping"', "{}", '{"type":5}', '{"type":[]}'])
def test_json_without_known_type_is_refused(text):
    with pytest.raises(errors.ChatError, match="unknown_type:"):
        protocol.decode(text)


def test_refused_frame_has_ref():
    assert protocol.ref_of('{"type":"x","client_id":"a"}') == "a"
    assert protocol.ref_of('{"type":"x","run":"b"}') == "b"
    assert protocol.ref_of('{"type":"x","run":5}') is None
    assert protocol.ref_of('{"type":"x","run":"' + "b" * 100 + '"}') == "b" * 64


def test_every_error_has_two_sentences():
    """One for the fact, one for the next step."""
    for code, sentence in errors.ERRORS.items():
        assert code.islower()
        assert sentence.count(".") >= 2, f"{code} has only one sentence"


def test_event_begins_with_type_and_omits_defaults():
    event = protocol.Error(code="busy", message="Wait.")
    assert event.encode() == b'{"type":"error","code":"busy","message":"Wait."}'


def test_unknown_objects_are_not_encoded():
    with pytest.raises(TypeError):
        protocol.Error(code="busy", message=object()).encode()  # type: ignore[arg-type]


def test_header_of_event_is_decoded():
    data = protocol.TextDelta(run=RUN, attempt=2, seq=9, text="x").encode()
    assert protocol.header(data) == protocol.Header(type="text.delta", run=RUN, attempt=2, seq=9)
    assert protocol.header(protocol.Pong().encode()) == protocol.Header(type="pong")


def test_numbers_of_attempts_never_overlap():
    assert protocol.first_seq(1) == 1
    assert protocol.first_seq(2) == protocol.SEQS_PER_ATTEMPT + 1
    # All of them are exact in a browser's numbers.
    assert protocol.first_seq(2**15) < 2**53


def test_refs_name_client_id_or_run():
    assert protocol.Ping().ref is None
    assert protocol.Resume(run=RUN).ref == protocol.RunStop(run=RUN).ref == str(RUN)
    assert protocol.BranchSelect(message=RUN).ref == str(RUN)
    assert protocol.ChatSend(client_id="a", text="").ref == "a"
