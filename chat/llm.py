"""The model provider: any server that speaks OpenAI's chat completions.

`provider().stream(request)` is the whole use of it: an asynchronous generator that yields what the
model says as lists of events, one list per network read, and raises a `ProviderError` when it
cannot. Closing the generator (`aclose()`, or `contextlib.aclosing`) or cancelling its task closes
the HTTP response at once, so that the provider stops working, and charging.

Requests, connections and HTTP errors are the openai library's business, on its aiohttp transport;
the bytes of the reply are decoded here (`StreamDecoder`), because the library's typed stream costs
several times the CPU (`python -m bench.decode` prints by how much).

**Time limits.** Connecting (TCP and TLS) may take `connect_timeout`. After that two clocks run,
and only while this module waits for the provider, never while its caller is busy:

- silence: `first_token_timeout` without a single byte before the first event, `silence_timeout`
  after it. Any byte is a sign of life, so keep-alive comments (OpenRouter sends them while a model
  is queued) hold this clock back;
- `wait_limit` without an event, whatever else arrives, so that keep-alives alone cannot hold a run
  for ever.

When the reply has ended (a finish reason came), `tail_timeout` is left for usage and [DONE], and
their absence is no error.

**Retries** happen only before the first event was yielded, so that no text can come twice: after
429 and 5xx (Retry-After is obeyed; one longer than `max_retry_after` is not waited for at all, as
asking earlier would be useless and asking later too slow for someone who waits), after connection
errors (a kept-alive connection that the server had dropped is one), and after a stream that broke
or reported a passing error before it said anything. A silent provider is not asked again: it has
used up the user's patience.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

import aiohttp
import httpx2
import msgspec
import openai
from django.conf import settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

LINE_LIMIT = 1024 * 1024  # bytes of one event, of which no end has come yet
DRAIN_SECONDS = 0.1  # for the end of the body after [DONE]: without it no connection is used again
KEEP_ALIVE_SECONDS = 30.0  # an unused connection is kept
OVERLOAD_FACTOR = 4  # 503 and 529: it is overloaded or starting, so give it longer
DETAIL_CHARACTERS = 300
TOKENS_LIMIT = 2**31 - 1  # of one reply; no real one comes near


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What to ask: `messages` in OpenAI's format, `max_tokens` as the cap of the reply.

    `extra` goes into the request's body as it is (tools, stop, reasoning_effort …).
    """

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int
    temperature: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


# --- Events -----------------------------------------------------------------------------------


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    text: str


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    """What the model thinks before it answers; no part of the reply."""

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
    """The reply is complete: `stop`, `length`, `tool_calls`, `content_filter`, or the provider's
    own word. Comes once at most (a mere [DONE] ends a reply as well); usage may follow."""

    reason: str


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens as the provider counts them; a later one replaces an earlier one.

    `cached_tokens` are part of `prompt_tokens`, `reasoning_tokens` part of `completion_tokens`.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int


Event: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta | Finish | Usage


# --- Errors -----------------------------------------------------------------------------------


class ProviderError(Exception):
    """Why there is no reply, or no more of it.

    ProviderError
    ├── ProviderUnreachable   no connection: refused, reset, unknown host, TLS, connect timeout
    ├── ProviderTimeout       connected, but silent for longer than the limits above
    ├── ProviderBusy          429 or 5xx: not now (`retry_after` seconds, if it said so)
    ├── ProviderRefused       it will not answer this request (`reason`)
    ├── ProviderCut           the stream broke off in the middle
    ├── ProviderMalformed     what came is not a stream of chat completions
    └── ProviderReported      an error object in the stream (`reason`, if it is a refusal)

    `code` is the wire protocol's error code and `message` the sentence for the user: what
    happened and what to do. `detail` is for the log: status and the provider's words, shortened;
    the key and the prompt are taken out of it before the error leaves `Provider.stream`.
    `retryable` says whether the same request may well succeed later.
    """

    code = "provider_error"
    message = "The model's provider failed. Try again in a moment."
    retryable = True

    def __init__(self, detail: str) -> None:
        super().__init__(self.message)
        self.detail = detail


class ProviderUnreachable(ProviderError):
    message = "The model's provider cannot be reached at the moment. Try again in a few minutes."

    def __init__(self, detail: str, *, dropped: bool) -> None:
        super().__init__(detail)
        self.dropped = dropped  # there was a connection, and the server broke it off


