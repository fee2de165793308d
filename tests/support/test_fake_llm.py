"""The fake provider does what other tests, the chaos rounds and the bench ask of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from bench.tally import Tally
from tests.support.fake_llm import FakeLLM, reasoning_text, reply_pieces, reply_text, stamps
from tests.support.fake_llm.replies import PIECES
from tests.support.stack import PROJECT


@pytest.fixture(scope="module")
def running() -> Iterator[FakeLLM]:
    with FakeLLM() as llm:
        yield llm


@pytest.fixture
def llm(running: FakeLLM) -> FakeLLM:
    running.reset()
    return running


def connect(llm: FakeLLM) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(llm.url.split("/")[2], timeout=10)


def send(connection: http.client.HTTPConnection, text: str, **options: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": True} | options
    connection.request("POST", "/v1/chat/completions", json.dumps(body))


def ask(llm: FakeLLM, text: str, **options: Any) -> tuple[int, bytes, dict[str, str]]:
    """Status, whole body and headers of one request."""
    with closing(connect(llm)) as connection:
        send(connection, text, **options)
        response = connection.getresponse()
        with response:
            return response.status, response.read(), dict(response.getheaders())


def chunks(body: bytes) -> list[Any]:
    """The decoded events of a stream; "[DONE]" as it is."""
    events = [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event]
    return [event if event == "[DONE]" else json.loads(event) for event in events]


def pieces_of(body: bytes, field: str = "content") -> list[str]:
    choices = (chunk["choices"] for chunk in chunks(body) if chunk != "[DONE]")
    deltas = (choice["delta"].get(field, "") for found in choices for choice in found)
    return [piece for piece in deltas if piece]


def text_of(body: bytes, field: str = "content") -> str:
    return "".join(pieces_of(body, field))


# --- Replies ----------------------------------------------------------------------------------


def test_text_depends_on_length_and_message_alone():
    assert reply_text(40, "a") == reply_text(40, "a") == "".join(reply_pieces(40, "a"))
    assert reply_text(40, "a") != reply_text(40, "b")
    assert len(reply_pieces(40, "a")) == 40
    assert reply_text(0, "a") == ""
    # Written down, so that every process and machine agrees.
    assert reply_text(6, "hello") == "was größer, measured of extraordinarily"


def test_text_has_odd_characters_but_clean_ends():
    for number in range(50):
        text = reply_text(3, str(number))
        assert text == text.strip() != ""
    long = reply_text(1_000, "all")
    for odd in ("🙂", "👩‍🔬", "日本語", "ß", "\n\n", '"', "\\", "<b>", "&"):
        assert odd in long
    assert len({len(piece) for piece in PIECES}) > 8, "need words of many lengths"


@pytest.mark.parametrize("words", ["rate=0", "rate=500", "rate=500 at_once=25", "rate=0 chunk=7"])
def test_stream_has_the_whole_text_and_its_end(llm, words):
    text = f"[[tokens=30 {words}]] hi"

    status, body, headers = ask(llm, text)

    assert status == 200
    assert headers["Content-Type"] == "text/event-stream"
    assert pieces_of(body) == reply_pieces(30, text)
    first, *_, finish, done = chunks(body)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert done == "[DONE]"


def test_only_the_last_user_message_counts(llm):
    messages = [
        {"role": "user", "content": "[[status=500]]"},
        {"role": "assistant", "content": "oh"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]

    _, body, _ = ask(llm, "", messages=messages)

    assert text_of(body) == reply_text(24, "hi"), "without directives: 24 tokens"


def test_reasoning_comes_first_and_is_counted(llm):
    text = "[[reasoning=4 tokens=2 rate=0]]"

    _, body, _ = ask(llm, text, stream_options={"include_usage": True})

    assert text_of(body, "reasoning_content") == reasoning_text(4, text)
    assert text_of(body) == reply_text(2, text)
    usage = chunks(body)[-2]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 6
    assert usage["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}


@pytest.mark.parametrize(
    ("text", "options"),
    [("hi", {}), ("[[nousage=1]]", {"stream_options": {"include_usage": True}})],
)
def test_usage_is_sent_only_when_asked_and_allowed(llm, text, options):
    assert b"usage" not in ask(llm, text, **options)[1]


def test_max_tokens_cuts_the_reply(llm):
    text = "[[tokens=9 rate=0]]"

    _, body, _ = ask(llm, text, max_tokens=3)

    assert pieces_of(body) == reply_pieces(9, text)[:3]
    assert chunks(body)[-2]["choices"][0]["finish_reason"] == "length"


def test_length_cuts_reply_until_it_is_continued(llm):
    text = "[[tokens=9 rate=0 length=4]]"
    whole = reply_pieces(9, text)

    def further(*messages: str) -> tuple[list[str], str]:
        asked = [
            {"role": role, "content": content}
            for role, content in zip(["user", "assistant", "user"], messages, strict=False)
        ]
        body = ask(llm, "", messages=asked)[1]
        return pieces_of(body), chunks(body)[-2]["choices"][0]["finish_reason"]

    assert further(text) == (whole[:4], "length")
    assert further(text, "".join(whole[:2])) == (whole[2:4], "length")
    assert further(text, "".join(whole[:4])) == (whole[4:], "stop")
    assert further(text, "".join(whole[:4]), "Go on.") == (whole[4:], "stop")
    again = "[[tokens=2 rate=0]]"
    assert further(text, "".join(whole[:4]), again) == (reply_pieces(2, again), "stop")


def test_reply_can_come_in_one_piece(llm):
    answer = json.loads(ask(llm, "[[tokens=5]]", stream=False)[1])

    assert answer["choices"][0]["message"]["content"] == reply_text(5, "[[tokens=5]]")
    assert answer["usage"]["completion_tokens"] == 5


# --- Continuing -------------------------------------------------------------------------------


def rest(llm: FakeLLM, text: str, prefix: str) -> tuple[int, bytes]:
    """Status and body of a request for the rest of a reply."""
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": prefix}]
    return ask(llm, "", messages=messages, stream_options={"include_usage": True})[:2]


@pytest.mark.parametrize("beyond", [0, 1])  # cut after a piece, and within one
def test_reply_goes_on_after_its_beginning(llm, beyond):
    text = "[[tokens=30 rate=0 reasoning=3]] hi"
    whole = reply_text(30, text)
    prefix = whole[: len("".join(reply_pieces(30, text)[:7])) + beyond]

    _, body = rest(llm, text, prefix)

    assert prefix + text_of(body) == whole
    assert text_of(body, "reasoning_content") == ""
    assert chunks(body)[-2]["usage"]["completion_tokens"] == 23
    assert llm.calls[0].prefix == len(prefix)


@pytest.mark.parametrize(
    ("words", "of_it", "left"), [("short=9", 7, slice(7, 9)), ("", 30, slice(0, 0))]
)
def test_continued_reply_stops_where_it_should(llm, words, of_it, left):
    """Faults count the tokens that the request brought along; after a whole reply nothing is left."""
    text = f"[[tokens=30 rate=0 {words}]] hi"
    whole = reply_pieces(30, text)

    assert pieces_of(rest(llm, text, "".join(whole[:of_it]))[1]) == whole[left]


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("[[tokns=3]]", {}, b"tokns"),
        ("[[tokens=many]]", {}, b"tokens"),
        ("hi", {"messages": [{"role": "assistant", "content": "No!"}]}, b"not the beginning"),
    ],
)
def test_unknown_wishes_are_refused(llm, text, options, reason):
    status, body, _ = ask(llm, text, **options)

    assert status == 400
    assert reason in json.loads(body)["error"]["message"].encode()


# --- Faults -----------------------------------------------------------------------------------


def test_first_requests_of_a_key_are_refused(llm):
    text = "[[status=429 code=slow_down retry_after=3 fail=2 key=k tokens=1]]"

    answers = [ask(llm, text) for _ in range(3)]

    assert [status for status, _, _ in answers] == [429, 429, 200]
    assert answers[0][2]["Retry-After"] == "3"
    assert json.loads(answers[0][1])["error"]["code"] == "slow_down"


def test_connection_is_dropped_or_reset_on_demand(llm):
    with pytest.raises(http.client.IncompleteRead) as cut:
        ask(llm, "[[cut=2 rate=0 chunk=9]]")
    assert text_of(cut.value.partial) == "".join(reply_pieces(24, "[[cut=2 rate=0 chunk=9]]")[:2])
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        ask(llm, "[[reset=1]]")


def test_stream_can_end_in_three_wrong_ways(llm):
    _, short, _ = ask(llm, "[[short=2 rate=0]]")
    assert pieces_of(short) == reply_pieces(24, "[[short=2 rate=0]]")[:2]
    assert b"DONE" not in short

    _, error, _ = ask(llm, "[[error=2 rate=0]]")
    assert "error" in chunks(error)[-1]

    _, garbage, _ = ask(llm, "[[garbage=2 rate=0]]")
    with pytest.raises(ValueError, match=r"codec|delimiter|control"):
        chunks(garbage)


def test_stream_is_held_until_its_release(llm):
    with closing(connect(llm)) as connection:
        send(connection, "[[hold=1 tokens=3 rate=0 key=gate]]")
        llm.wait(held=1)
        assert llm.counts["finished"] == 0

        llm.release("gate")

        assert chunks(connection.getresponse().read())[-1] == "[DONE]"
    llm.wait(active=0, finished=1, held=0)


# --- The record -------------------------------------------------------------------------------


def test_requests_are_kept_until_a_reset(llm):
    ask(llm, "[[tokens=1]] one")
    ask(llm, "[[status=500]] two")

    assert [r["messages"][0]["content"][-3:] for r in llm.requests] == ["one", "two"]
    assert len(llm.headers) == llm.connections == 2
    llm.reset()
    assert llm.requests == llm.calls == []
    assert set(llm.counts.values()) == {0}


def test_record_has_the_outcome_of_each_call(llm):
    ask(llm, "[[tokens=3 rate=0]] whole", stream_options={"include_usage": True})
    ask(llm, "[[status=500]] refused")
    with pytest.raises(http.client.IncompleteRead):
        ask(llm, "[[cut=2 rate=0]] broken")
    before = time.time_ns()
    with closing(connect(llm)) as connection:
        send(connection, "[[silent=1 reasoning=2 rate=0 key=k]] aborted")
        llm.wait(active=1)
    llm.wait(active=0, aborted=1)

    calls = llm.calls
    assert [(call.message.split()[-1], call.ended, call.sent, call.reasoned) for call in calls] == [
        ("whole", "finished", 3, 0),
        ("refused", "refused", 0, 0),
        ("broken", "broken", 2, 0),
        ("aborted", "aborted", 1, 2),
    ]
    assert [call.usage and call.usage["completion_tokens"] for call in calls] == [
        3,
        None,
        None,
        None,
    ]
    assert calls[3].key == "k"
    assert before < calls[3].ended_at < time.time_ns()


def test_waiting_in_vain_times_out(llm):
    with pytest.raises(TimeoutError):
        llm.wait(active=5, timeout=0.2)


async def test_blocking_calls_need_nothing_of_this_process(llm):
    body = b'{"stream": true, "messages": [{"role": "user", "content": "[[silent=0]]"}]}'
    _, writer = await asyncio.open_connection(*address(llm))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body))
    writer.write(body)
    await asyncio.to_thread(llm.wait, active=1)

    writer.close()
    await writer.wait_closed()

    llm.wait(active=0, aborted=1)


# --- Breaking and ending ----------------------------------------------------------------------


def test_all_connections_can_be_broken_at_once(llm):
    with closing(connect(llm)) as connection:
        send(connection, "[[silent=1 rate=0]]")
        llm.wait(active=1)

        llm.cut()

        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            connection.getresponse().read()
    llm.wait(active=0)
    assert llm.calls[0].ended == "broken"
    assert ask(llm, "[[tokens=1]]")[0] == 200


async def test_record_survives_a_restart(llm):
    ask(llm, "[[tokens=1]]")

    away = asyncio.create_task(asyncio.to_thread(llm.away, 1.0))
    # Until it listens no longer; a connection that it did not accept before is reset instead.
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):  # noqa: PT012
        while True:
            (await asyncio.open_connection(*address(llm)))[1].close()
    await away

    assert len(llm.calls) == 1
    assert ask(llm, "[[tokens=1]]")[0] == 200


def address(llm: FakeLLM) -> tuple[str, int]:
    host, port = llm.url.split("/")[2].split(":")
    return host, int(port)


def test_process_ends_with_its_parent():
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fake_llm"],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("http://127.0.0.1:")

    process.communicate(timeout=20)  # closes its input, as the end of our process would

    assert process.returncode == 0


def test_nothing_listens_after_stopping_twice():
    llm = FakeLLM()
    llm.start()
    where = address(llm)
    llm.stop()
    llm.stop()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(where, timeout=5)


# --- Stamps and groups, for the bench ---------------------------------------------------------


@pytest.mark.parametrize("words", ["rate=0", "rate=500", "at_once=240 rate=500"])
def test_stamped_tokens_carry_number_and_time(llm, words):
    before = time.time_ns() // 1000
    _, body, _ = ask(
        llm, f"[[stamps=1 tokens=250 {words}]]", stream_options={"include_usage": True}
    )
    after = time.time_ns() // 1000

    tokens = [token.strip().rstrip(stamps.END).split(".") for token in pieces_of(body)]
    assert [int(number) for _, number in tokens] == list(range(250))
    delays = [stamps.delay(int(stamp, 36), after) for stamp, _ in tokens]
    assert all(0 <= delay <= after - before for delay in delays)
    assert chunks(body)[-2]["usage"]["completion_tokens"] == 250
    tally = Tally(250)
    tally.feed(text_of(body))
    assert tally.is_clean


def test_delay_survives_the_wrap_of_stamps():
    assert stamps.delay(stamps.SPAN - 10, 5 * stamps.SPAN + 20) == 30
    assert stamps.delay(100, stamps.SPAN + 40) == -60  # the clock was set back


async def test_group_of_streams_ends_over_a_time(llm):
    asked = [f"[[stamps=1 tokens=4000 rate=200 key={key} group=one]]" for key in "abc"]
    bodies = asyncio.gather(*(asyncio.to_thread(ask, llm, text) for text in asked))
    await asyncio.to_thread(llm.wait, active=3)
    await asyncio.sleep(0.2)

    await asyncio.to_thread(llm.end, "one", over=0.1)

    lengths = {
        key: len(pieces_of(body)) for key, (_, body, _) in zip("abc", await bodies, strict=True)
    }
    assert {call.key: call.sent for call in llm.calls if call.group == "one"} == lengths
    assert max(lengths.values()) < 4000
