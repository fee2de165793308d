"""The model provider: any server with OpenAI's chat completions API.

`Provider.stream(request)` is the whole interface: an asynchronous generator that yields the model's
output as lists of events, one list per network read, and raises a `ProviderError` on failure. Closing
the generator (`aclose()`, or `contextlib.aclosing`) or cancelling its task closes the HTTP response at
once, so that the provider stops working, and charging. connections.py opens the providers of a process.

The openai library handles requests, connections and HTTP errors, on its aiohttp transport; the
bytes of the reply are decoded here (`StreamDecoder`), because the library's typed stream costs
several times the CPU (`python -m bench.decode` prints by how much).

**Time limits.** Connecting (TCP and TLS) may take `connect_timeout`. After that two clocks run,
and only while this module waits for the provider, never while its caller is busy:

- silence: `first_token_timeout` without a single byte before the first event, `silence_timeout`
  after it. Any byte resets this clock, keep-alive comments too (OpenRouter sends them while a model
  is queued);
- `wait_limit` without an event, whatever else arrives, so that keep-alives alone cannot block a run
  for ever.

After the finish reason `tail_timeout` is left for usage and [DONE], whose absence is no error, and for
more text, since some servers send premature ones. After one that precedes the first word
`late_text_timeout` is left for it.

**Retries** happen only before the first event was yielded, so that no text is repeated: after 429
and 5xx (Retry-After is obeyed; one longer than `max_retry_after` means no retry, as an earlier one
would be useless and a later one too slow for the user), after connection errors (such as a
kept-alive connection that the server had dropped), and after a stream that broke or reported a
temporary error before its first event; once after silence until a limit, and after another 4xx
whose words ask for another try. When another
model can be asked instead (`CompletionRequest.has_fallback`), neither silence nor a retry that would
begin later than FALLBACK_PATIENCE is waited for. A part of the request that the server refuses is sent
in another form, each once (llm/request.py).

**Proxies.** `proxy` carries all requests. Without it those of the environment do (HTTP_PROXY,
HTTPS_PROXY, NO_PROXY), but never for a loopback address, which a proxy could not reach.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import cache
from itertools import product
from typing import Any, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

import aiohttp
import httpx2
import msgspec
import openai
from openai.types.chat import ChatCompletionChunk

from chat.llm import lenient_json
from chat.llm.address import is_loopback
from chat.llm.decoder import Event, StreamDecoder
from chat.llm.errors import (
    ProviderBusy,
    ProviderCut,
    ProviderError,
    ProviderMalformed,
    ProviderRefused,
    ProviderTimeout,
    ProviderUnreachable,
)
from chat.llm.paused_body import Body
from chat.llm.quotes import texts, without
from chat.llm.refusals import (
    TEMPORARY_STATUSES,
    is_page,
    read_error,
    refusal_of,
    seconds_to_wait,
)
from chat.llm.request import AdaptedRequest, CompletionRequest
from chatproject.lib import metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

DRAIN_SECONDS = 0.1  # for the end of the body after [DONE]: without it connections are not reused
KEEP_ALIVE_SECONDS = 30.0  # before an idle connection is closed
OVERLOAD_FACTOR = 4  # longer delay after 503 and 529: the server is overloaded or starting
DETAIL_CHARACTERS = 300
FALLBACK_PATIENCE = 2.0  # seconds before a retry while another model can be asked


# Takes a function that resumes reading; returns whether reading pauses until it calls that.
PauseReading: TypeAlias = Callable[[Callable[[], None]], bool]


# Takes True when a request is accepted, and False when the provider has ended it and a retry follows.
NoteAccepted: TypeAlias = Callable[[bool], object]


def never_pause(resume: Callable[[], None]) -> bool:
    """Read without pauses."""
    return False


def note_nothing(is_accepted: bool) -> None:
    """Ignore whether a request is accepted."""


# Takes the quirks that refusals of a request have shown, when it has succeeded (AdaptedRequest.learned).
NoteLearned: TypeAlias = Callable[[dict[str, str]], object]


def learn_nothing(learned: dict[str, str]) -> None:
    """Ignore the quirks of a model's server."""


