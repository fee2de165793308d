"""The prompt of a run of the OpenAI-compatible API: the messages of its request, as they were sent.

`prompt_of` returns the prompt of any run.
"""

from __future__ import annotations

from typing import Any

import msgspec

from billing.metering import pricing
from chat.conversations import prompt_builder
from chat.conversations.prompt_builder import SMALLEST_REPLY, Prompt
from chat.llm.quirks import Quirks
from chat.llm.tokens import TEMPLATE_TOKENS, count_tokens, token_upper_bound, typical_tokens
from chat.models import ApiCall, Run


class ApiRequest(msgspec.Struct, frozen=True):
    """A checked request, as `ApiCall.request` stores it.

    `messages` are in OpenAI's format, with images as data URLs, whose tokens are `image_tokens`, by the estimate and
    at most. `fields` are added to the provider's request: tools, stop, response_format and the like.
    """

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    temperature: float | None = None
    fields: dict[str, Any] = {}
    image_tokens: tuple[int, int] = (0, 0)

    def stored(self) -> str:
        """Return it as JSON."""
        return msgspec.json.encode(self).decode()

    def texts(self) -> list[str]:
        """Return all of its text, for the estimates of tokens: one for each message, and the tools."""
        found = [text_of(one) for one in self.messages]
        if self.fields:
            found.append(msgspec.json.encode(self.fields).decode())
        return found


def text_of(message: dict[str, Any]) -> str:
    """Return all text of a message that a model may read: its content, names and tool calls."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "\n".join(part["text"] for part in content if part["type"] == "text")
    named = [message[field] for field in ("name", "tool_call_id") if message.get(field)]
    calls = message.get("tool_calls")
    return "\n".join([content, *named]) + (msgspec.json.encode(calls).decode() if calls else "")


def request_of(run: Run) -> ApiRequest:
    """Return the request of a run of the API; one query, unless the run was just made."""
    if run.api_request is None:
        stored = ApiCall.objects.values_list("request", flat=True).get(pk=run.pk)
        run.api_request = msgspec.json.decode(stored, type=ApiRequest)
    found: ApiRequest = run.api_request
    return found


def prompt_of(run: Run, *, within: int | None = None, with_files: bool = False) -> Prompt:
    """Return the prompt of any run; `within` and `with_files` as in `prompt_builder.build`.

    Nothing of a request of the API is left out: its program decides what the model reads.
    """
    if run.api is None:
        return prompt_builder.build(run, within=within, with_files=with_files)
    request, model = request_of(run), run.model
    texts = request.texts()
    messages = request.messages
    longest_reply = Quirks.of(model.quirks).lower(model.max_output_tokens)
    cap = min(longest_reply, request.max_tokens or longest_reply, run.max_tokens or longest_reply)
    if run.prefix:
        # Only of a model that continues it; the part that this run has made counts against the cap.
        messages = [*messages, {"role": "assistant", "content": run.prefix}]
        texts.append(run.prefix)
        cap = max(1, cap - typical_tokens(run.prefix))
    typical, most = request.image_tokens
    bound = TEMPLATE_TOKENS + most + sum(map(token_upper_bound, texts))
    if run.prefix and run.price is not None and run.most:
        affordable = pricing.affordable(
            run.price, prompt_tokens=bound, credits=run.most, fee=run.fee
        )
        cap = min(cap, max(1, affordable))
    used = typical + sum(map(count_tokens, texts))
    return Prompt(
        messages=messages,
        tokens=typical + sum(map(typical_tokens, texts)),
        token_upper_bound=bound,
        max_tokens=min(cap, max(SMALLEST_REPLY, model.context_tokens - used)),
        size=used,
        is_single=True,
        fields=request.fields,
        temperature=request.temperature,
    )
