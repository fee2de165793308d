"""The provider over a real connection: to the stub, and to servers that misbehave on purpose."""

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
from django.test import override_settings

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
    reason_of,
)
from chat.llm.provider import (
    DETAIL_CHARACTERS,
    CompletionRequest,
    Provider,
    Watchdog,
    cap_field,
    clean,
    close_provider,
    current_provider,
    retry_after,
)
from tests.support.fake_llm import FakeLLM, reasoning_text, reply_text


@pytest.fixture
def stub(provider_process: FakeLLM) -> FakeLLM:
    provider_process.reset()
    return provider_process


Make = Callable[..., Provider]


@pytest_asyncio.fixture
async def make(stub: FakeLLM) -> AsyncIterator[Make]:
    """Providers on the stub that hardly wait before a retry; closed after the test, and nothing
    may be left of them."""
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


async def events_of(provider: Provider, text: str, **options: Any) -> list[Event]:
    async with aclosing(provider.stream(ask(text, **options))) as stream:
        return [event async for events in stream for event in events]


async def failure_of(provider: Provider, text: str) -> tuple[list[Event], ProviderError]:
    """What came before the failure, and the failure."""
    events: list[Event] = []

    async def read() -> None:
        async with aclosing(provider.stream(ask(text))) as stream:
            async for batch in stream:
                assert batch, "no empty lists"
                events.extend(batch)

    with pytest.raises(ProviderError) as caught:
        await read()
    return events, caught.value


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


# --- A reply ----------------------------------------------------------------------------------


async def test_it_streams_the_exact_text_then_finish_and_usage(make, stub):
    text = "[[tokens=80 rate=0]] hello"

    events = await events_of(make(), text)

    assert text_of(events) == reply_text(80, text)
    assert events[-2:] == [
        Finish("stop"),
        Usage(prompt_tokens=5, completion_tokens=80, cached_tokens=0, reasoning_tokens=0),
    ]


async def test_it_sends_the_request_as_it_is(make, stub):
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


async def test_a_server_without_keys_needs_none(make, stub):
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
def test_the_cap_has_the_name_that_the_server_knows(base_url, field):
    assert cap_field(base_url) == field


async def test_reasoning_comes_apart_from_the_text(make, stub):
    text = "[[reasoning=5 tokens=6 rate=0]] why?"

    events = await events_of(make(), text)

    reasoning = [event.text for event in events if isinstance(event, ReasoningDelta)]
    assert "".join(reasoning) == reasoning_text(5, text)
    assert text_of(events) == reply_text(6, text)


async def test_a_capped_reply_says_so(make, stub):
    text = "[[tokens=10 rate=0]]"

    events = await events_of(make(), text, max_tokens=4)

    assert Finish("length") in events
    assert reply_text(10, text).startswith(text_of(events))


async def test_tiny_network_writes_change_nothing(make, stub):
    text = "[[tokens=10 rate=0 chunk=3]] 日本"

    assert text_of(await events_of(make(), text)) == reply_text(10, text)


async def test_without_usage_the_reply_is_complete_all_the_same(make, stub):
    events = await events_of(make(), "[[tokens=2 nousage=1]]")

    assert events[-1] == Finish("stop")


async def test_200_streams_at_once_are_all_exact(make, stub):
    provider = make()
    texts = [f"[[tokens=60 rate=40 hold=0 key=crowd]] {number}" for number in range(200)]

    reading = asyncio.gather(*(events_of(provider, text) for text in texts))
    await asyncio.to_thread(stub.wait, held=200)  # none waits for another's connection
    stub.release("crowd")
    replies = await reading

    for text, events in zip(texts, replies, strict=True):
        assert text_of(events) == reply_text(60, text)
    assert stub.counts == {"active": 0, "finished": 200, "aborted": 0, "failed": 0, "held": 0}


async def test_a_connection_is_used_again(make, stub):
    provider = make()
    for number in range(5):
        await events_of(provider, f"[[tokens=2 rate=0]] {number}")

    assert stub.connections == 1


# --- Retries ----------------------------------------------------------------------------------


async def test_429_is_retried_when_retry_after_is_over(make, stub):
    text = "[[status=429 retry_after=1 fail=1 tokens=5]]"
    began = time.monotonic()

    events = await events_of(make(), text)

    assert time.monotonic() - began >= 1
    assert text_of(events) == reply_text(5, text)
    assert len(stub.requests) == 2