class ProviderTimeout(ProviderError):
    code = "provider_timeout"
    message = "The model's provider took too long to answer. Try again, or choose another model."


class ProviderBusy(ProviderError):
    message = "The model's provider cannot answer at the moment. Try again in a minute."

    def __init__(self, detail: str, *, status: int, retry_after: float | None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after = retry_after


class ProviderCut(ProviderError):
    message = "The connection to the model's provider broke off. Try again."


class ProviderMalformed(ProviderError):
    message = (
        "The model's provider sent an answer that cannot be read. Try again; if it happens again, "
        "tell the people who run this site."
    )
    retryable = False


Reason: TypeAlias = Literal["context", "key", "quota", "model", "content", "request"]

REFUSALS: dict[Reason, str] = {
    "context": (
        "This conversation is too long for the model. "
        "Start a new chat, or choose a model that takes more."
    ),
    "key": (
        "The model's provider did not accept this site's key. "
        "Tell the people who run this site; trying again will not help."
    ),
    "quota": (
        "This site's account with the model's provider is used up. "
        "Tell the people who run this site, or choose another model."
    ),
    "model": "The model's provider does not know this model. Choose another model.",
    "content": (
        "The model's provider refused this message because of its content rules. "
        "Say it in another way, or choose another model."
    ),
    "request": (
        "The model's provider refused this request. "
        "Choose another model; if it happens again, tell the people who run this site."
    ),
}


class ProviderRefused(ProviderError):
    retryable = False

    def __init__(self, detail: str, *, reason: Reason) -> None:
        self.message = REFUSALS[reason]
        super().__init__(detail)
        self.reason = reason


class ProviderReported(ProviderError):
    message = "The model's provider reported a fault while it was answering. Try again."

    def __init__(self, detail: str, *, reason: Reason | None) -> None:
        if reason is not None:
            self.message = REFUSALS[reason]
            self.retryable = False
        super().__init__(detail)
        self.reason = reason


# --- The provider -----------------------------------------------------------------------------

_current: tuple[asyncio.AbstractEventLoop, Provider] | None = None


def provider() -> Provider:
    """The process's provider, built from the settings on first use in the running event loop.

    Its connections belong to that loop: whoever ends the loop awaits `close()` first. In a new
    loop a new provider is built.
    """
    global _current
    loop = asyncio.get_running_loop()
    if _current is None or _current[0] is not loop:
        _current = (
            loop,
            Provider(base_url=settings.OPENAI_BASE_URL, api_key=settings.OPENAI_API_KEY),
        )
    return _current[1]


async def close() -> None:
    """Close the process's provider, if there is one."""
    global _current
    if _current is not None:
        closing, _current = _current[1], None
        await closing.close()


class Provider:
    """One provider and its connections; lives in one event loop.

    Times are in seconds; the module's docstring says what they limit. `max_retries` counts the
    tries after the first; about `retry_delay` goes by before the second, twice that before the
    third.
    """

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        connect_timeout: float = 10.0,
        first_token_timeout: float = 60.0,
        silence_timeout: float = 60.0,
        wait_limit: float = 300.0,
        tail_timeout: float = 5.0,
        max_retries: int = 2,
        retry_delay: float = 0.5,
        max_retry_after: float = 30.0,
    ) -> None:
        self._api_key = api_key
        self._first_token_timeout = first_token_timeout
        self._silence_timeout = silence_timeout
        self._wait_limit = wait_limit
        self._tail_timeout = tail_timeout
        self._max_retries = max_retries
        self._retry_delay = retry_delay
        self._max_retry_after = max_retry_after
        self._cap = cap_field(base_url)
        # The read timeout is ours: the transport's would be set anew at each read, at a price.
        timeout = httpx2.Timeout(None, connect=connect_timeout)
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "none",  # the library insists; servers without keys ignore it
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAioHttpClient(
                timeout=timeout,
                # No limit (aiohttp's 0): WORKER_CONCURRENCY bounds the streams. A pool's limit
                # below it would be an invisible queue.
                limits=httpx2.Limits(max_connections=0, keepalive_expiry=KEEP_ALIVE_SECONDS),
            ),
        )

    async def close(self) -> None:
        """Close all connections; the provider is of no use afterwards."""
        await self._client.close()

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[list[Event]]:
        """Yield the reply's events as they come, never an empty list.

        Raises ProviderError. After a normal end the reply is complete: the provider said so.
        """
        started = False
        for retry in range(self._max_retries + 1):
            try:
                async with aclosing(self._attempt(request)) as batches:
                    async for events in batches:
                        started = True
                        yield events
                return
            except ProviderError as error:
                error.detail = clean(error.detail, request.messages, self._api_key)
                delay = None if started else self._delay(error, retry)
                if delay is None:
                    raise
                logger.warning(
                    "model provider: %s: %s; try %d follows in %.1f s",
                    type(error).__name__,
                    error.detail,
                    retry + 2,
                    delay,
                )
            await asyncio.sleep(delay)

    def _delay(self, error: ProviderError, retry: int) -> float | None:
        if retry == self._max_retries or not error.retryable or isinstance(error, ProviderTimeout):
            return None
        if isinstance(error, ProviderUnreachable) and error.dropped and retry == 0:
            # Most likely a kept connection that the server was just giving up: llama.cpp does so
            # after each reply, and the next request may be faster than its farewell.
            return 0.0
        delay = self._retry_delay * (1 << retry) * random.uniform(0.5, 1.5)  # noqa: S311
        if isinstance(error, ProviderBusy):
            if error.retry_after is not None:
                if error.retry_after > self._max_retry_after:
                    return None
                # The jitter is on top: many runs may have been told the same time.
                return error.retry_after + delay * 0.2
            if error.status in {503, 529}:
                return delay * OVERLOAD_FACTOR
        return delay

    async def _attempt(self, request: CompletionRequest) -> AsyncGenerator[list[Event]]:
        loop = asyncio.get_running_loop()
        watchdog = Watchdog(loop)
        decoder = StreamDecoder()
        last_event = loop.time()
        silence = self._first_token_timeout
        try:
            async with (
                self._answer(request, watchdog, last_event + silence) as response,
                aclosing(body_of(response)) as chunks,
            ):
                while True:
                    if decoder.finished:
                        deadline = last_event + self._tail_timeout
                    else:
                        deadline = min(loop.time() + silence, last_event + self._wait_limit)
                    chunk = await watchdog.wait(anext(chunks, b""), deadline)
                    events = decoder.feed(chunk)
                    if events:
                        yield events
                        last_event = loop.time()
                        silence = self._silence_timeout
                    if decoder.over or not chunk:
                        break
                decoder.close()
                with suppress(TimeoutError):
                    await watchdog.wait(drained(chunks), loop.time() + DRAIN_SECONDS)
        except TimeoutError:
            if not decoder.finished:
                quiet = loop.time() - last_event
                raise ProviderTimeout(f"no event for {quiet:.1f} s") from None
        except (httpx2.HTTPError, aiohttp.ClientError) as error:
            if not decoder.finished:
                raise ProviderCut(described(root_cause(error))) from None
        finally:
            watchdog.cancel()

    @asynccontextmanager
    async def _answer(
        self, request: CompletionRequest, watchdog: Watchdog, deadline: float
    ) -> AsyncIterator[httpx2.Response]:
        """The response of status 200, its body unread. It is closed at the end."""
        call = self._client.chat.completions.with_streaming_response.create(**self._body(request))
        try:
            response = await watchdog.wait(call.__aenter__(), deadline)
        except openai.APIStatusError as error:
            raise refusal(error) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = root_cause(error)
            dropped = isinstance(cause, aiohttp.ServerDisconnectedError | ConnectionResetError)
            raise ProviderUnreachable(described(cause), dropped=dropped) from None
        except aiohttp.ClientError as error:
            # What the transport does not translate: an answer that is not HTTP.
            raise ProviderMalformed(described(error)) from None
        try:
            yield response.http_response
        finally:
            await response.close()

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": request.model,
            "messages": request.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            # A compressed event stream arrives late, and costs CPU on both sides.
            "extra_headers": {"Accept-Encoding": "identity"},
            "extra_body": {self._cap: request.max_tokens, **request.extra},
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        return body