class Provider:
    """A provider and its connections; belongs to one event loop.

    `name` is for the metrics. Times are in seconds; the module's docstring explains the limits. `max_retries` counts the tries
    after the first; about `retry_delay` passes before the second, twice that before the third.
    """

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        name: str = "",
        headers: Mapping[str, str] | None = None,
        proxy: str = "",
        connect_timeout: float = 10.0,
        first_token_timeout: float = 300.0,
        silence_timeout: float = 120.0,
        wait_limit: float = 300.0,
        tail_timeout: float = 10.0,
        late_text_timeout: float = 30.0,
        max_retries: int = 2,
        retry_delay: float = 0.5,
        max_retry_after: float = 30.0,
    ) -> None:
        self._name = name
        self._secrets = [api_key, *(headers or {}).values(), urlsplit(proxy).password or ""]
        self._first_token_timeout = first_token_timeout
        self._silence_timeout = silence_timeout
        self._wait_limit = wait_limit
        self._tail_timeout = tail_timeout
        self._late_text_timeout = late_text_timeout
        self._max_retries = max_retries
        self._retry_delay = retry_delay
        self._max_retry_after = max_retry_after
        self._cap = cap_field(base_url)
        url = urlsplit(base_url)
        self._address = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"  # for the log
        # No read timeout: the transport would set it anew at each read; `Watchdog` costs less.
        timeout = httpx2.Timeout(None, connect=connect_timeout)
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "none",  # the library insists; servers without keys ignore it
            default_headers=headers,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAioHttpClient(
                timeout=timeout,
                proxy=proxy_of(proxy) if proxy else None,
                mounts=without_proxy(base_url) if not proxy else None,
                verify=ssl_context(),
                # No limit (aiohttp's 0): WORKER_CONCURRENCY bounds the streams, and a lower limit
                # of the pool would be an invisible queue.
                limits=httpx2.Limits(max_connections=0, keepalive_expiry=KEEP_ALIVE_SECONDS),
            ),
        )

    async def close(self) -> None:
        """Close all connections; the provider cannot be used afterwards."""
        await self._client.close()

    async def stream(
        self,
        request: CompletionRequest,
        pause_reading: PauseReading = never_pause,
        note_accepted: NoteAccepted = note_nothing,
        note_learned: NoteLearned = learn_nothing,
    ) -> AsyncGenerator[list[Event]]:
        """Yield the reply's events as they arrive, never an empty list.

        `pause_reading` is called after each read that returned events. If it returns True, nothing
        is read until it calls its argument (late or several times does no harm): backpressure for
        callers that pass the events on in ticks.

        A request is accepted when the headers of a response of status 200 have arrived: from then
        on the provider may charge for it. `note_accepted` is called at that moment.

        A part of the request that the server refuses is sent in another form (llm/request.py). When
        the reply then begins, `note_learned` is called with the quirks that were found.

        Raises ProviderError. A normal end means that the provider reported a complete reply.
        """
        asked = AdaptedRequest(request, self._cap)
        started = was_silent = False
        retry = 0
        while True:
            began, outcome = time.monotonic(), "cancelled"
            try:
                async with aclosing(self._attempt(asked, pause_reading, note_accepted)) as batches:
                    async for events in batches:
                        if not started:
                            started = True
                            if asked.learned:
                                note_learned(asked.learned)
                            metrics.PROVIDER_FIRST_EVENT.labels(self._name).observe(
                                time.monotonic() - began
                            )
                        yield events
                outcome = "ok"
                return
            except ProviderError as error:
                kind, is_silent = type(error).__name__, isinstance(error, ProviderTimeout)
                is_adapted = not started and asked.adapt(error)
                outcome = "adapted" if is_adapted else error.cause
                error.detail = clean(error.detail, request.messages, self._secrets)
                if error.cause == "address":
                    error.detail = f"{self._address}: {error.detail}"
                if is_adapted:
                    delay = 0.0
                    logger.info("%s: %s; asked again in another form", kind, error.detail)
                else:
                    is_last = started or (is_silent and (was_silent or request.has_fallback))
                    wait = None if is_last else self._delay(error, retry)
                    if wait is None or (request.has_fallback and wait > FALLBACK_PATIENCE):
                        error.learned = asked.learned
                        if error.refusal is not None and not started:
                            note_accepted(False)  # also if its status was 200
                        raise
                    delay, retry, was_silent = wait, retry + 1, was_silent or is_silent
                    logger.warning(
                        "%s: %s; try %d follows in %.1f s", kind, error.detail, retry + 1, delay
                    )
                note_accepted(False)
            finally:
                metrics.PROVIDER_REQUESTS.labels(self._name, outcome).inc()
            await asyncio.sleep(delay)

    async def ask(
        self,
        route: str,
        content: bytes,
        *,
        most_bytes: int,
        deadline: float,
        quoted: Iterable[str] = (),
    ) -> bytes:
        """Return the body of the answer to a request that has no stream, tried again as `stream` is.

        `deadline` is by the loop's clock and holds for all tries. A longer body than `most_bytes` is an error.
        The texts `quoted` are removed from the detail of an error. Raises ProviderError.
        """
        loop = asyncio.get_running_loop()
        retry = 0
        while True:
            outcome = "cancelled"
            try:
                async with asyncio.timeout_at(deadline):
                    body = await self._whole_body(route, content, most_bytes)
                outcome = "ok"
                return body
            except (TimeoutError, ProviderError) as failed:
                error = (
                    failed if isinstance(failed, ProviderError) else ProviderTimeout("no answer")
                )
                outcome = error.cause
                messages = [{"role": "user", "content": text} for text in quoted]
                error.detail = clean(error.detail, messages, self._secrets)
                delay = self._delay(error, retry)
                is_late = delay is None or loop.time() + delay >= deadline
                kind = type(error).__name__
                if delay is None or is_late:
                    logger.warning("%s: %s", kind, error.detail)
                    raise error from None
                retry += 1
                logger.warning("%s: %s; try %d in %.1f s", kind, error.detail, retry + 1, delay)
            finally:
                metrics.PROVIDER_REQUESTS.labels(self._name, outcome).inc()
            await asyncio.sleep(delay)

    async def _whole_body(self, route: str, content: bytes, most_bytes: int) -> bytes:
        watchdog = Watchdog(asyncio.get_running_loop())
        parts: list[bytes] = []
        size = 0
        try:
            async with self._answer(route, content, watchdog, float("inf")) as body:
                while part := await body.read():
                    size += len(part)
                    if size > most_bytes:
                        raise ProviderMalformed(f"the answer has more than {most_bytes} bytes")
                    parts.append(part)
        except (httpx2.HTTPError, aiohttp.ClientError) as error:
            raise ProviderCut(described(root_cause(error))) from None
        finally:
            watchdog.cancel()
        return b"".join(parts)

    def _delay(self, error: ProviderError, retry: int) -> float | None:
        if retry == self._max_retries or not error.retryable:
            return None
        if isinstance(error, ProviderTimeout):
            return 0.0  # the user has waited long already
        if isinstance(error, ProviderBusy) and retry:
            status = error.status
            if 400 <= status < 500 and status not in TEMPORARY_STATUSES:
                return None  # the words ask for another try, the status for none: one is enough
        if isinstance(error, ProviderUnreachable) and error.dropped and retry == 0:
            # Most likely a kept-alive connection that the server was just closing: llama.cpp does
            # so after each reply, and the next request may be sent before the close arrives.
            return 0.0
        delay = self._retry_delay * (1 << retry) * random.uniform(0.5, 1.5)  # noqa: S311
        if error.retry_after is not None:
            if error.retry_after > self._max_retry_after:
                return None
            # With jitter on top: many runs may have received the same time.
            return error.retry_after + delay * 0.2
        if isinstance(error, ProviderBusy) and error.status in {503, 529}:
            return delay * OVERLOAD_FACTOR
        return delay

    async def _attempt(
        self, asked: AdaptedRequest, pause_reading: PauseReading, note_accepted: NoteAccepted
    ) -> AsyncGenerator[list[Event]]:
        loop = asyncio.get_running_loop()
        watchdog = Watchdog(loop)
        decoder = StreamDecoder()
        last_event = loop.time()
        silence = self._first_token_timeout
        try:
            content = msgspec.json.encode(asked.body())
            deadline = last_event + silence
            async with self._answer("/chat/completions", content, watchdog, deadline) as body:
                note_accepted(True)
                while True:
                    if decoder.finished:
                        is_late = decoder.is_doubtful
                        limit = self._late_text_timeout if is_late else self._tail_timeout
                        deadline = last_event + limit
                    else:
                        deadline = min(loop.time() + silence, last_event + self._wait_limit)
                    chunk = await watchdog.wait(body.read(), deadline)
                    events = decoder.feed(chunk)
                    if events:
                        yield events
                        last_event = loop.time()
                        silence = self._silence_timeout
                        if not decoder.finished and pause_reading(body.resume):
                            body.pause()
                    if decoder.ended or not chunk:
                        break
                decoder.close()
                with suppress(TimeoutError):
                    await watchdog.wait(body.drain(), loop.time() + DRAIN_SECONDS)
        except TimeoutError:
            if events := decoder.feed(b""):
                yield events
            if not decoder.finished:
                quiet = loop.time() - last_event
                raise ProviderTimeout(f"no event for {quiet:.1f} s") from None
        except (httpx2.HTTPError, aiohttp.ClientError) as error:
            if events := decoder.feed(b""):
                yield events
            if not decoder.finished or decoder.is_doubtful:
                raise ProviderCut(described(root_cause(error))) from None
        finally:
            watchdog.cancel()

    @asynccontextmanager
    async def _answer(
        self, route: str, content: bytes, watchdog: Watchdog, deadline: float
    ) -> AsyncIterator[Body]:
        """Send a request; yield the body of a response of status 200, and close it at the end."""
        try:
            answer = await watchdog.wait(self._post(route, content), deadline)
        except openai.APIStatusError as error:
            raise refusal(error) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = root_cause(error)
            dropped = isinstance(cause, aiohttp.ServerDisconnectedError | ConnectionResetError)
            raise ProviderUnreachable(described(cause), dropped=dropped) from None
        except aiohttp.ClientError as error:
            # The transport does not translate this one: a response that is not HTTP.
            raise ProviderMalformed(described(error)) from None
        body = Body(answer.response)
        try:
            yield body
        finally:
            await body.close()
            await answer.close()

    async def _post(
        self, url: str, content: bytes, *, may_move: bool = True
    ) -> openai.AsyncStream[ChatCompletionChunk]:
        """Send a request; follow a redirect only if it keeps the method and the host, and only one."""
        # Not chat.completions.create(): it transforms the whole prompt into the form that it has
        # already, which takes 13 ms of CPU for 60 messages instead of 1.
        call = self._client.post(
            url,
            cast_to=ChatCompletionChunk,
            content=content,
            # A compressed event stream arrives late, and costs CPU on both sides.
            options={"headers": {"Accept-Encoding": "identity"}, "follow_redirects": False},
            stream=True,
            stream_cls=openai.AsyncStream[ChatCompletionChunk],
        )
        try:
            return await call
        except openai.APIStatusError as error:
            target = redirect_target(error.response)
            if (
                not may_move
                or error.status_code not in {307, 308}
                or not is_same_host(error, target)
            ):
                raise
        return await self._post(target, content, may_move=False)