async def test_retry_after_may_be_a_date(make, stub):
    began = time.monotonic()

    await events_of(make(), "[[status=429 retry_date=2 fail=1 tokens=1]]")

    assert time.monotonic() - began >= 0.9  # a date has whole seconds
    assert len(stub.requests) == 2


async def test_a_retry_after_that_is_too_long_is_not_waited_for(make, stub):
    _, error = await failure_of(make(max_retry_after=5), "[[status=429 retry_after=6]]")

    assert isinstance(error, ProviderBusy)
    assert error.retry_after == 6
    assert error.retryable
    assert len(stub.requests) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504, 529])
async def test_5xx_is_retried(make, stub, status):
    text = f"[[status={status} fail=2 tokens=5]]"

    assert text_of(await events_of(make(), text)) == reply_text(5, text)
    assert len(stub.requests) == 3


async def test_it_gives_up_after_the_last_retry(make, stub):
    _, error = await failure_of(make(), "[[status=500]]")

    assert isinstance(error, ProviderBusy)
    assert error.code == "provider_error"
    assert "HTTP 500" in error.detail
    assert len(stub.requests) == 3


def test_an_overloaded_server_is_given_longer():
    def delays(status: int) -> list[Any]:
        provider = Provider(base_url="http://127.0.0.1:1/v1", api_key="")
        busy = ProviderBusy("", status=status, retry_after=None)
        return [provider._delay(busy, retry) for retry in range(3)]

    first, second, none = delays(500)
    assert 0.25 <= first <= 0.75
    assert 0.5 <= second <= 1.5
    assert none is None
    first, second, none = delays(503)
    assert 1 <= first <= 3
    assert 2 <= second <= 6
    assert none is None


async def test_a_connection_reset_before_the_first_byte_is_retried(make, stub):
    text = "[[reset=1 fail=2 tokens=5]]"

    assert text_of(await events_of(make(), text)) == reply_text(5, text)
    assert len(stub.requests) == 3


async def test_the_first_such_retry_does_not_wait(make, stub):
    async with asyncio.timeout(30):
        await events_of(make(retry_delay=600), "[[reset=1 fail=1 tokens=1]]")

    assert len(stub.requests) == 2


@pytest.mark.parametrize("fault", ["cut=0", "short=0", "error=0"])
async def test_a_stream_that_breaks_before_its_first_event_is_retried(make, stub, fault):
    text = f"[[{fault} fail=1 tokens=5]]"

    assert text_of(await events_of(make(), text)) == reply_text(5, text)
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
    ],
)
async def test_a_refusal_is_not_retried_and_says_why(make, stub, status, code, reason):
    _, error = await failure_of(make(), f"[[status={status} code={code}]]")

    assert isinstance(error, ProviderRefused)
    assert error.reason == reason
    assert error.message == REFUSALS[reason]
    assert not error.retryable
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    ("status", "codes", "said", "reason"),
    [
        # llama.cpp, recorded from the embedded server
        (
            400,
            "400 exceed_context_size_error",
            "request (5031 tokens) exceeds the available context size (2048 tokens), try increasing it",
            "context",
        ),
        # vLLM sends no code of its own
        (
            400,
            "400 BadRequestError",
            "This model's maximum context length is 4096 tokens. However, you requested 5000",
            "context",
        ),
        (404, "404 NotFoundError", "The model `x` does not exist.", "model"),
        # Ollama
        (404, " not_found_error", 'model "x" not found, try pulling it first', "model"),
        # Groq's limit of tokens a minute is none of the context
        (429, "rate_limit_exceeded tokens", "Rate limit reached; context window 8k", None),
        # Azure
        (400, "content_filter ", "The response was filtered", "content"),
        (404, "DeploymentNotFound ", "The API deployment does not exist", "model"),
        (500, "", "out of memory", None),
    ],
)
def test_it_reads_refusals_of_several_providers(status, codes, said, reason):
    assert reason_of(status, codes, said) == reason


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({}, None, None),
        ({"retry-after": "soon"}, None, None),
        ({"retry-after": ""}, None, None),
        ({"retry-after": "7"}, 7, 7),
        ({"retry-after": "0.5"}, 0.5, 0.5),
        ({"retry-after": "-3"}, 0, 0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5, 1.5),
        ({"retry-after-ms": "x", "retry-after": "2"}, 2, 2),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0, 0),
    ],
)
def test_it_reads_retry_after(headers, least, most):
    seconds = retry_after(headers)

    if least is None:
        assert seconds is None
    else:
        assert seconds is not None
        assert least <= seconds <= most


