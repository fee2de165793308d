"""Embeddings of the fake provider: vectors that depend on their input alone."""

from __future__ import annotations

import base64
import hashlib
from array import array
from typing import Any

import msgspec

DIMENSIONS = 8
FLOAT_ONLY = "float-only"  # a model whose server does not have the other encoding


class EmbeddingsRequest(msgspec.Struct):
    """The fields of OpenAI's request."""

    input: str | list[Any]
    model: str = "fake"
    encoding_format: str = "float"
    dimensions: int = DIMENSIONS

    @property
    def inputs(self) -> list[Any]:
        return self.input if isinstance(self.input, list) else [self.input]

    @property
    def first(self) -> str:
        """The first text, which may have directives."""
        first = self.inputs[0]
        return first if isinstance(first, str) else ""


def vector_of(text: Any, dimensions: int = DIMENSIONS) -> list[float]:
    """Return the vector of an input: single-precision numbers between -1 and 1."""
    seed = repr(text).encode()
    numbers = (hashlib.blake2b(b"%d %b" % (n, seed)).digest()[0] for n in range(dimensions))
    return array("f", [number / 127.5 - 1 for number in numbers]).tolist()


def tokens_of(text: Any) -> int:
    """Return the tokens of an input: its words, or their numbers."""
    return len(text.split()) if isinstance(text, str) else len(text)


def answer(request: EmbeddingsRequest, *, nousage: bool) -> dict[str, Any]:
    """Return the answer to a request, its last item first."""
    data = []
    for index, one in enumerate(request.inputs):
        vector: Any = vector_of(one, request.dimensions)
        if request.encoding_format == "base64" and request.model != FLOAT_ONLY:
            vector = base64.b64encode(array("f", vector).tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    made: dict[str, Any] = {"object": "list", "data": data[::-1], "model": request.model}
    if not nousage:
        tokens = sum(map(tokens_of, request.inputs))
        made["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return made
