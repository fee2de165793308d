"""The Test button of a provider: one token is asked for, as a reply would ask, and the answer measured.

Blocking, for a page of staff: the request has a thread and an event loop of its own, so that neither
the page's thread nor its database connection can be kept longer than the limit.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from chat.llm.address import Diagnosis, diagnose
from chat.llm.connections import Row, opened
from chat.llm.deadline import within
from chat.llm.decoder import Finish, ReasoningDelta, TextDelta, Usage
from chat.llm.errors import Cause, ProviderError
from chat.llm.quirks import SHORTEST_REPLY, Quirks
from chat.llm.request import CompletionRequest

SECONDS = 8.0  # for all requests of a test: a page is due after 9.5 s (chatproject.lib.db.limits)
CONNECT_SECONDS = 3.0
QUESTION = "Hi"
SHOWN_CHARACTERS = 200

# Failures whose reason may be the base URL, the network or the proxy: the diagnosis names it.
OF_THE_ADDRESS = frozenset(("address", "malformed", "unreachable"))

REMEDIES: dict[Cause, str] = {
    "address": "No API of chat completions is at this address. Correct the base URL.",
    "key": "The provider refused the key. Enter a valid one.",
    "quota": "The credits or the budget at the provider are used up. Pay or raise them there.",
    "model": "The provider has no such model. Correct the model's name, or discover the models.",
    "context": "The provider refused the length of the request. Check the model's limits.",
    "content": "The provider's content policy refused the test. Try another model.",
    "refused": "The provider refused the request. Its words name the reason.",
    "busy": "The provider cannot answer now. Wait, or ask it for higher limits.",
    "unreachable": "No connection. Check the network, the DNS, the proxy and TLS.",
    "timeout": "The provider did not answer in time. It may be loading the model: try again.",
    "cut": "The stream broke off. Check proxies in between, and try again.",
    "malformed": "The answer is no stream of chat completions. Check the base URL.",
    "reported": "The provider reported an error while answering. Try again.",
}


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of a test. Times are in milliseconds from the beginning of the request.

    `cause` is "" for an answer, else a cause as in Run.error_cause. `sentence` ends with a remedy;
    `detail` are the provider's words, without secrets. `suggestion` is a base URL that works.
    `first_byte` is when the headers of the response came, `first_event` the first piece of it, None if
    none came. `adapted` are the quirks of the server that the test met.
    """

    model: str = ""
    cause: str = ""
    sentence: str = ""
    detail: str = ""
    suggestion: str = ""
    text: str = ""
    thoughts: str = ""
    finish: str = ""
    usage: Usage | None = None
    first_byte: int | None = None
    first_event: int | None = None
    whole: int = 0
    adapted: dict[str, str] = field(default_factory=dict)

    @property
    def is_fine(self) -> bool:
        return not self.cause


def probe(row: Row, model: str, quirks: Quirks, *, seconds: float = SECONDS) -> Probe:
    """Return what a model of a provider answers within so many seconds; never raises ProviderError."""
    began = time.monotonic()

    def work() -> Probe:
        found = asyncio.run(_ask(row, model, quirks, 1, seconds))
        if found.cause in {"context", "refused"}:  # some servers have a shortest reply
            left = seconds - (time.monotonic() - began)
            found = asyncio.run(_ask(row, model, quirks, SHORTEST_REPLY, left))
        return found

    try:
        found = within(seconds + 0.2, work, name="test of a provider")
    except TimeoutError:
        found = Probe(cause="timeout", sentence=REMEDIES["timeout"])
    found = replace(found, model=model)
    left = seconds - (time.monotonic() - began)
    if found.cause in OF_THE_ADDRESS and left > 1:
        diagnosis = diagnosis_of(row, left)
        if diagnosis.cause:
            found = replace(
                found,
                cause=diagnosis.cause,
                sentence=diagnosis.sentence,
                suggestion=diagnosis.suggestion,
            )
    return found


def diagnosis_of(row: Row, seconds: float = SECONDS) -> Diagnosis:
    """Return the diagnosis of a provider's address. Raises encryption.Undecryptable."""
    return diagnose(row.address, key=row.key, proxy=row.proxy, headers=row.headers, seconds=seconds)


async def _ask(row: Row, model: str, quirks: Quirks, tokens: int, seconds: float) -> Probe:
    began = time.monotonic()

    def elapsed() -> int:
        return round((time.monotonic() - began) * 1000)

    accepted: list[int] = []

    def note_accepted(is_accepted: bool) -> None:
        if is_accepted:
            accepted.append(elapsed())

    adapted: dict[str, str] = {}
    text, thoughts, finish = "", "", ""
    first: int | None = None
    usage: Usage | None = None
    failure: ProviderError | None = None
    request = CompletionRequest(
        model, [{"role": "user", "content": QUESTION}], max_tokens=tokens, quirks=quirks
    )
    try:
        provider = opened(
            row,
            connect_timeout=min(CONNECT_SECONDS, seconds),
            first_token_timeout=seconds,
            silence_timeout=seconds,
            wait_limit=seconds,
            tail_timeout=1.0,
            late_text_timeout=1.0,
            max_retries=0,
        )
    except ProviderError as error:
        return Probe(cause=error.cause, sentence=REMEDIES[error.cause], detail=error.detail)
    try:
        async with (
            asyncio.timeout(seconds),
            aclosing(
                provider.stream(
                    request,
                    note_accepted=note_accepted,
                    note_learned=adapted.update,
                )
            ) as batches,
        ):
            async for events in batches:
                first = elapsed() if first is None else first
                for event in events:
                    match event:
                        case TextDelta():
                            text = (text + event.text)[:SHOWN_CHARACTERS]
                        case ReasoningDelta():
                            thoughts = (thoughts + event.text)[:SHOWN_CHARACTERS]
                        case Finish():
                            finish = event.reason
                        case Usage():
                            usage = event
                        case _:
                            pass  # calls of tools, which were not offered
    except ProviderError as error:
        failure = error
    except TimeoutError:
        return Probe(
            cause="timeout",
            sentence=REMEDIES["timeout"],
            text=text,
            first_byte=accepted[-1] if accepted else None,
            first_event=first,
            whole=elapsed(),
        )
    finally:
        await provider.close()
    return Probe(
        cause=failure.cause if failure else "",
        sentence=REMEDIES[failure.cause] if failure else "",
        detail=failure.detail if failure else "",
        text=text,
        thoughts=thoughts,
        finish=finish,
        usage=usage,
        first_byte=accepted[-1] if accepted else None,
        first_event=first,
        whole=elapsed(),
        adapted=adapted,
    )