def cap_field(base_url: str) -> str:
    """The name of the reply's cap: OpenAI's newer models refuse the old name, which is the one
    that all other servers know."""
    host = urlsplit(base_url).hostname or ""
    if host.endswith((".openai.com", ".azure.com")):
        return "max_completion_tokens"
    return "max_tokens"


def body_of(response: httpx2.Response) -> AsyncGenerator[bytes]:
    """The body as it arrives. httpx2's own iterators, which also decompress, cost a fifth of the
    whole reading; the transport's stream is enough unless someone compressed unasked."""
    if "content-encoding" in response.headers:
        return response.aiter_bytes()
    return cast("AsyncGenerator[bytes]", aiter(cast("httpx2.AsyncByteStream", response.stream)))


async def drained(chunks: AsyncIterator[bytes]) -> None:
    async for _ in chunks:
        pass


def root_cause(error: BaseException) -> BaseException:
    """The innermost exception: the outer ones say only "Connection error."."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class Watchdog:
    """`asyncio.timeout` for many short waits of one task, with one timer that is moved lazily.

    A stream waits once per token; a timer that is made and cancelled each time costs a tenth of
    the whole reading. Here each wait only notes its deadline, and the timer looks at it when it
    fires.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None  # set while it waits
        self._deadline = 0.0
        self._expired = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    async def wait(self, awaitable: Awaitable[T], deadline: float) -> T:
        """The awaitable's result; it is cancelled and TimeoutError raised at `deadline`."""
        task = self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        cancelling = task.cancelling()
        self._deadline = deadline
        if deadline < self._timer_at:
            self._set_timer(deadline)
        try:
            return await awaitable
        except asyncio.CancelledError:
            # As in asyncio.timeout: ours to translate, unless someone else cancelled as well.
            if self._expired and task.uncancel() <= cancelling:
                raise TimeoutError from None
            raise
        finally:
            self._task = None

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, when: float) -> None:
        self.cancel()
        self._timer = self._loop.call_at(when, self._look)
        self._timer_at = when

    def _look(self) -> None:
        self._timer_at = float("inf")
        if self._task is None:
            return  # the next wait sets the timer
        if self._loop.time() < self._deadline:
            self._set_timer(self._deadline)
        else:
            self._expired = True
            self._task.cancel()