def test_it_reads_retry_after_as_a_date():
    seconds = retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)})

    assert seconds is not None
    assert 30 < seconds <= 60


async def test_nobody_there_is_unreachable(make):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]

    _, error = await failure_of(make(base_url=f"http://127.0.0.1:{port}/v1"), "hello")

    assert isinstance(error, ProviderUnreachable)
    assert not error.dropped
    assert error.retryable
    assert "Connect call failed" in error.detail


async def test_a_host_that_takes_no_connection_is_unreachable(make):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:  # the kernel now drops what comes after them
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
    ("fault", "kind"),
    [
        ("cut", ProviderCut),
        ("short", ProviderCut),
        ("error", ProviderReported),
        ("garbage", ProviderMalformed),
    ],
)
async def test_after_the_first_token_nothing_is_retried(make, stub, fault, kind):
    text = f"[[{fault}=3 tokens=9 rate=100]]"

    events, error = await failure_of(make(), text)

    assert type(error) is kind
    assert error.code == "provider_error"
    assert reply_text(9, text).startswith(text_of(events))
    assert len(events) == 3
    assert len(stub.requests) == 1


async def test_garbage_before_the_first_token_is_not_retried(make, stub):
    _, error = await failure_of(make(), "[[garbage=0]]")

    assert isinstance(error, ProviderMalformed)
    assert len(stub.requests) == 1


async def test_silence_in_the_middle_is_a_timeout_and_ends_the_call(make, stub):
    events, error = await failure_of(make(silence_timeout=1), "[[silent=4 tokens=9 rate=0]]")

    assert len(events) == 4
    assert isinstance(error, ProviderTimeout)
    assert error.code == "provider_timeout"
    await asyncio.to_thread(stub.wait, active=0, aborted=1)


@pytest.mark.parametrize("where", ["headers", "first"])
async def test_a_first_token_that_does_not_come_is_a_timeout(make, stub, where):
    _, error = await failure_of(make(first_token_timeout=0.3), f"[[{where}=60]]")

    assert isinstance(error, ProviderTimeout)
    await asyncio.to_thread(stub.wait, active=0, aborted=1)
    assert len(stub.requests) == 1, "it has used up the user's patience"


async def test_keep_alives_hold_the_clock_of_silence_back(make, stub):
    text = "[[first=2.5 ping=0.1 tokens=2]]"

    events = await events_of(make(first_token_timeout=1.5), text)

    assert text_of(events) == reply_text(2, text)


async def test_keep_alives_alone_do_not_last_for_ever(make, stub):
    _, error = await failure_of(
        make(first_token_timeout=30, wait_limit=0.5), "[[first=60 ping=0.1]]"
    )

    assert isinstance(error, ProviderTimeout)
    await asyncio.to_thread(stub.wait, active=0, aborted=1)


async def test_a_long_reply_may_take_longer_than_every_limit(make, stub):
    provider = make(first_token_timeout=1, silence_timeout=1, wait_limit=1, tail_timeout=1)
    text = "[[tokens=40 rate=20]]"

    events = await events_of(provider, text)

    assert text_of(events) == reply_text(40, text)
    assert isinstance(events[-1], Usage)


