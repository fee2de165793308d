"""Errors of a model provider, with a message for the user and a detail for the log."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias


class ProviderError(Exception):
    """The reason why a reply is missing or incomplete.

    ProviderError
    ├── ProviderUnreachable   no connection: refused, reset, unknown host, TLS, connect timeout
    ├── ProviderTimeout       connected, but silent for longer than the limits of `Provider`
    ├── ProviderBusy          429 or 5xx: not now (`retry_after` seconds, if sent)
    ├── ProviderRefused       the request will not be answered (`reason`)
    ├── ProviderCut           the stream broke off in the middle
    ├── ProviderMalformed     the response is not a stream of chat completions
    └── ProviderReported      an error object in the stream (`reason`, if it is a refusal)

    `code` is the wire protocol's error code. `message` is for the user: the problem, then a remedy.
    `detail` is for the log: status and the provider's message, shortened; `Provider.stream` removes
    the key and the prompt from it. `retryable`: the same request may well succeed later.
    """

    code = "provider_error"
    message = "The model provider failed. Try again in a moment."
    retryable = True

    def __init__(self, detail: str) -> None:
        super().__init__(self.message)
        self.detail = detail


class ProviderUnreachable(ProviderError):
    message = "The model provider cannot be reached right now. Try again in a few minutes."

    def __init__(self, detail: str, *, dropped: bool) -> None:
        super().__init__(detail)
        self.dropped = dropped  # the server closed an established connection


class ProviderTimeout(ProviderError):
    code = "provider_timeout"
    message = "The model provider took too long to answer. Try again."


class ProviderBusy(ProviderError):
    message = "The model provider cannot answer right now. Try again in a minute."

    def __init__(self, detail: str, *, status: int, retry_after: float | None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after = retry_after


class ProviderCut(ProviderError):
    message = "The connection to the model provider was lost. Try again."


class ProviderMalformed(ProviderError):
    message = "The model provider sent an invalid response. Try again; if it happens again, contact the site administrator."
    retryable = False


Reason: TypeAlias = Literal["context", "key", "quota", "model", "content", "request"]

REFUSALS: dict[Reason, str] = {
    "context": "The conversation is too long for this model. Start a new chat.",
    "key": "The model provider rejected this site's API key. Contact the site administrator; trying again will not help.",
    "quota": "This site's quota with the model provider is used up. Contact the site administrator.",
    "model": "The model provider does not offer this model. Contact the site administrator.",
    "content": "The model provider refused this message because of its content policy. Rephrase it.",
    "request": "The model provider refused this request. Try again; if it happens again, contact the site administrator.",
}


class ProviderRefused(ProviderError):
    retryable = False

    def __init__(self, detail: str, *, reason: Reason) -> None:
        self.message = REFUSALS[reason]
        super().__init__(detail)
        self.reason = reason


class ProviderReported(ProviderError):
    message = "The model provider reported an error while answering. Try again."

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


def reason_of(status: int, codes: str, message: str) -> Reason | None:
    """Classify a refusal by its HTTP status (0: unknown), error codes and message.

    Returns None for an error that may be temporary. The codes are OpenAI's (platform.openai.com,
    "Error codes"), Azure's, llama.cpp's (`exceed_context_size_error`, in its first versions with
    status 500) and OpenRouter's.
    """
    if QUOTA_CODES.search(codes) or status == 402:
        return "quota"
    if CONTEXT_CODES.search(codes) or (status != 429 and CONTEXT_WORDS.search(message)):
        return "context"
    if CONTENT_CODES.search(codes):
        return "content"
    if MODEL_CODES.search(codes) or status == 404:
        return "model"
    if "invalid_api_key" in codes or status == 401:
        return "key"
    return "context" if status == 413 else None