# --- HTTP errors ------------------------------------------------------------------------------


def refusal(error: openai.APIStatusError) -> ProviderError:
    """An answer that is not 200, in our words."""
    status = error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    code, kind = str(body.get("code") or ""), str(body.get("type") or "")
    said = str(body.get("message") or error.response.text)
    detail = f"HTTP {status} {code or kind} {said} ({error.request_id or 'no request id'})"
    reason = reason_of(status, f"{code} {kind}", said)
    if reason is not None:
        return ProviderRefused(detail, reason=reason)
    if status == 429 or status >= 500:
        return ProviderBusy(detail, status=status, retry_after=retry_after(error.response.headers))
    return ProviderRefused(detail, reason="request")


CONTEXT_CODES = re.compile(r"context_length|exceed_context_size|tokens_limit_reached")
# vLLM, OpenRouter and older servers send no code, only a sentence.
CONTEXT_WORDS = re.compile(
    r"context (length|size|window)|prompt is too long|input is too long|input token count",
    re.IGNORECASE,
)
QUOTA_CODES = re.compile(r"insufficient_quota|billing_hard_limit|insufficient_credits")
CONTENT_CODES = re.compile(r"content_filter|content_policy|moderation|ResponsibleAI")
MODEL_CODES = re.compile(r"model_not_found|model_not_available|DeploymentNotFound")


