"""The provider over real connections: to the fake one, and to servers that misbehave on purpose."""

from __future__ import annotations

import asyncio
import gc
import gzip
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from email.utils import formatdate
from typing import Any

import pytest
import pytest_asyncio

from chat.llm.decoder import Event, Finish, ReasoningDelta, TextDelta, Usage
from chat.llm.errors import (
    REFUSALS,
    ProviderBusy,
    ProviderCut,
    ProviderError,
    ProviderMalformed,
    ProviderRefused,
    ProviderReported,
    ProviderTimeout,
    ProviderUnreachable,
)
from chat.llm.provider import (
    DETAIL_CHARACTERS,
    PauseReading,
    Provider,
    Watchdog,
    cap_field,
    clean,
    never_pause,
    retry_after,
)
from chat.llm.request import CompletionRequest
from chatproject.local.servers import free_port
from tests.support.fake_llm import FakeLLM, reasoning_text, reply_text


@pytest.fixture
def stub(provider_process: FakeLLM) -> FakeLLM:
    provider_process.reset()
    return provider_process


Make = Callable[..., Provider]


@pytest_asyncio.fixture
async def make(stub: FakeLLM) -> AsyncIterator[Make]:
    """Builds providers that hardly wait before a retry; closes them and checks that nothing is left."""
    made = []

    def build(**options: Any) -> Provider:
        defaults = {"base_url": stub.url, "api_key": "secret-key-1", "retry_delay": 0.01}
        made.append(Provider(**{**defaults, **options}))
        return made[-1]

    yield build
    for provider in made:
        await provider.close()
    await asyncio.sleep(0)  # transports are closed in the loop's next turn
    assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect(1)  # an unclosed connection or session warns now, not in another test


def ask(text: str, **options: Any) -> CompletionRequest:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    return CompletionRequest(model="stub", messages=messages, **({"max_tokens": 5_000} | options))


async def events_of(
    provider: Provider, text: str, pause_reading: PauseReading = never_pause, **options: Any
) -> list[Event]:
    async with aclosing(provider.stream(ask(text, **options), pause_reading)) as stream:
        return [event async for events in stream for event in events]


async def failure_of(provider: Provider, text: str) -> tuple[list[Event], ProviderError]:
    """Return the events before the failure, and the failure."""
    events: list[Event] = []
    try:
        async with aclosing(provider.stream(ask(text))) as stream:
            async for batch in stream:
                assert batch, "no empty lists"
                events.extend(batch)
    except ProviderError as error:
        return events, error
    raise AssertionError("it did not fail")


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


# --- A reply ----------------------------------------------------------------------------------


async def test_stream_is_text_finish_usage(make, stub):
    text = "[[tokens=80 rate=0]] hello"

    events = await events_of(make(), text)

    assert text_of(events) == reply_text(80, text)
    assert events[-2:] == [
        Finish("stop"),
        Usage(prompt_tokens=5, completion_tokens=80, cached_tokens=0, reasoning_tokens=0),
    ]


async def test_request_is_sent_unchanged(make, stub):
    await events_of(
        make(), "[[tokens=1]] hi", max_tokens=7, temperature=0.25, extra={"stop": ["\n"]}
    )

    assert stub.requests == [
        {
            "model": "stub",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "[[tokens=1]] hi"},
            ],
            "max_tokens": 7,
            "temperature": 0.25,
            "stop": ["\n"],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    assert stub.headers[0]["Authorization"] == "Bearer secret-key-1"


async def test_server_without_keys_needs_none(make, stub):
    assert text_of(await events_of(make(api_key=""), "[[tokens=3]]"))


@pytest.mark.parametrize(
    ("base_url", "field"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://x.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://api.groq.com/openai/v1", "max_tokens"),
        ("http://127.0.0.1:8080/v1", "max_tokens"),
        ("https://notopenai.com/v1", "max_tokens"),
    ],
)
def test_cap_field_depends_on_server(base_url, field):
    assert cap_field(base_url) == field


async def test_reasoning_is_separate_from_text(make, stub):
    text = "[[reasoning=5 tokens=6 rate=0]] why?"

    events = await events_of(make(), text)

    reasoning = [event.text for event in events if isinstance(event, ReasoningDelta)]
    assert "".join(reasoning) == reasoning_text(5, text)
    assert text_of(events) == reply_text(6, text)