def proxy_of(address: str) -> httpx2.Proxy:
    """Return a proxy by its address. aiohttp takes its user as a header, and makes the right one of it."""
    url = httpx2.URL(address)
    headers = {}
    if url.username:
        headers["Authorization"] = aiohttp.encode_basic_auth(url.username, url.password)
    return httpx2.Proxy(url.copy_with(username=None, password=None), headers=headers)


def without_proxy(base_url: str) -> dict[str, None]:
    """Return the client's mounts that keep requests to a loopback address off the environment's proxies."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    pattern = f"all://[{host}]" if ":" in host else f"all://{host}"
    return {pattern: None} if is_loopback(parts.netloc) else {}


@cache
def ssl_context() -> ssl.SSLContext:
    """Return the context of all providers: reading the certificates anew blocks the loop for a while."""
    return httpx2.create_ssl_context()


def cap_field(base_url: str) -> str:
    """Return the field for the reply's cap: the old `max_tokens`, which all other servers support,
    is refused by OpenAI's newer models."""
    host = urlsplit(base_url).hostname or ""
    is_openai = host.endswith((".openai.com", ".azure.com"))
    return "max_completion_tokens" if is_openai else "max_tokens"


def redirect_target(response: httpx2.Response) -> str:
    """Return the address that a response redirects to; as it is written, if that is no address."""
    location = response.headers.get("location", "")
    try:
        return str(response.url.join(location))
    except httpx2.InvalidURL:
        return location


