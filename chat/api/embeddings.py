"""POST /v1/embeddings: vectors for texts, by a model of that kind.

The web process asks the provider itself: a call takes a second, has no stream and nothing to go on with elsewhere.
chat/runs/embeddings.py has its money. A client that hangs up ends the call, and pays by
estimate: the provider has most likely done the work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar
from weakref import WeakValueDictionary

import msgspec
from django.conf import settings
from msgspec import Meta

from billing import credits
from billing.metering.pricing import Tokens
from billing.models import UsageRecord
from chat.api import bodies, models, schemas
from chat.api.auth import Caller
from chat.api.errors import of_run
from chat.api.replies import ClientGone, hang_up
from chat.api.requests import Request, in_thread
from chat.api.schemas import wrong
from chat.llm.connections import current_connections, load
from chat.llm.embeddings import SIZES, EmbeddingRequest, Encoding, Vectors, embed
from chat.llm.errors import ProviderError
from chat.llm.tokens import token_upper_bound, typical_tokens
from chat.models import LanguageModel, Provider
from chat.models.catalogue import ModelKind
from chat.runs import embeddings as calls
from chatproject.lib import db

logger = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS = 120.0  # of a call, with all tries
SPARE_BYTES = 100_000  # of an answer, beside its vectors
MOST_ANSWER_BYTES = 40_000_000
SETTLE_TRIES = 3
SETTLE_PAUSE = 1.0  # seconds

encode = msgspec.json.encode

Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request for embeddings."""

    model: str
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None  # without effect here


