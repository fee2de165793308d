"""How a provider fails, in words for the user and in words for the log."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias


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
