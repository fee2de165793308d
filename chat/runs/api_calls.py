"""Asking for a reply to a request of the OpenAI-compatible API.

The reply has a run, a hold and a charge as any other. Its conversation is temporary and holds this run alone, and
the request is stored beside the run as it was checked: the model gets that, and no tree of messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.utils import timezone

from accounts.models import ApiKey
from chat.conversations import lifecycle, offers
from chat.conversations.api_prompt import ApiRequest, text_of
from chat.errors import ChatError
from chat.models import ApiCall, Assistant, Conversation, LanguageModel, Message, Run, new_id
from chat.moderation import rules
from chat.runs import admission, cost, start
from chatproject.lib import languages, metrics
from chatproject.lib.db import prepared

ASSISTANT = "API"  # of the calls, in records of usage
OVERLAP = (
    200  # characters of two successive parts of a moderated text: a phrase is whole in one of them
)
# Of tools and formats; other keys may have any text.
WORDS_OF_SCHEMAS = {
    *("function", "json_object", "json_schema", "text", "name", "description", "strict", "schema"),
    *("parameters", "type", "properties", "required", "items", "enum", "const", "default"),
    *("object", "array", "string", "number", "integer", "boolean", "null", "title", "examples"),
    *("additionalProperties", "anyOf", "allOf", "oneOf", "not", "format", "pattern", "$defs"),
    *("$ref", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"),
}


def reviewed(request: ApiRequest) -> Iterator[str]:
    """Yield the texts of the caller that are moderated, in parts that a rule takes.

    All of a request: its program decides what is history. Not the replies and results of tools, which may quote. Of
    tools and the format of the reply the names, descriptions and schemas, which the model reads as well.
    """
    if not settings.MODERATION:
        return
    texts = [text_of(one) for one in request.messages if one["role"] in ("system", "user")]
    texts += _texts_in([request.fields.get("tools"), request.fields.get("response_format")])
    text, size = "\n".join(texts), settings.TEXT_MAX_CHARACTERS
    yield from (text[at : at + size] for at in range(0, len(text), size - OVERLAP))


def _texts_in(values: list[Any]) -> list[str]:
    """Return all texts in JSON values, keys too, but for the words of JSON Schema itself."""
    found: list[str] = []
    waiting = values[::-1]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for key, inner in reversed(value.items()):
                waiting += [inner, key]
        elif isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, str) and value not in WORDS_OF_SCHEMAS:
            found.append(value)
    return found


def start_call(key: ApiKey, model: LanguageModel, request: ApiRequest, *, streamed: bool) -> Run:
    """Store a run for a request, hold its credits, and enqueue it.

    Raises ChatError like `start.send`, and cost.KeyLimitReached; then nothing was stored.
    """
    for text in reviewed(request):
        refusal = rules.review(text).refusal()
        if refusal is not None:
            raise refusal
    admission.admit(key.user, counts=False)  # requests of a key are counted by its own limit
    run: Run = start.in_money_transaction(key.user, _insert_and_hold, key, model, request, streamed)
    metrics.RUNS_STORED.inc()
    start.enqueue(run)
    return run


def _insert_and_hold(key: ApiKey, model: LanguageModel, request: ApiRequest, streamed: bool) -> Run:
    if not offers.is_usable(key.user, model):
        raise offers.unavailable(key.user, model)
    # Nothing of the assistant is used, but each run has one: it may be one that the user may not choose.
    assistant = lifecycle.default_assistant(key.user) or Assistant.objects.order_by("pk").first()
    if assistant is None:
        raise ChatError("unavailable", start.NO_ASSISTANT)
    now = timezone.now()
    conversation = Conversation(
        owner=key.user, assistant=assistant, temporary=True, updated_at=now, title=ASSISTANT
    )
    reply = Message(
        conversation=conversation, role=Message.Role.ASSISTANT, status=Message.Status.PENDING
    )
    conversation.leaf = reply
    run = Run(
        conversation=conversation,
        message=reply,
        user=key.user,
        client_id=new_id().hex,
        assistant=assistant,
        model=model,
        model_snapshot={
            "name": model.name,
            "provider_model": model.provider_model,
            "assistant": ASSISTANT,
            "language": languages.active(),
            "api": {"key": key.pk, "streamed": streamed},
        },
    )
    run.api_request = request
    cost.apply_quote(run)
    call = ApiCall(run=run, conversation=conversation, request=request.stored(), created_at=now)
    prepared.write(reply, run, call, conversation)
    cost.hold(run)
    cost.check_key(key, run.most)
    return run