async def test_time_that_the_caller_takes_does_not_count(make, stub):
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
        self.held: list[Callable[[], None]] = []

    def pause_reading(self, resume: Callable[[], None]) -> bool:
        self.held.append(resume)
        return True

    def tick(self) -> None:
        held, self.held = self.held, []
        for resume in held:
            resume()

    async def go_on(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            self.tick()


async def test_a_held_stream_is_not_read_before_its_caller_says_so(make, stub):
    text = "[[tokens=20 rate=0 hold=1 key=held]]"
    ticks = Ticks()
    async with aclosing(make().stream(ask(text), ticks.pause_reading)) as stream:
        events = await anext(stream)  # the first comes by itself
        reading = asyncio.create_task(anext(stream))
        while not ticks.held:
            await asyncio.sleep(0.01)
        stub.release("held")
        await asyncio.to_thread(stub.wait, finished=1)
        await asyncio.sleep(0.05)
        assert not reading.done()

        ticks.tick()
        events += await reading
        going_on = asyncio.create_task(ticks.go_on())
        events += [event async for batch in stream for event in batch]
        going_on.cancel()
        await asyncio.wait([going_on])

    assert text_of(events) == reply_text(20, text)


async def test_held_streams_are_exact_and_their_connections_are_used_again(make, stub):
    provider, ticks = make(), Ticks()
    going_on = asyncio.create_task(ticks.go_on())

    async def read(text: str) -> str:
        async with aclosing(provider.stream(ask(text), ticks.pause_reading)) as stream:
            return text_of([event async for events in stream for event in events])

    for turn in range(2):
        texts = [f"[[tokens=40 rate=200]] {turn} {number}" for number in range(20)]
        replies = await asyncio.gather(*[read(text) for text in texts])
        assert replies == [reply_text(40, text) for text in texts]
    going_on.cancel()
    await asyncio.wait([going_on])

    assert stub.connections == 20


async def test_a_held_stream_can_be_cancelled(make, stub):
    ticks = Ticks()

    async def read() -> None:
        async with aclosing(
            make().stream(ask("[[tokens=900 rate=50]]"), ticks.pause_reading)
        ) as stream:
            async for _ in stream:
                pass

    reading = asyncio.create_task(read())
    while not ticks.held:
        await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.wait([reading])
    await asyncio.to_thread(stub.wait, active=0, aborted=1)

    ticks.tick()  # too late, and harmless


async def test_a_stream_that_breaks_while_it_is_held_is_cut(make, stub):
    ticks = Ticks()

    async def read() -> None:
        text = "[[tokens=20 rate=50 cut=5]]"
        async with aclosing(make().stream(ask(text), ticks.pause_reading)) as stream:
            async for _ in stream:
                pass

    going_on = asyncio.create_task(ticks.go_on())
    with pytest.raises(ProviderCut):
        await read()
    going_on.cancel()
    await asyncio.wait([going_on])


# --- Stopping ---------------------------------------------------------------------------------


async def test_closing_the_stream_ends_the_call(make, stub):
    stream = make().stream(ask("[[hold=3 tokens=9 rate=0]]"))
    events: list[Event] = []
    while len(events) < 3:
        events += await anext(stream)

    await stream.aclose()

    await asyncio.to_thread(stub.wait, active=0, aborted=1)


@pytest.mark.parametrize(
    "moment", ["[[headers=60]]", "[[first=60]]", "[[silent=2]]"], ids=["headers", "first", "later"]
)
async def test_cancelling_the_reader_ends_the_call(make, stub, moment):
    task = asyncio.create_task(events_of(make(), moment))
    await asyncio.to_thread(stub.wait, active=1)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await asyncio.to_thread(stub.wait, active=0, aborted=1)


async def test_cancelling_while_it_waits_to_retry_ends_the_waiting(make, stub):
    task = asyncio.create_task(events_of(make(), "[[status=429 retry_after=20]]"))
    await asyncio.to_thread(stub.wait, failed=1)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert len(stub.requests) == 1


async def test_a_watchdog_that_barks_while_someone_else_cancels_gives_way():
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


async def test_a_watchdog_keeps_its_deadline_whatever_the_ones_before_were():
    loop = asyncio.get_running_loop()
    watchdog = Watchdog(loop)
    await watchdog.wait(asyncio.sleep(0), loop.time() + 60)
    await watchdog.wait(asyncio.sleep(0.2), loop.time() + 30)  # its timer waits for this one
    began = loop.time()

    with pytest.raises(TimeoutError):
        await watchdog.wait(asyncio.Event().wait(), began + 0.1)

    assert 0.1 <= loop.time() - began < 10
    watchdog.cancel()


# --- What the log may say ---------------------------------------------------------------------


async def test_neither_key_nor_prompt_is_logged(make, stub, caplog):
    caplog.set_level(logging.DEBUG, logger="chat.llm")
    prompt = "[[status=500 echo=1]] My PIN is 4711, and do not tell anyone about the sea shells."

    _, error = await failure_of(make(), prompt)

    assert len(stub.requests) == 3
    assert len(caplog.records) == 2, "need the retries in the log for this test to mean anything"
    for said in (error.detail, str(error), caplog.text):
        assert "secret-key-1" not in said
        assert "4711" not in said
        assert "shells" not in said
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
def test_a_detail_is_made_fit_for_the_log(detail, messages, expected):
    sent = [{"role": "user", "content": [{"type": "text", "text": text}]} for text in messages]

    assert clean(detail, sent, "sk-1") == expected


# --- Servers that misbehave -------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNK = b'data: {"choices":[{"delta":{"content":"Hi."}}]}\n\n'
END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """A server that reads a request and lets `answer` do the rest; yields its base URL."""

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


async def test_an_answer_that_is_not_http_is_malformed(make):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x01 220 welcome\r\n\r\n")

    async with server(answer) as url:
        _, error = await failure_of(make(base_url=url), "hello")

    assert isinstance(error, ProviderMalformed)


async def test_a_page_instead_of_a_stream_is_malformed(make):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n<html>\n</html>")

    async with server(answer) as url:
        _, error = await failure_of(make(base_url=url), "hello")

    assert isinstance(error, ProviderMalformed)


async def test_a_compressed_stream_is_read_though_it_was_not_asked_for(make):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(CHUNK + END))

    async with server(answer) as url:
        events = await events_of(make(base_url=url), "hello")

    assert events == [TextDelta("Hi."), Finish("stop")]


