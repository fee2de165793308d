"""The stub provider keeps its word: what other tests ask of it, it does."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from bench.stub_llm import PIECES, reply_pieces
from tests.stub import PROJECT, StubProvider, reasoning_text, reply_text


@pytest.fixture(scope="module")
def running() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


@pytest.fixture
def stub(running: StubProvider) -> StubProvider:
    running.reset()
    return running


def connect(stub: StubProvider) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(stub.url.split("/")[2], timeout=10)


def ask(stub: StubProvider, text: str, **options: Any) -> tuple[int, bytes, dict[str, str]]:
    """Status, whole body and headers of one request."""
    with closing(connect(stub)) as connection:
        send(connection, text, **options)
        response = connection.getresponse()
        with response:
            return response.status, response.read(), dict(response.getheaders())


def send(connection: http.client.HTTPConnection, text: str, **options: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": True} | options
    connection.request("POST", "/v1/chat/completions", json.dumps(body))


def chunks(body: bytes) -> list[Any]:
    """The decoded events of a stream; "[DONE]" as it is."""
    events = [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event]
    return [event if event == "[DONE]" else json.loads(event) for event in events]


def text_of(body: bytes, field: str = "content") -> str:
    return "".join(
        choice["delta"].get(field, "")
        for chunk in chunks(body)
        if chunk != "[DONE]"
        for choice in chunk["choices"]
    )


def test_the_text_depends_on_its_length_and_the_message_alone():
    assert reply_text(40, "a") == reply_text(40, "a") == "".join(reply_pieces(40, "a"))
    assert reply_text(40, "a") != reply_text(40, "b")
    assert len(reply_pieces(40, "a")) == 40
    assert reply_text(0, "a") == ""
    # Written down, so that every process and machine agrees.
    assert reply_text(6, "hello") == "was größer, measured of extraordinarily"


def test_the_text_has_no_white_space_at_its_ends_and_odd_characters_within():
    for number in range(50):
        text = reply_text(3, str(number))
        assert text == text.strip() != ""
    long = reply_text(1_000, "all")
    for odd in ("🙂", "👩‍🔬", "日本語", "ß", "\n\n", '"', "\\", "<b>", "&"):
        assert odd in long
    assert len({len(piece) for piece in PIECES}) > 8, "need words of many lengths"


def test_it_streams_the_text_and_ends_it(stub):
    status, body, headers = ask(stub, "[[tokens=30 rate=0]] hi")

    assert status == 200
    assert headers["Content-Type"] == "text/event-stream"
    assert text_of(body) == reply_text(30, "[[tokens=30 rate=0]] hi")
    assert chunks(body)[-1] == "[DONE]"
    assert chunks(body)[-2]["choices"][0]["finish_reason"] == "stop"


def test_without_directives_it_says_24_tokens(stub):
    _, body, _ = ask(stub, "hi")

    assert text_of(body) == reply_text(24, "hi")


def test_only_the_last_user_message_counts(stub):
    messages = [
        {"role": "user", "content": "[[status=500]]"},
        {"role": "assistant", "content": "oh"},
        {"role": "user", "content": [{"type": "text", "text": "[[tokens=2]]"}]},
    ]

    status, body, _ = ask(stub, "", messages=messages)

    assert status == 200
    assert text_of(body) == reply_text(2, "[[tokens=2]]")


def test_it_reasons_first_and_counts_it(stub):
    text = "[[reasoning=4 tokens=2 rate=0]]"

    _, body, _ = ask(stub, text, stream_options={"include_usage": True})

    assert text_of(body, "reasoning_content") == reasoning_text(4, text)
    assert text_of(body) == reply_text(2, text)
    usage = chunks(body)[-2]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 6
    assert usage["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("[[tokens=2]]", {}),
        ("[[tokens=2 nousage=1]]", {"stream_options": {"include_usage": True}}),
    ],
)
def test_it_sends_usage_only_when_asked_and_allowed(stub, text, options):
    _, body, _ = ask(stub, text, **options)

    assert b"usage" not in body


def test_max_tokens_cuts_the_reply(stub):
    text = "[[tokens=9 rate=0]]"

    _, body, _ = ask(stub, text, max_tokens=3)

    assert text_of(body) == "".join(reply_pieces(9, text)[:3])
    assert chunks(body)[-2]["choices"][0]["finish_reason"] == "length"


def test_it_answers_in_one_piece_too(stub):
    _, body, _ = ask(stub, "[[tokens=5]]", stream=False)

    answer = json.loads(body)
    assert answer["choices"][0]["message"]["content"] == reply_text(5, "[[tokens=5]]")
    assert answer["usage"]["completion_tokens"] == 5


def test_it_refuses_the_first_requests_of_a_key_and_then_answers(stub):
    text = "[[status=429 code=slow_down retry_after=3 fail=2 key=k tokens=1]]"

    answers = [ask(stub, text) for _ in range(3)]

    assert [status for status, _, _ in answers] == [429, 429, 200]
    assert answers[0][2]["Retry-After"] == "3"
    assert json.loads(answers[0][1])["error"]["code"] == "slow_down"


def test_a_word_that_is_no_directive_is_refused(stub):
    status, body, _ = ask(stub, "[[tokns=3]]")

    assert status == 400
    assert b"tokns" in body


def test_it_can_drop_the_connection(stub):
    with pytest.raises(http.client.IncompleteRead):
        ask(stub, "[[cut=2 rate=0]]")


def test_it_can_reset_the_connection_before_the_first_byte(stub):
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        ask(stub, "[[reset=1]]")


def test_it_can_end_short_report_an_error_and_send_garbage(stub):
    _, short, _ = ask(stub, "[[short=2 rate=0]]")
    assert text_of(short) == "".join(reply_pieces(24, "[[short=2 rate=0]]")[:2])
    assert b"DONE" not in short

    _, error, _ = ask(stub, "[[error=2 rate=0]]")
    assert "error" in chunks(error)[-1]

    _, garbage, _ = ask(stub, "[[garbage=2 rate=0]]")
    with pytest.raises(ValueError, match=r"codec|delimiter|control"):
        chunks(garbage)


def test_it_notices_that_the_client_hung_up(stub):
    connection = connect(stub)
    send(connection, "[[silent=1]]")
    stub.wait(active=1)

    connection.close()

    stub.wait(active=0, aborted=1)
    assert stub.finished == 0


def test_it_holds_until_released(stub):
    with closing(connect(stub)) as connection:
        send(connection, "[[hold=1 tokens=3 rate=0 key=gate]]")
        stub.wait(held=1)
        assert stub.finished == 0

        stub.release("gate")

        assert chunks(connection.getresponse().read())[-1] == "[DONE]"
    stub.wait(active=0, finished=1, held=0)


def test_waiting_for_what_does_not_come_ends(stub):
    with pytest.raises(TimeoutError):
        stub.wait(active=5, timeout=0.2)


def test_it_keeps_requests_until_it_is_reset(stub):
    ask(stub, "[[tokens=1]] one")
    ask(stub, "[[status=500]] two")

    assert [r["messages"][0]["content"][-3:] for r in stub.requests] == ["one", "two"]
    assert len(stub.headers) == stub.connections == 2
    stub.reset()
    assert stub.requests == []
    assert stub.finished == stub.aborted == stub.active == 0


def going_on(text: str, prefix: str, **options: Any) -> dict[str, Any]:
    """The messages of a request that asks for the rest of a reply."""
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": prefix}]
    return {"messages": messages, "stream_options": {"include_usage": True}, **options}


@pytest.mark.parametrize("cut_at", [7, 8])  # after a piece, and within one
def test_it_goes_on_after_the_beginning_of_a_reply(stub, cut_at):
    text = "[[tokens=30 rate=0 reasoning=3]] hi"
    whole = reply_text(30, text)
    prefix = whole[: len("".join(reply_pieces(30, text)[:7])) + cut_at - 7]

    _, body, _ = ask(stub, "", **going_on(text, prefix))

    assert prefix + text_of(body) == whole
    assert text_of(body, "reasoning_content") == ""
    assert chunks(body)[-2]["usage"]["completion_tokens"] == 23
    assert stub.calls[0]["prefix"] == len(prefix)


def test_a_fault_comes_at_the_same_token_when_it_goes_on(stub):
    text = "[[tokens=30 rate=0 short=9]] hi"
    prefix = "".join(reply_pieces(30, text)[:7])

    _, body, _ = ask(stub, "", **going_on(text, prefix))

    assert text_of(body) == "".join(reply_pieces(30, text)[7:9])


def test_after_a_whole_reply_it_has_nothing_more_to_say(stub):
    text = "[[tokens=3 rate=0]] hi"

    _, body, _ = ask(stub, "", **going_on(text, reply_text(3, text)))

    assert text_of(body) == ""
    assert chunks(body)[-1] == "[DONE]"


def test_it_refuses_to_go_on_after_what_it_never_said(stub):
    status, body, _ = ask(stub, "", **going_on("[[tokens=3]] hi", "No!"))

    assert status == 400
    assert b"bad_prefix" in body


def test_it_tells_what_became_of_each_call(stub):
    ask(stub, "[[tokens=3 rate=0]] whole", stream_options={"include_usage": True})
    ask(stub, "[[status=500]] refused")
    with pytest.raises(http.client.IncompleteRead):
        ask(stub, "[[cut=2 rate=0]] broken")
    with closing(connect(stub)) as connection:
        send(connection, "[[silent=1 reasoning=2 rate=0]] aborted")
        stub.wait(active=1)
    stub.wait(active=0)

    told = [
        (call["message"].split()[-1], call["ended"], call["sent"], call["reasoned"])
        for call in stub.calls
    ]
    assert told[:3] == [
        ("whole", "finished", 3, 0),
        ("refused", "refused", 0, 0),
        ("broken", "broken", 2, 0),
    ]
    assert told[3][:2] == ("aborted", "aborted")
    assert [call["usage"] and call["usage"]["completion_tokens"] for call in stub.calls] == [
        3,
        None,
        None,
        None,
    ]
    stub.reset()
    assert stub.calls == []


def test_it_can_break_all_connections_at_once(stub):
    with closing(connect(stub)) as connection:
        send(connection, "[[silent=1 rate=0]]")
        stub.wait(active=1)

        stub.cut()

        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            connection.getresponse().read()
    stub.wait(active=0)
    assert stub.calls[0]["ended"] == "broken"
    assert ask(stub, "[[tokens=1]]")[0] == 200


async def test_it_can_be_away_for_a_while_and_remembers_its_calls(stub):
    ask(stub, "[[tokens=1]]")

    away = asyncio.create_task(asyncio.to_thread(stub.away, 1.0))
    # Until it has gone. A connection that it did not take any more is reset instead.
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):  # noqa: PT012
        while True:
            (await asyncio.open_connection(*address(stub)))[1].close()
    await away

    assert len(stub.calls) == 1
    assert ask(stub, "[[tokens=1]]")[0] == 200


async def test_a_test_may_ask_it_from_a_coroutine(stub):
    _, writer = await asyncio.open_connection(*address(stub))
    body = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "[[silent=0]]"}], "stream": True}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await asyncio.to_thread(stub.wait, active=1)

    writer.close()
    await writer.wait_closed()

    stub.wait(active=0, aborted=1)  # it blocks, but the stub needs nothing of this process


def address(stub: StubProvider) -> tuple[str, int]:
    host, port = stub.url.split("/")[2].split(":")
    return host, int(port)


def test_it_ends_with_the_process_that_started_it():
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.stub_llm", "--until-stdin-ends"],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")

    process.communicate(timeout=20)  # closes its input, as the end of our process would

    assert process.returncode == 0


def test_stopping_twice_is_fine_and_nothing_listens_afterwards():
    stub = StubProvider()
    stub.start()
    where = address(stub)
    stub.stop()
    stub.stop()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(where, timeout=5)