def reason_of(status: int, codes: str, said: str) -> Reason | None:
    """What a refusal is about, by HTTP status (0: unknown), error codes and words.

    None: nothing that would be the same next time. The codes are OpenAI's (platform.openai.com,
    "Error codes"), Azure's, llama.cpp's (`exceed_context_size_error`, in its first versions with
    status 500) and OpenRouter's.
    """
    if QUOTA_CODES.search(codes) or status == 402:
        return "quota"
    if CONTEXT_CODES.search(codes) or (status != 429 and CONTEXT_WORDS.search(said)):
        return "context"
    if CONTENT_CODES.search(codes):
        return "content"
    if MODEL_CODES.search(codes) or status == 404:
        return "model"
    if "invalid_api_key" in codes or status == 401:
        return "key"
    return "context" if status == 413 else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `retry-after-ms` (OpenAI, Azure) or Retry-After, in seconds or as a date
    (RFC 9110, 10.2.3); None when absent or unreadable."""
    with suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def clean(detail: str, messages: Iterable[dict[str, Any]], api_key: str) -> str:
    """`detail` fit for a log: short, without the key and without what the prompt says.

    Providers like to quote what they refuse. Every run of 20 characters that also stands in a
    message is taken out, and shorter messages as a whole.
    """
    detail = " ".join(detail[: 10 * DETAIL_CHARACTERS].split())
    if api_key:
        detail = detail.replace(api_key, "[key]")
    for text in texts(messages):
        detail = without(detail, " ".join(text.split()))
    return detail[:DETAIL_CHARACTERS]


def texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from texts([part for key, part in value.items() if key not in {"role", "type"}])
    elif isinstance(value, list):
        for part in value:
            yield from texts(part)


def without(detail: str, text: str, run: int = 20) -> str:
    run = min(run, len(text))
    if run < 4:  # "yes" and the like: nothing to protect, and it would tear words apart
        return detail
    kept, at = [], 0
    while at < len(detail):
        end = at + run
        if end > len(detail) or detail[at:end] not in text:
            kept.append(detail[at])
            at += 1
            continue
        while end < len(detail) and detail[at : end + 1] in text:
            end += 1
        kept.append("[…]")
        at = end
    return "".join(kept)


# --- The bytes of a reply ---------------------------------------------------------------------


class Part(msgspec.Struct):
    """Mistral's reasoning models send the content as parts."""

    text: str | None = None
    thinking: list[Part] | None = None


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Delta(msgspec.Struct):
    content: str | list[Part] | None = None
    reasoning_content: str | None = None  # DeepSeek, llama.cpp, vLLM
    reasoning: str | None = None  # OpenRouter, Groq, Ollama, newer vLLM; some send both
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct):
    index: int | None = None
    delta: Delta | None = None  # Azure sends choices without one for its content filter
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct):
    cached_tokens: float | None = None


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: float | None = None


class UsageObject(msgspec.Struct):
    prompt_tokens: float | None = None  # some gateways write 12.0
    completion_tokens: float | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Groq(msgspec.Struct):
    usage: UsageObject | None = None
    error: str | None = None


class Chunk(msgspec.Struct):
    """What is read of a `chat.completion.chunk`; everything else is passed over unparsed."""

    choices: list[Choice] | None = None  # absent or empty in Azure's first and in usage chunks
    usage: UsageObject | None = None
    x_groq: Groq | None = None
    error: dict[str, Any] | str | None = None


decode_chunk = msgspec.json.Decoder(Chunk).decode

# msgspec.ValidationError (JSON of another shape) is a DecodeError; bad UTF-8 is not.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)

BOM = b"\xef\xbb\xbf"
IGNORED_FIELDS = (b":", b"event", b"id", b"retry")  # a line that begins with ":" is a comment