def is_same_host(error: openai.APIStatusError, target: str) -> bool:
    """Return whether a redirect stays on the host that was asked, and does not leave TLS."""
    try:
        here, there = error.response.url, httpx2.URL(target)
    except httpx2.InvalidURL:
        return False
    return there.host == here.host and there.scheme in {here.scheme, "https"}


def root_cause(error: BaseException) -> BaseException:
    """Return the innermost exception: the outer ones have only the text "Connection error."."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def described(error: BaseException) -> str:
    """Return type and text of an exception, for the log."""
    return f"{type(error).__name__}: {error}"


class Watchdog:
    """`asyncio.timeout` for many short waits of one task, with one timer that is moved lazily.

    A stream waits once per token; creating and cancelling a timer each time takes a tenth of the
    CPU time of reading. Here each wait only stores its deadline, which the timer checks when it
    fires.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Must be called in the task that will wait."""
        self._loop = loop
        self._task = cast("asyncio.Task[Any]", asyncio.current_task(loop))
        self._is_waiting = False
        self._deadline = 0.0
        self._expired = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    async def wait(self, awaitable: Awaitable[T], deadline: float) -> T:
        """Return the awaitable's result; at `deadline` cancel it and raise TimeoutError."""
        cancelling = self._task.cancelling()
        self._deadline = deadline
        self._is_waiting = True
        if deadline < self._timer_at:
            self._set_timer(deadline)
        try:
            return await awaitable
        except asyncio.CancelledError:
            # As in asyncio.timeout: our own cancellation, unless the task was cancelled as well.
            if self._expired and self._task.uncancel() <= cancelling:
                raise TimeoutError from None
            raise
        finally:
            self._is_waiting = False

    def cancel(self) -> None:
        """Cancel the timer, after the last wait."""
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, when: float) -> None:
        self.cancel()
        self._timer = self._loop.call_at(when, self._check)
        self._timer_at = when

    def _check(self) -> None:
        self._timer_at = float("inf")
        if not self._is_waiting:
            return  # the next wait sets the timer again
        if self._loop.time() < self._deadline:
            self._set_timer(self._deadline)
        else:
            self._expired = True
            self._task.cancel()