async def test_capped_reply_ends_with_length(make, stub):
    text = "[[tokens=10 rate=0]]"

    events = await events_of(make(), text, max_tokens=4)

    assert Finish("length") in events
    assert reply_text(10, text).startswith(text_of(events))


async def test_tiny_network_writes_change_nothing(make, stub):
    text = "[[tokens=10 rate=0 chunk=3]] 日本"

    assert text_of(await events_of(make(), text)) == reply_text(10, text)


async def test_reply_without_usage_is_complete(make, stub):
    events = await events_of(make(), "[[tokens=2 nousage=1]]")

    assert events[-1] == Finish("stop")


async def test_200_concurrent_streams_are_exact(make, stub):
    provider = make()
    texts = [f"[[tokens=60 rate=40 hold=0 key=crowd]] {number}" for number in range(200)]

    reading = asyncio.gather(*(events_of(provider, text) for text in texts))
    await asyncio.to_thread(stub.wait, held=200)  # none waits for another's connection
    stub.release("crowd")
    replies = await reading

    for text, events in zip(texts, replies, strict=True):
        assert text_of(events) == reply_text(60, text)
    assert stub.counts == {"active": 0, "finished": 200, "aborted": 0, "failed": 0, "held": 0}


async def test_connection_is_reused(make, stub):
    provider = make()
    for number in range(5):
        await events_of(provider, f"[[tokens=2 rate=0]] {number}")

    assert stub.connections == 1


# --- Retries ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directive", "seconds"),
    [("retry_after=1", 1.0), ("retry_date=2", 0.9)],  # a date has whole seconds
)
async def test_429_is_retried_after_retry_after(make, stub, directive, seconds):
    text = f"[[status=429 {directive} fail=1 tokens=5]]"
    began = time.monotonic()

    events = await events_of(make(), text)

    assert time.monotonic() - began >= seconds
    assert text_of(events) == reply_text(5, text)
    assert len(stub.requests) == 2


async def test_too_long_retry_after_is_not_waited_for(make, stub):
    _, error = await failure_of(make(max_retry_after=5), "[[status=429 retry_after=6]]")

    assert isinstance(error, ProviderBusy)
    assert error.retry_after == 6
    assert error.retryable
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [
        *("status=500", "status=502", "status=503", "status=504", "status=529"),
        *("reset=1", "cut=0", "short=0", "error=0"),
    ],
)
async def test_fault_before_first_event_is_retried(make, stub, fault):
    text = f"[[{fault} fail=2 tokens=5]]"

    assert text_of(await events_of(make(), text)) == reply_text(5, text)
    assert len(stub.requests) == 3


async def test_last_failed_retry_is_raised(make, stub):
    _, error = await failure_of(make(), "[[status=500]]")

    assert isinstance(error, ProviderBusy)
    assert error.code == "provider_error"
    assert "HTTP 500" in error.detail
    assert len(stub.requests) == 3


@pytest.mark.parametrize(("status", "factor"), [(500, 1), (503, 4)])
def test_overloaded_server_gets_longer_delay(status, factor):
    provider = Provider(base_url="http://127.0.0.1:1/v1", api_key="")
    busy = ProviderBusy("", status=status, retry_after=None)

    first, second, none = [provider._delay(busy, retry) for retry in range(3)]

    assert 0.25 * factor <= first <= 0.75 * factor
    assert 0.5 * factor <= second <= 1.5 * factor
    assert none is None


async def test_first_retry_after_reset_is_immediate(make, stub):
    async with asyncio.timeout(30):
        await events_of(make(retry_delay=600), "[[reset=1 fail=1 tokens=1]]")

    assert len(stub.requests) == 2


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (400, "", "request"),
        (400, "context_length_exceeded", "context"),
        (500, "exceed_context_size_error", "context"),
        (401, "", "key"),
        (402, "", "quota"),
        (429, "insufficient_quota", "quota"),
        (403, "", "request"),
        (404, "model_not_found", "model"),
        (413, "", "context"),
        (400, "content_filter", "content"),
        (422, "", "request"),
        (404, "", "address"),
        (405, "", "address"),
    ],
)
async def test_refusal_is_not_retried_and_has_reason(make, stub, status, code, reason):
    _, error = await failure_of(make(), f"[[status={status} code={code}]]")

    assert isinstance(error, ProviderRefused)
    assert error.reason == reason
    assert error.message == REFUSALS[reason]
    assert not error.retryable
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "2"}, 2),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"llm_provider-retry-after": "9"}, 9),
        ({"llm_provider-retry-after-ms": "250"}, 0.25),
        ({"llm_provider-retry-after": "9", "retry-after": "2"}, 2),
        ({"retry-after": "nan"}, 0),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1m2.5s",
                "x-ratelimit-remaining-tokens": "70",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            62.5,
        ),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "120ms"}, 0.12),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1000000000000"}, 0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"}, None),  # of which unit?
        ({"x-ratelimit-reset-requests": "1s"}, None),  # of a limit that is not used up
    ],
)
def test_retry_after_is_parsed(headers, seconds):
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date():
    assert 30 < retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) <= 60