@pytest.mark.parametrize("tail", [b"", b"data: [DONE]\n\n"], ids=["no-done", "done"])
async def test_a_connection_left_open_after_the_end_is_not_waited_for(make, tail):
    closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n" + CHUNK + END + tail)
        await reader.read()  # until the client hangs up
        closed.set()

    async with server(answer) as url, asyncio.timeout(30):
        events = await events_of(make(base_url=url, tail_timeout=0.2), "hello")
        await closed.wait()

    assert events == [TextDelta("Hi."), Finish("stop")]


async def test_a_connection_that_breaks_after_the_end_is_no_error(make):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = len(CHUNK + END) + 100  # promised, and never sent
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % length + CHUNK + END)

    async with server(answer) as url:
        events = await events_of(make(base_url=url), "hello")

    assert events == [TextDelta("Hi."), Finish("stop")]


async def test_a_kept_connection_that_the_server_drops_is_replaced(make):
    connections = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        body = CHUNK + END + b"data: [DONE]\n\n"
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await reader.readexactly(1)  # the next request is on its way: now hang up
        writer.transport.abort()

    async with server(answer) as url:
        provider = make(base_url=url)
        for _ in range(2):
            events = await events_of(provider, "hello")
            assert events == [TextDelta("Hi."), Finish("stop")]
        await provider.close()

    assert len(connections) == 2


async def test_a_connection_whose_end_comes_after_done_is_used_again(make):
    connections = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        for _ in range(2):
            body = CHUNK + END + b"data: [DONE]\n\n"
            chunk = b"%x\r\n%b\r\n" % (len(body), body)
            writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
            await asyncio.sleep(0.02)  # as servers do that close their generators first
            writer.write(b"0\r\n\r\n")
            await read_request(reader)

    async with server(answer) as url:
        provider = make(base_url=url)
        await events_of(provider, "hello")
        await events_of(provider, "hello")
        await provider.close()

    assert len(connections) == 1


# --- The process's provider -------------------------------------------------------------------


async def test_the_process_has_one_provider_with_the_sites_settings(stub):
    with override_settings(OPENAI_BASE_URL=stub.url, OPENAI_API_KEY="the-sites-key"):
        provider = current_provider()
        assert current_provider() is provider
        await events_of(provider, "[[tokens=1]]")
    assert stub.headers[0]["Authorization"] == "Bearer the-sites-key"

    await close_provider()
    await close_provider()  # closing nothing is fine

    with override_settings(OPENAI_BASE_URL=stub.url, OPENAI_API_KEY=""):
        assert current_provider() is not provider
        await close_provider()


def test_each_event_loop_gets_a_provider_of_its_own(stub):
    async def use() -> Provider:
        provider = current_provider()
        await events_of(provider, "[[tokens=1]]")
        await provider.close()
        return provider

    with override_settings(OPENAI_BASE_URL=stub.url, OPENAI_API_KEY=""):
        first = asyncio.run(use())
        assert asyncio.run(use()) is not first
