"""The wire protocol: reading what clients send, writing what they read."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from chat import errors, protocol

RUN = UUID("01a20233-4297-7324-b834-bda0617df291")


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        (
            {"type": "chat.send", "client_id": "a", "text": "Hi"},
            protocol.ChatSend(client_id="a", text="Hi"),
        ),
        (
            {"type": "chat.send", "client_id": "a", "text": "Hi", "conversation": str(RUN)},
            protocol.ChatSend(client_id="a", text="Hi", conversation=RUN),
        ),
        (
            {"type": "chat.send", "client_id": "a", "text": "Hi", "parent": str(RUN)},
            protocol.ChatSend(client_id="a", text="Hi", parent=RUN),
        ),
        (
            {"type": "run.regenerate", "client_id": "a", "message": str(RUN)},
            protocol.RunRegenerate(client_id="a", message=RUN),
        ),
        (
            {"type": "message.edit", "client_id": "a", "message": str(RUN), "text": "x"},
            protocol.MessageEdit(client_id="a", message=RUN, text="x"),
        ),
        ({"type": "run.stop", "run": str(RUN)}, protocol.RunStop(run=RUN)),
        ({"type": "resume", "run": str(RUN)}, protocol.Resume(run=RUN, after=0)),
        ({"type": "resume", "run": str(RUN), "after": 7}, protocol.Resume(run=RUN, after=7)),
        ({"type": "ping"}, protocol.Ping()),
    ],
)
def test_it_reads_what_a_client_may_send(frame, event):
    assert protocol.decode(msgspec.json.encode(frame).decode()) == event


@pytest.mark.parametrize(
    "text", ["", "{", "hello", "{'type': 'ping'}", '{"type":"ping"}x', '"\ud800"', "\x00"]
)
def test_it_tells_what_is_not_json(text):
    with pytest.raises(protocol.NotJSON):
        protocol.decode(text)
    assert protocol.ref_of(text) is None


@pytest.mark.parametrize("text", ["null", "5", "[]", '"ping"', "{}", '{"type":5}', '{"type":[]}'])
def test_json_without_a_known_type_is_an_unknown_type(text):
    with pytest.raises(errors.ChatError) as error:
        protocol.decode(text)
    assert error.value.code == "unknown_type"


def test_a_refused_frame_is_named_by_its_client_id_or_run():
    assert protocol.ref_of('{"type":"x","client_id":"a"}') == "a"
    assert protocol.ref_of('{"type":"x","run":"b"}') == "b"
    assert protocol.ref_of('{"type":"x","run":5}') is None
    assert protocol.ref_of('{"type":"x","run":"' + "b" * 100 + '"}') == "b" * 64


def test_every_error_says_what_happened_and_what_to_do():
    for code, sentence in errors.ERRORS.items():
        assert code.islower()
        assert sentence.count(".") >= 2, f"{code} has only one sentence"


def test_an_event_is_written_with_its_type_first_and_without_what_is_not_set():
    event = protocol.Error(code="busy", message="Wait.")
    assert event.encode() == b'{"type":"error","code":"busy","message":"Wait."}'


def test_what_is_no_text_does_not_go_over_the_wire():
    with pytest.raises(TypeError):
        protocol.Error(code="busy", message=object()).encode()  # type: ignore[arg-type]


def test_the_header_of_an_event_is_read_without_the_rest():
    data = protocol.TextDelta(run=RUN, attempt=2, seq=9, text="x").encode()
    assert protocol.header(data) == protocol.Header(type="text.delta", run=RUN, attempt=2, seq=9)
    assert protocol.header(protocol.Pong().encode()) == protocol.Header(type="pong")


def test_numbers_of_attempts_never_meet():
    assert protocol.first_seq(1) == 1
    assert protocol.first_seq(2) == protocol.SEQS_PER_ATTEMPT + 1
    # All of them are exact in a browser's numbers.
    assert protocol.first_seq(2**15) < 2**53


def test_refs_of_what_starts_nothing():
    assert protocol.Ping().ref is None
    assert protocol.Resume(run=RUN).ref == protocol.RunStop(run=RUN).ref == str(RUN)
    assert protocol.ChatSend(client_id="a", text="").ref == "a"