_decoder = msgspec.json.Decoder(Body)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked request of a caller; `most_tokens` and `typical` are bound and estimate of its tokens."""

    caller: Caller
    name: str  # of the model, as the request has it
    model: LanguageModel
    provider: Provider
    request: EmbeddingRequest
    most_tokens: int
    typical: int


async def embeddings(asked: Request) -> None:
    """Answer a request for embeddings. Raises ApiError."""
    prepared = await in_thread(prepare, asked)
    asked.release()
    user = prepared.caller.key.user_id
    # Further calls of a user wait, as replies do.
    turn = _turns.setdefault(user, asyncio.Semaphore(settings.USER_CONCURRENCY))
    async with turn:
        room = await bodies.budget.reserve(prepared.request.most_bytes, user)
        try:
            found, charged = await answered(asked, prepared)
            await asked.answer(200, await asyncio.to_thread(body_of, prepared, found, charged))
        finally:
            room.release()


_turns: WeakValueDictionary[int, asyncio.Semaphore] = WeakValueDictionary()


def prepare(asked: Request) -> Prepared:
    """Check the key and the body of a request. Raises ApiError."""
    who = asked.authenticate()
    body = schemas.decode_as(_decoder, asked.take_body())
    model = models.find(who.user, body.model, ModelKind.EMBEDDING)
    provider = model.provider or Provider.objects.filter(base_url="").first() or Provider()
    inputs = checked(body.input, model)
    encoding: Encoding = body.encoding_format or "float"
    size = max(body.dimensions or 0, model.dimensions or 0)
    most_bytes = len(inputs) * (size * SIZES[encoding] + 100) + SPARE_BYTES
    if most_bytes > MOST_ANSWER_BYTES:
        words = "The answer could have more than 40 MB. Send fewer inputs, or ask for the 'encoding_format' base64."
        raise wrong("input", words)
    bounds, typical = 0, 0
    for one in inputs:
        bounds += token_upper_bound(one) if isinstance(one, str) else len(one)
        typical += typical_tokens(one) if isinstance(one, str) else len(one)
    return Prepared(
        who,
        body.model,
        model,
        provider,
        EmbeddingRequest(
            model.provider_model, inputs, encoding, body.dimensions, most_bytes, SECONDS
        ),
        most_tokens=bounds,
        typical=typical,
    )


def checked(sent: str | list[Any], model: LanguageModel) -> list[str] | list[list[int]]:
    """Return the inputs of a request: a text, texts, tokens, or lists of tokens. Raises ApiError."""
    if isinstance(sent, str) or (sent and isinstance(sent[0], int)):
        sent = [sent]
    if not sent:
        raise wrong("input", "'input' is empty: send at least one text.", "empty_array")
    kind: Any = list[str] if isinstance(sent[0], str) else list[list[Token]]
    try:
        inputs = msgspec.convert(sent, kind)
    except msgspec.ValidationError:
        words = (
            "'input' must be a text, a list of texts, a list of tokens, or a list of such lists."
        )
        raise wrong("input", words) from None
    if len(inputs) > model.max_inputs:
        words = f"'input' has {len(inputs)} inputs, and this model takes {model.max_inputs}."
        raise wrong("input", f"{words} Send them in parts.")
    for number, one in enumerate(inputs):
        if not one:
            raise wrong(f"input[{number}]", f"'input[{number}]' is empty.")
        # Of a text the number is known to its server alone: twice of the estimate is surely too much.
        tokens = typical_tokens(one) // 2 if isinstance(one, str) else len(one)
        if tokens > model.context_tokens:
            words = f"'input[{number}]' is longer than {model.context_tokens} tokens. Shorten it, or send it in parts."
            raise wrong(f"input[{number}]", words, "context_length_exceeded")
    return inputs  # type: ignore[no-any-return] # of one of two types


async def answered(asked: Request, prepared: Prepared) -> tuple[Answer, int | None]:
    """Return the vectors and the charge of a call.

    Raises ApiError, and nothing is charged; and ClientGone, when the estimate is: a client could have its inputs
    processed at the operator's expense else.
    """
    call = await in_thread(calls.begin, prepared.caller.key, prepared.model, prepared.most_tokens)
    try:
        vectors = await until_hang_up(asked, ask(prepared))
        # Servers' own counts, if they are possible.
        tokens = Tokens.reported(input=vectors.tokens or prepared.typical)
        source = UsageRecord.Source.PROVIDER if vectors.tokens else UsageRecord.Source.COUNTED
        charged = await in_thread(calls.end, call, tokens, source)
    except BaseException as error:
        is_charged = isinstance(error, ClientGone)
        settling = asyncio.create_task(
            settle(call, Tokens(input=prepared.typical) if is_charged else None)
        )
        _settling.add(settling)
        settling.add_done_callback(_settling.discard)
        with suppress(asyncio.CancelledError):
            await asyncio.shield(settling)
        if isinstance(error, ProviderError):
            logger.info("a call for embeddings of %s failed: %s", prepared.model, error.detail)
            raise of_run(error.code, error.cause, str(error.message)) from error
        raise
    return Answer(vectors.vectors, tokens.input), charged


_settling: set[asyncio.Task[None]] = set()


@dataclass(frozen=True, slots=True)
class Answer:
    """The vectors of a call and the tokens of its inputs."""

    vectors: list[msgspec.Raw]
    tokens: int


async def ask(prepared: Prepared) -> Vectors:
    """Ask the provider. Raises ProviderError."""
    await asyncio.to_thread(load)
    with current_connections().use(prepared.provider) as provider:
        return await embed(provider, prepared.request)


async def until_hang_up(asked: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of some work, which ends when the client hangs up. Raises ClientGone."""
    working, gone = asyncio.create_task(work), asyncio.create_task(hang_up(asked.receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        gone.cancel()
        if working.cancel():
            with suppress(asyncio.CancelledError, ProviderError):
                await working


async def settle(call: calls.EmbeddingCall, tokens: Tokens | None) -> None:
    """Charge a call without an answer for so many tokens, or release its hold.

    If the database stays unreachable, the clock releases it later.
    """
    for turn in range(SETTLE_TRIES):
        try:
            await db.run(calls.end, call, tokens, UsageRecord.Source.COUNTED)
            return
        except db.UNREACHABLE as error:
            logger.warning("call %s is not settled yet: %s", call.id, error)
            if turn + 1 < SETTLE_TRIES:
                await asyncio.sleep(SETTLE_PAUSE)


def body_of(prepared: Prepared, found: Answer, charged: int | None) -> bytes:
    """Return the answer's body."""
    usage: dict[str, Any] = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    if charged is not None:
        usage["cost"] = msgspec.Raw(credits.exact(charged).encode())
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(found.vectors)
    ]
    return encode({"object": "list", "data": data, "model": prepared.name, "usage": usage})