async def test_closed_port_is_unreachable(make):
    _, error = await failure_of(make(base_url=f"http://127.0.0.1:{free_port()}/v1"), "hello")

    assert isinstance(error, ProviderUnreachable)
    assert not error.dropped
    assert error.retryable
    assert "Connect call failed" in error.detail


async def test_host_that_drops_connections_is_unreachable(make):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:  # the kernel drops the connections after them
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        try:
            provider = make(
                base_url=f"http://127.0.0.1:{port}/v1", connect_timeout=0.2, max_retries=0
            )
            _, error = await failure_of(provider, "hello")
        finally:
            for filler in fillers:
                filler.close()

    assert isinstance(error, ProviderUnreachable)


# --- Faults in the middle ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "count"),
    [
        ("cut=3", ProviderCut, 3),
        ("short=3", ProviderCut, 3),
        ("error=3", ProviderReported, 3),
        ("garbage=3", ProviderMalformed, 3),
        ("garbage=0", ProviderMalformed, 0),
    ],
)
async def test_fault_after_token_is_not_retried(make, stub, fault, kind, count):
    """Nor is garbage at the beginning."""
    text = f"[[{fault} tokens=9 rate=100]]"

    events, error = await failure_of(make(), text)

    assert type(error) is kind
    assert error.code == "provider_error"
    assert reply_text(9, text).startswith(text_of(events))
    assert len(events) == count
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    ("limits", "text", "count", "tries"),
    [
        ({"silence_timeout": 1}, "[[silent=4 tokens=9 rate=0]]", 4, 1),
        ({"first_token_timeout": 1}, "[[headers=60]]", 0, 2),
        ({"first_token_timeout": 1}, "[[first=60]]", 0, 2),
        ({"first_token_timeout": 30, "wait_limit": 1}, "[[first=60 ping=0.1]]", 0, 2),
    ],
    ids=["silence", "no headers", "no first token", "keep-alives alone"],
)
async def test_silence_is_timeout_and_ends_call(make, stub, limits, text, count, tries):
    events, error = await failure_of(make(max_retries=1, **limits), text)

    assert len(events) == count
    assert isinstance(error, ProviderTimeout)
    assert error.code == "provider_timeout"
    await asyncio.to_thread(stub.wait, active=0, aborted=tries)
    assert len(stub.requests) == tries


@pytest.mark.parametrize(
    "fault", ["silent=0", "status=503 retry_after=20"], ids=["silence", "overload"]
)
async def test_fallback_leaves_no_time_for_retries(make, stub, fault):
    text = f"[[{fault} tokens=3]]"
    provider = make(first_token_timeout=1)

    with pytest.raises(ProviderError):
        await events_of(provider, text, has_fallback=True)

    assert len(stub.requests) == 1


async def test_silence_after_headers_is_retried(make, stub):
    text = "[[silent=0 fail=1 tokens=3]]"

    assert text_of(await events_of(make(first_token_timeout=1), text)) == reply_text(3, text)
    assert len(stub.requests) == 2


async def test_silence_without_headers_is_retried(make):
    tries = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.append(1)
        if len(tries) == 1:
            await reader.read()  # until the client gives up
        writer.write(HEAD + b"\r\n" + CHUNK + END)

    async with server(answer) as url:
        events = await events_of(make(base_url=url, first_token_timeout=0.5), "hello")

    assert text_of(events) == "Hi."
    assert len(tries) == 2


async def test_silence_is_retried_once_among_faults(make, stub):
    provider = make(first_token_timeout=0.5, max_retries=5)

    _, error = await failure_of(provider, "[[status=500 fail=1 headers=60]]")

    assert isinstance(error, ProviderTimeout)
    assert len(stub.requests) == 3