class StreamDecoder:
    """Events out of the bytes of a `text/event-stream`, however the network cut them up.

    Reads server-sent events as their specification says (html.spec.whatwg.org, 9.2), and on top of
    it what providers do: a data line that is a whole JSON object counts at once, blank line or not;
    `error:` lines report an error (older llama.cpp), and so may a line of bare JSON (proxies).

    Never raises in the middle: what came before a fault must not be lost with it. `feed` returns
    the events up to the fault and sets `over`; `close` raises.
    """

    def __init__(self) -> None:
        self.finished = False  # the reply is complete: a finish reason or [DONE] came
        self.over = False  # nothing more will be read: [DONE] or a fault
        self._failure: ProviderError | None = None
        self._rest = b""  # a line whose end has not come
        self._after_cr = False  # the last byte was CR: an LF now belongs to it
        self._first = True
        self._pending = bytearray()  # data lines that are no whole JSON yet
        self._usage: Usage | None = None

    def feed(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        for line in self._lines(data):
            if self.over:
                break
            self._line(line, events)
        if len(self._rest) + len(self._pending) > LINE_LIMIT:
            self._fail(ProviderMalformed(f"an event of more than {LINE_LIMIT} bytes"))
        return events

    def close(self) -> None:
        """The stream has ended. Raises what went wrong; ProviderCut when the end is missing."""
        if self._rest.strip() == b"data: [DONE]":
            self.finished = True
        if self._failure is not None:
            raise self._failure
        if not self.finished:
            raise ProviderCut("the stream ended without a finish reason and without [DONE]")

    def _lines(self, data: bytes) -> list[bytes]:
        if not data:
            return []
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines

    def _line(self, line: bytes, events: list[Event]) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(BOM)
        if line.startswith(b"data:"):
            self._data(line[5:], events)
        elif not line:
            self._blank(events)
        elif line.startswith(b"error:"):
            self._error(line[6:])
        elif line.startswith(b"{"):
            self._data(line, events)
        elif not line.startswith(IGNORED_FIELDS):
            self._fail(ProviderMalformed(f"not an event stream: {shown(line)}"))

    def _data(self, data: bytes, events: list[Event]) -> None:
        if self._pending:
            self._pending += b"\n" + data
            return
        try:
            self._chunk(decode_chunk(data), events)
        except UNREADABLE as error:
            if data.strip() == b"[DONE]":
                self.finished = self.over = True
            elif type(error) is msgspec.DecodeError:
                # Not JSON: the first line of several, or garbage. The blank line will tell.
                self._pending += data.strip()
            else:
                self._fail(ProviderMalformed(f"not a chunk: {error}: {shown(data)}"))

    def _error(self, data: bytes) -> None:
        """An `error:` line of an older llama.cpp: the error object itself, without a wrapping."""
        try:
            self._fail(reported(msgspec.json.decode(data, type=dict[str, Any])))
        except UNREADABLE:
            self._fail(reported(data.decode(errors="replace").strip()))

    def _blank(self, events: list[Event]) -> None:
        if not self._pending:
            return
        data, self._pending = bytes(self._pending), bytearray()
        try:
            self._chunk(decode_chunk(data), events)
        except UNREADABLE as error:
            self._fail(ProviderMalformed(f"not a chunk: {error}: {shown(data)}"))

    def _chunk(self, chunk: Chunk, events: list[Event]) -> None:
        for choice in chunk.choices or ():
            if choice.index:
                continue  # a second answer was not asked for
            if choice.delta is not None:
                self._delta(choice.delta, events)
            if choice.finish_reason == "error":
                self._fail(ProviderReported("finish_reason error", reason=None))
            elif choice.finish_reason and not self.finished:
                self.finished = True
                events.append(Finish(choice.finish_reason))
        usage = chunk.usage or (chunk.x_groq and chunk.x_groq.usage)
        if usage:
            self._count(usage, events)
        error = chunk.error or (chunk.x_groq and chunk.x_groq.error)
        if error:
            self._fail(reported(error))

    def _delta(self, delta: Delta, events: list[Event]) -> None:
        reasoning = delta.reasoning_content or delta.reasoning
        if reasoning:
            events.append(ReasoningDelta(reasoning))
        if isinstance(delta.content, str):
            if delta.content:
                events.append(TextDelta(delta.content))
        elif delta.content:
            for part in delta.content:
                events.extend(ReasoningDelta(p.text) for p in part.thinking or () if p.text)
                if part.text:
                    events.append(TextDelta(part.text))
        if delta.refusal:
            events.append(TextDelta(delta.refusal))
        for position, call in enumerate(delta.tool_calls or ()):
            function = call.function or Function()
            events.append(
                ToolCallDelta(
                    position if call.index is None else call.index,
                    call.id or "",
                    function.name or "",
                    function.arguments or "",
                )
            )

    def _count(self, usage: UsageObject, events: list[Event]) -> None:
        prompt = usage.prompt_tokens_details
        completion = usage.completion_tokens_details
        counted = Usage(
            prompt_tokens=tokens(usage.prompt_tokens),
            completion_tokens=tokens(usage.completion_tokens),
            cached_tokens=tokens(prompt.cached_tokens if prompt else None),
            reasoning_tokens=tokens(completion.reasoning_tokens if completion else None),
        )
        if counted != self._usage:  # some servers repeat it
            self._usage = counted
            events.append(counted)

    def _fail(self, failure: ProviderError) -> None:
        # The first word of an error chunk may be its finish reason; the error object says more.
        if self._failure is None or isinstance(failure, ProviderReported):
            self._failure = failure
        self.over = True


def tokens(count: float | None) -> int:
    """A count that arithmetic on money and the database can bear, whatever the provider wrote."""
    return min(max(0, int(count or 0)), TOKENS_LIMIT)


def reported(error: dict[str, Any] | str) -> ProviderReported:
    """An error object in the stream. Its `code` is a number (OpenRouter, vLLM, llama.cpp), a word
    (OpenAI), or null (Ollama); some proxies send a bare string."""
    if isinstance(error, str):
        error = {"message": error}
    code, kind, said = (str(error.get(name) or "") for name in ("code", "type", "message"))
    status = int(code) if code.isdecimal() else 0
    reason = reason_of(status, f"{code} {kind}", said)
    if reason is None and 400 <= status < 500 and status not in {408, 429}:
        reason = "request"
    return ProviderReported(f"reported in the stream: {code} {kind} {said}", reason=reason)


def shown(data: bytes) -> str:
    return repr(data[:100])
