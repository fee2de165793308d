"""Embeddings of a provider (`POST /embeddings`, as OpenAI defines it), in either of their two encodings.

The vectors stay as JSON: a list of Python's numbers takes five times the memory. A server that does not have the
encoding that was asked for answers with the other one, which is converted.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from chat.llm.errors import ProviderError, ProviderMalformed

if TYPE_CHECKING:
    from chat.llm.provider import Provider

Encoding = Literal["float", "base64"]

# Bytes of a number of a vector in JSON: 16 base64 characters have three, and a double has up to 24.
SIZES: dict[Encoding, int] = {"base64": 6, "float": 25}
QUOTED = 50  # inputs that are removed from the detail of an error

encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """The inputs are texts or lists of token numbers; `dimensions` None is not sent.

    The answer may have `most_bytes`, and may take so many `seconds` with all tries.
    """

    model: str
    inputs: Sequence[str] | Sequence[list[int]]
    encoding: Encoding
    dimensions: int | None
    most_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vectors of the inputs in their order, each as JSON; `tokens` as the provider counted them, if it did."""

    vectors: list[msgspec.Raw]
    tokens: int | None


class Item(msgspec.Struct):
    embedding: msgspec.Raw
    index: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class Answer(msgspec.Struct):
    data: list[Item]
    usage: Usage | None = None


async def embed(provider: Provider, request: EmbeddingRequest) -> Vectors:
    """Ask a provider for embeddings. Raises ProviderError."""
    body: dict[str, object] = {
        "model": request.model,
        "input": request.inputs,
        "encoding_format": request.encoding,
    }
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    deadline = asyncio.get_running_loop().time() + request.seconds
    quoted = [one for one in request.inputs[:QUOTED] if isinstance(one, str)]

    async def asked() -> bytes:
        return await provider.ask(
            "/embeddings",
            await asyncio.to_thread(encode, body),
            most_bytes=request.most_bytes,
            deadline=deadline,
            quoted=quoted,
        )

    try:
        content = await asked()
    except ProviderError as error:
        if error.refusal is None or error.refusal.parameter != "encoding_format":
            raise
        del body["encoding_format"]
        content = await asked()
    return await asyncio.to_thread(decoded, content, request)


def decoded(content: bytes, request: EmbeddingRequest) -> Vectors:
    """Return the vectors of an answer. Raises ProviderMalformed."""
    try:
        answer = msgspec.json.decode(content, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProviderMalformed(f"embeddings: {error}") from None
    found: list[msgspec.Raw | None] = [None] * len(request.inputs)
    sizes = set()
    for position, item in enumerate(answer.data):
        index = position if item.index is None else item.index
        if not 0 <= index < len(found) or found[index] is not None:
            raise ProviderMalformed(f"embeddings: the index {index} is not expected")
        vector, size = checked(item.embedding, request.encoding)
        found[index] = vector
        sizes.add(size)
    vectors = [one for one in found if one is not None]
    if len(vectors) < len(found) or len(sizes) != 1:
        words = f"{len(vectors)} vectors for {len(found)} inputs, of the sizes {sorted(sizes)[:5]}"
        raise ProviderMalformed(f"embeddings: {words}")
    usage = answer.usage
    tokens = None
    if usage is not None:
        tokens = usage.prompt_tokens if usage.prompt_tokens is not None else usage.total_tokens
    return Vectors(vectors, tokens)


def checked(raw: msgspec.Raw, encoding: Encoding) -> tuple[msgspec.Raw, int]:
    """Return a vector in the encoding that was asked for, and its size. Raises ProviderMalformed."""
    try:
        if bytes(memoryview(raw)[:1]) == b'"':
            numbers = array(
                "f", base64.b64decode(msgspec.json.decode(raw, type=str), validate=True)
            )
            is_asked = encoding == "base64"
        else:
            numbers = array("f", msgspec.json.decode(raw, type=list[float]))
            is_asked = encoding == "float"
        if not numbers or not math.isfinite(math.fsum(numbers)):
            raise ValueError("it is empty, or not finite")
    except (msgspec.DecodeError, binascii.Error, ValueError, OverflowError) as error:
        raise ProviderMalformed(f"embeddings: a vector is not valid: {error}") from None
    if is_asked:
        return raw, len(numbers)
    if encoding == "base64":
        return msgspec.Raw(encode(base64.b64encode(numbers.tobytes()).decode())), len(numbers)
    return msgspec.Raw(encode(numbers.tolist())), len(numbers)