async def test_keep_alives_reset_silence_clock(make, stub):
    text = "[[first=2.5 ping=0.1 tokens=2]]"

    events = await events_of(make(first_token_timeout=1.5), text)

    assert text_of(events) == reply_text(2, text)


async def test_long_reply_may_exceed_every_limit(make, stub):
    provider = make(first_token_timeout=1, silence_timeout=1, wait_limit=1, tail_timeout=1)
    text = "[[tokens=40 rate=20]]"

    events = await events_of(provider, text)

    assert text_of(events) == reply_text(40, text)
    assert isinstance(events[-1], Usage)


async def test_time_of_caller_does_not_count(make, stub):
    provider = make(first_token_timeout=1, silence_timeout=1, wait_limit=1)
    text = "[[tokens=4 rate=20]]"
    async with aclosing(provider.stream(ask(text))) as stream:
        events = await anext(stream)
        await asyncio.sleep(1.5)
        async for batch in stream:
            events += batch

    assert text_of(events) == reply_text(4, text)


# --- Pausing ----------------------------------------------------------------------------------


class Ticks:
    """Pauses reading until the next `tick`."""

    def __init__(self) -> None:
        self.paused: list[Callable[[], None]] = []

    def pause_reading(self, resume: Callable[[], None]) -> bool:
        self.paused.append(resume)
        return True

    async def until_paused(self) -> None:
        while not self.paused:
            await asyncio.sleep(0.01)

    def tick(self) -> None:
        paused, self.paused = self.paused, []
        for resume in paused:
            resume()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tick every 20 ms, until the block ends."""

        async def tick_on() -> None:
            while True:
                await asyncio.sleep(0.02)
                self.tick()

        ticking = asyncio.create_task(tick_on())
        try:
            yield
        finally:
            ticking.cancel()
            await asyncio.wait([ticking])


async def test_paused_stream_is_read_at_tick(make, stub):
    text = "[[tokens=20 rate=0 hold=1 key=held]]"
    ticks = Ticks()
    async with aclosing(make().stream(ask(text), ticks.pause_reading)) as stream:
        events = await anext(stream)  # the first does not wait
        reading = asyncio.create_task(anext(stream))
        await ticks.until_paused()
        stub.release("held")
        await asyncio.to_thread(stub.wait, finished=1)
        await asyncio.sleep(0.05)
        assert not reading.done()

        ticks.tick()
        events += await reading
        async with ticks.running():
            events += [event async for batch in stream for event in batch]

    assert text_of(events) == reply_text(20, text)


async def test_paused_streams_are_exact_and_reuse_connections(make, stub):
    provider, ticks = make(), Ticks()
    async with ticks.running():
        for turn in range(2):
            texts = [f"[[tokens=40 rate=200]] {turn} {number}" for number in range(20)]
            replies = await asyncio.gather(
                *(events_of(provider, text, ticks.pause_reading) for text in texts)
            )
            assert [text_of(events) for events in replies] == [reply_text(40, t) for t in texts]

    assert stub.connections == 20


async def test_paused_stream_can_be_cancelled(make, stub):
    ticks = Ticks()
    text = "[[tokens=900 rate=50]]"
    reading = asyncio.create_task(events_of(make(), text, ticks.pause_reading))
    await ticks.until_paused()
    reading.cancel()
    await asyncio.wait([reading])
    await asyncio.to_thread(stub.wait, active=0, aborted=1)

    ticks.tick()  # too late, and harmless


async def test_paused_stream_that_breaks_is_cut(make, stub):
    ticks = Ticks()
    async with ticks.running():
        with pytest.raises(ProviderCut):
            await events_of(make(), "[[tokens=20 rate=50 cut=5]]", ticks.pause_reading)


# --- Stopping ---------------------------------------------------------------------------------


async def test_closing_stream_ends_call(make, stub):
    stream = make().stream(ask("[[hold=3 tokens=9 rate=0]]"))
    events: list[Event] = []
    while len(events) < 3:
        events += await anext(stream)

    await stream.aclose()

    await asyncio.to_thread(stub.wait, active=0, aborted=1)


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("[[headers=60]]", {"active": 1}, {"active": 0, "aborted": 1}),
        ("[[first=60]]", {"active": 1}, {"active": 0, "aborted": 1}),
        ("[[silent=2]]", {"active": 1}, {"active": 0, "aborted": 1}),
        ("[[status=429 retry_after=20]]", {"failed": 1}, {"failed": 1}),
    ],
    ids=["headers", "first token", "later", "retry"],
)
async def test_cancelling_reader_ends_call(make, stub, text, before, after):
    task = asyncio.create_task(events_of(make(), text))
    await asyncio.to_thread(stub.wait, **before)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await asyncio.to_thread(stub.wait, **after)
    assert len(stub.requests) == 1


async def test_other_cancellation_has_priority_over_watchdog():
    loop = asyncio.get_running_loop()
    made: list[Watchdog] = []

    async def read() -> None:
        made.append(Watchdog(loop))
        await made[0].wait(asyncio.Event().wait(), loop.time() + 60)

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    made[0]._deadline = 0.0
    made[0]._check()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    made[0].cancel()


async def test_watchdog_keeps_deadline_after_longer_ones():
    loop = asyncio.get_running_loop()
    watchdog = Watchdog(loop)
    await watchdog.wait(asyncio.sleep(0), loop.time() + 60)
    await watchdog.wait(asyncio.sleep(0.2), loop.time() + 30)  # its timer waits for this one
    began = loop.time()

    with pytest.raises(TimeoutError):
        await watchdog.wait(asyncio.Event().wait(), began + 0.1)

    assert 0.1 <= loop.time() - began < 10
    watchdog.cancel()


# --- Logging ----------------------------------------------------------------------------------


async def test_key_and_prompt_are_not_logged(make, stub, caplog):
    caplog.set_level(logging.DEBUG, logger="chat.llm")
    prompt = "[[status=500 echo=1]] My PIN is 4711, and do not tell anyone about the sea shells."

    _, error = await failure_of(make(), prompt)

    assert len(stub.requests) == 3
    assert len(caplog.records) == 2, "need the retries in the log for this test to mean anything"
    for logged in (error.detail, str(error), caplog.text):
        assert "secret-key-1" not in logged
        assert "4711" not in logged
        assert "shells" not in logged
    assert "told to refuse" in error.detail
    assert error.__cause__ is None, "the library's error would quote the answer in a traceback"
    assert error.__suppress_context__


@pytest.mark.parametrize(
    ("detail", "messages", "expected"),
    [
        ("bad key sk-1 given", [], "bad key [key] given"),
        ("cannot say hello there", ["hello there"], "cannot say […]"),
        ("cannot say hi", ["hi"], "cannot say hi"),
        (
            "in 'the quick brown fox jumps over' …",
            ["so the quick brown fox jumps over the dog"],
            "in '[…]' …",
        ),
        ("a  lot\n of space", [], "a lot of space"),
        ("x" * 5_000, [], "x" * DETAIL_CHARACTERS),
    ],
)
def test_detail_is_cleaned_for_log(detail, messages, expected):
    sent = [{"role": "user", "content": [{"type": "text", "text": text}]} for text in messages]

    assert clean(detail, sent, ["sk-1"]) == expected


# --- Servers that misbehave -------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNK = b'data: {"choices":[{"delta":{"content":"Hi."}}]}\n\n'
END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Run a server that reads a request and calls `answer` for the rest; yields its base URL."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await read_request(reader)
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            assert reader.at_eof() or writer.is_closing()
        finally:
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"


async def read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    await reader.readexactly(length)


def sends(data: bytes) -> Answer:
    """Return an answer of these bytes, whatever the request."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer


async def test_busy_words_of_refusal_allow_one_retry(make):
    body = b'{"error":{"message":"Service temporarily unavailable, try again later"}}'
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
    tries = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.append(1)
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    async with server(answer) as url:
        _, error = await failure_of(make(base_url=url, max_retries=5), "hello")

    assert error.cause == "busy"
    assert len(tries) == 2


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01 220 welcome\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n<html>\n</html>",
    ],
    ids=["not HTTP", "a page"],
)
async def test_answer_without_stream_is_malformed(make, data):
    async with server(sends(data)) as url:
        _, error = await failure_of(make(base_url=url), "hello")

    assert isinstance(error, ProviderMalformed)


def redirects(status: int, target: str) -> Answer:
    return sends(
        f"HTTP/1.1 {status} Moved\r\nLocation: {target}\r\nConnection: close\r\n"
        "Content-Length: 0\r\n\r\n".encode()
    )


@pytest.mark.parametrize("status", [307, 308])
async def test_redirect_on_host_keeps_request(make, stub, status):
    async with server(redirects(status, f"{stub.url}/chat/completions")) as url:
        events = await events_of(make(base_url=url), "[[tokens=2]]")

    assert text_of(events) == reply_text(2, "[[tokens=2]]")
    assert len(stub.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_other_redirect_is_fault_of_address(make, stub, caplog, status):
    target = stub.url.replace("127.0.0.1", "localhost") + "/chat/completions"
    async with server(redirects(status, target)) as url:
        _, error = await failure_of(make(base_url=url), "[[tokens=2]]")

    assert (error.cause, error.message) == ("address", REFUSALS["address"])
    assert target in error.detail
    assert url in error.detail
    assert stub.requests == []


@pytest.mark.parametrize("target", ["", "http://[::1/v1", "/v1/chat/completions"])
async def test_redirect_without_end_is_fault_of_address(make, target):
    async with server(redirects(308, target)) as url:
        _, error = await failure_of(make(base_url=url), "hello")

    assert error.cause == "address"


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(CHUNK + END),
        b"Content-Length: 999\r\n\r\n" + CHUNK + END,
        b"Content-Length: 999\r\n\r\n" + CHUNK + END.strip(),
        b"\r\n" + CHUNK + END.strip(),
    ],
    ids=["compressed unasked", "broken after the end", "broken last line", "open last line"],
)
async def test_irregular_stream_is_read(make, body):
    async with server(sends(HEAD + body)) as url:
        events = await events_of(make(base_url=url), "hello")

    assert events == [TextDelta("Hi."), Finish("stop")]