def refusal(error: openai.APIStatusError) -> ProviderError:
    """Return the error for a response whose status is not 200."""
    status, text = error.status_code, error.response.text
    page = is_page(text)
    report = read_error(error_body(error.response.content))
    words = "a page of HTML" if page else report.message or text
    if 300 <= status < 400:
        words = f"redirects to {redirect_target(error.response)}"
    detail = f"HTTP {status} {report.title} {words} ({error.request_id or 'no request id'})"
    refused = refusal_of(status, report, is_page=page)
    if refused is not None:
        return ProviderRefused(detail, refused)
    wait = retry_after(error.response.headers)
    if wait is None:
        wait = seconds_to_wait(report)
    return ProviderBusy(detail, status=status, retry_after=wait)


def error_body(content: bytes) -> object:
    """Return the body of an error: its JSON, also as an event, or else its text."""
    try:
        return lenient_json.loads(content.strip().removeprefix(b"data:"))
    except ValueError:
        return content.decode(errors="replace")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, by the headers of a response; None without a readable one.

    `retry-after-ms` (OpenAI, Azure) and Retry-After, in seconds or as a date (RFC 9110, 10.2.3), also
    as LiteLLM passes them on; then the `x-ratelimit-reset` of a limit that is used up.
    """
    for prefix in ("", "llm_provider-"):
        with suppress(KeyError, ValueError):
            return max(0.0, float(headers[f"{prefix}retry-after-ms"]) / 1000)
        value = headers.get(f"{prefix}retry-after", "")
        with suppress(ValueError):
            return max(0.0, float(value))
        with suppress(ValueError):
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    resets = []
    for prefix, limit in product(("", "llm_provider-"), ("-requests", "-tokens", "")):
        if headers.get(f"{prefix}x-ratelimit-remaining{limit}", "").strip() == "0":
            resets.append(seconds_until(headers.get(f"{prefix}x-ratelimit-reset{limit}", "")))
    return max((seconds for seconds in resets if seconds is not None), default=None)


def seconds_until(reset: str) -> float | None:
    """Return the seconds until the reset of a limit, None if they are ambiguous.

    OpenAI and Groq write `6m0s` or `20ms`, OpenRouter milliseconds since 1970; other numbers have no
    common unit.
    """
    if re.fullmatch(r"(\d+(\.\d+)?(ms|[hms]))+", reset):
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[hms])", reset)
        return sum(float(number) * UNITS[unit] for number, unit in parts)
    if re.fullmatch(r"1\d{12}", reset):
        return max(0.0, int(reset) / 1000 - time.time())
    return None


UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def clean(detail: str, messages: Iterable[dict[str, Any]], secrets: Iterable[str]) -> str:
    """Make `detail` fit for a log: short, without secrets and without text of the prompt.

    Providers often quote the message that they refuse. Every sequence of 20 characters that also
    occurs in a message is removed, and shorter messages as a whole.
    """
    detail = " ".join(detail[: 10 * DETAIL_CHARACTERS].split())
    for secret in secrets:
        if len(secret) > 3:  # else a header's flag, which would cut up words
            detail = detail.replace(secret, "[key]")
    for text in texts(messages):
        detail = without(detail, " ".join(text.split()))
    return detail[:DETAIL_CHARACTERS]