@pytest.mark.parametrize("tail", [b"", b"data: [DONE]\n\n"], ids=["no-done", "done"])
async def test_connection_left_open_is_not_waited_for(make, tail):
    closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n" + CHUNK + END + tail)
        await reader.read()  # until the client closes the connection
        closed.set()

    async with server(answer) as url, asyncio.timeout(30):
        events = await events_of(make(base_url=url, tail_timeout=0.2), "hello")
        await closed.wait()

    assert events == [TextDelta("Hi."), Finish("stop")]


EARLY_END = b'data: {"choices":[{"delta":{"reasoning":"t"},"finish_reason":"stop"}]}\n\n'


async def test_text_after_premature_finish_is_waited_for(make):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n" + EARLY_END)
        await asyncio.sleep(0.5)
        writer.write(CHUNK + END)

    async with server(answer) as url:
        events = await events_of(make(base_url=url, tail_timeout=0.05), "hello")

    assert events == [ReasoningDelta("t"), Finish("stop"), TextDelta("Hi."), Finish("stop")]


async def test_reply_without_text_ends_after_its_own_limit(make):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n" + EARLY_END)
        await reader.read()  # until the client closes the connection

    async with server(answer) as url, asyncio.timeout(30):
        events = await events_of(make(base_url=url, late_text_timeout=0.2), "hello")

    assert events == [ReasoningDelta("t"), Finish("stop")]


async def test_connection_lost_before_late_text_is_cut(make):
    async with server(sends(HEAD + b"Content-Length: 999\r\n\r\n" + EARLY_END)) as url:
        events, error = await failure_of(make(base_url=url), "hello")

    assert events == [ReasoningDelta("t"), Finish("stop")]
    assert isinstance(error, ProviderCut)


async def test_kept_connection_is_replaced_when_dropped(make):
    connections = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        body = CHUNK + END + b"data: [DONE]\n\n"
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await reader.readexactly(1)  # the next request is on its way: close now
        writer.transport.abort()

    async with server(answer) as url:
        provider = make(base_url=url)
        for _ in range(2):
            events = await events_of(provider, "hello")
            assert events == [TextDelta("Hi."), Finish("stop")]
        await provider.close()

    assert len(connections) == 2


async def test_connection_whose_end_follows_done_is_reused(make, monkeypatch):
    """Some servers close their generators between [DONE] and the end of the body."""
    monkeypatch.setattr("chat.llm.provider.DRAIN_SECONDS", 30.0)
    connections = []
    received = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        for _ in range(2):
            body = CHUNK + END + b"data: [DONE]\n\n"
            chunk = b"%x\r\n%b\r\n" % (len(body), body)
            writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
            await received.wait()
            received.clear()
            writer.write(b"0\r\n\r\n")
            await read_request(reader)

    async with server(answer) as url:
        provider = make(base_url=url)
        for _ in range(2):
            async with aclosing(provider.stream(ask("hello"))) as stream:
                async for _ in stream:
                    received.set()
        await provider.close()

    assert len(connections) == 1
