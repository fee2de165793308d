"""A request takes another form when its server refuses a part of it: each once, and never the same again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from chat.llm.decoder import TextDelta
from chat.llm.errors import ProviderError, ProviderRefused
from chat.llm.provider import Provider
from chat.llm.quirks import DEVELOPER, FIRST_USER_MESSAGE, SYSTEM, Quirks
from chat.llm.request import MOST_ADAPTATIONS, CompletionRequest
from tests.support.provider_answers import GOOD_TEXT, AnsweringProvider, load_cases
from tests.support.refusing_provider import (
    Body,
    Refusing,
    always,
    cap,
    error,
    has,
    has_role,
    when,
)


class Client:
    """Sends one request to a provider; `learned` are the quirks that it reported."""

    def __init__(self) -> None:
        self.learned: dict[str, str] = {}
        self.opened: list[Provider] = []

    async def ask(self, url: str, text: str = "Hello, how are you today?", **options: Any) -> str:
        """Return the reply's text. Raises ProviderError."""
        provider = Provider(base_url=url, api_key="key", retry_delay=0.01)
        self.opened.append(provider)
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
        defaults: dict[str, Any] = {"messages": messages, "max_tokens": 8_192, "temperature": 0.5}
        request = CompletionRequest(model="m", **(defaults | options))
        stream = provider.stream(request, note_learned=self.learned.update)
        async with aclosing(stream) as batches:
            events = [event async for batch in batches for event in batch]
        return "".join(event.text for event in events if isinstance(event, TextDelta))


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    made = Client()
    yield made
    for provider in made.opened:
        await provider.close()


CASES = {case.id: case for case in load_cases()}


@pytest.mark.parametrize(
    ("case", "learned"),
    [
        ("max_tokens-refused", {"cap": "max_completion_tokens"}),
        ("stream_options-refused", {"stream_options": "left out"}),
        ("system-role-400", {"instructions": FIRST_USER_MESSAGE}),
        ("cap-too-large", {}),
    ],
)
async def test_reported_refusals_are_adapted_to(client, case, learned):
    with AnsweringProvider(CASES[case]) as provider:
        assert await client.ask(provider.url) == GOOD_TEXT

    assert len(provider.requests) == 2
    assert client.learned == learned


# --- Fields -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "other", "answer"),
    [
        (
            "max_tokens",
            "max_completion_tokens",
            error(
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            ),
        ),
        (
            "max_completion_tokens",
            "max_tokens",
            error("Unrecognized request argument supplied: max_completion_tokens"),
        ),
        (
            "max_completion_tokens",
            "max_tokens",
            {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "max_completion_tokens"],
                        "msg": "Extra inputs are not permitted",
                    }
                ]
            },
        ),
        (
            "max_completion_tokens",
            "max_tokens",
            error(
                'Invalid JSON payload received. Unknown name "max_completion_tokens": Cannot find field.'
            ),
        ),
        (
            "max_completion_tokens",
            "max_tokens",
            error("property 'max_completion_tokens' is unsupported, did you mean 'max_tokens'?"),
        ),
        ("max_completion_tokens", "max_tokens", error("max_tokens: Field required")),
        (
            "max_tokens",
            "max_completion_tokens",
            error(
                "Missing required parameter: 'max_completion_tokens'.",
                param="max_completion_tokens",
            ),
        ),
    ],
)
async def test_cap_is_sent_in_other_field(client, sent, other, answer):
    with Refusing(when(has(sent), answer)) as provider:
        await client.ask(provider.url, quirks=Quirks(cap=sent))

    first, second = provider.requests
    assert (first[sent], second[other]) == (8_192, 8_192)
    assert sent not in second
    assert client.learned == {"cap": other}


REFUSED_TEMPERATURE = [
    error(
        "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) value is supported.",
        param="temperature",
        code="unsupported_value",
    ),
    error("`temperature` is deprecated for this model."),
    error("temperature: Extra inputs are not permitted"),
    error(
        "litellm.UnsupportedParamsError: m does not support parameters: ['temperature'], for model=m."
    ),
    error(
        "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
    ),
    {"message": "Unknown parameter temperature"},
    error("temperature: range: 0..1"),
    error("Input should be less than or equal to 1", param="temperature"),
    error("`temperature` may only be set to 1 when thinking is enabled."),
]


@pytest.mark.parametrize("answer", REFUSED_TEMPERATURE)
@pytest.mark.parametrize("status", [400, 422, 200])
async def test_refused_field_is_left_out(client, answer, status):
    """A refusal as the first event of a stream counts as well."""
    if status == 200 and "error" not in answer:
        answer = {"error": answer}
    with Refusing(when(has("temperature"), answer, status)) as provider:
        assert await client.ask(provider.url) == GOOD_TEXT

    first, second = provider.requests
    assert second == {name: value for name, value in first.items() if name != "temperature"}
    assert client.learned == {"temperature": "left out"}


@pytest.mark.parametrize(
    ("extra", "answer"),
    [
        ({"reasoning_effort": "low"}, error("Argument not supported on this model: reasoning_effort")),
        ({"reasoning_effort": "low"}, error("Model m does not support parameter reasoningEffort.")),
        ({"presence_penalty": 1}, error("Argument not supported on this model: presencePenalty")),
        ({"stop": ["\n"]}, error("Unsupported parameter: 'stop' is not supported with this model.")),
        ({"logprobs": True}, error("logprobs is not supported with this model")),
        ({"seed": 3}, error("Invalid request", param="seed", code="unsupported_parameter")),
        ({"top_k": 3}, {"detail": [{"loc": ["body", "top_k"], "type": "extra_forbidden", "msg": "Extra inputs are not permitted"}]}),
        ({"chat_template_kwargs": {}}, error("Unknown parameter: 'chat_template_kwargs'.")),
    ],
)  # fmt: skip
async def test_any_extra_field_is_left_out(client, extra, answer):
    [name] = extra
    with Refusing(when(has(name), answer)) as provider:
        await client.ask(provider.url, extra=extra)

    assert [name in request for request in provider.requests] == [True, False]
    assert client.learned == {name: "left out"}


async def test_stream_is_left_out_with_its_options(client):
    answer = error(
        "Your organization must be verified to stream this model. Unsupported parameter: 'stream'.",
        param="stream",
        code="unsupported_value",
    )
    with Refusing(when(has("stream"), answer)) as provider:
        await client.ask(provider.url)

    assert not {"stream", "stream_options"} & provider.requests[1].keys()


async def test_several_refusals_are_tried_once_each(client):
    rules = [
        when(has("max_tokens"), error("Unsupported parameter: 'max_tokens'", param="max_tokens")),
        when(has("temperature"), error("Unsupported: 'temperature'", param="temperature")),
        when(has("stream_options"), {"detail": [{"loc": ["body", "stream_options", "include_usage"], "msg": "Extra inputs are not permitted", "type": "extra_forbidden"}]}, 422),
        when(has_role("system"), error("Jinja Exception: System role not supported"), 500),
    ]  # fmt: skip
    with Refusing(*rules) as provider:
        assert await client.ask(provider.url) == GOOD_TEXT

    assert len(provider.requests) == 5
    assert client.learned == {
        "cap": "max_completion_tokens",
        "temperature": "left out",
        "stream_options": "left out",
        "instructions": FIRST_USER_MESSAGE,
    }
    quirks = Quirks.of({subject: {"value": value} for subject, value in client.learned.items()})
    with Refusing(*rules) as provider:
        await client.ask(provider.url, quirks=quirks)
    assert len(provider.requests) == 1


async def test_temporary_faults_between_refusals_are_retried(client):
    overloaded, refused = error("Overloaded"), error("Unsupported parameter: 'temperature'")
    answers = iter([(503, overloaded), (400, refused), (503, overloaded), None])
    with Refusing(lambda body: next(answers)) as provider:
        assert await client.ask(provider.url) == GOOD_TEXT

    assert ["temperature" in request for request in provider.requests] == [True, True, False, False]


# --- No other form ----------------------------------------------------------------------------


async def refusal_of(
    client: Client, url: str, text: str = "Hello", **options: Any
) -> ProviderError:
    with pytest.raises(ProviderError) as raised:
        await client.ask(url, text, **options)
    return raised.value


@pytest.mark.parametrize(
    "answer",
    [
        error("Unsupported parameter: 'top_p' is not supported.", param="top_p"),
        error("Unrecognized request argument supplied: max_completion_tokens"),
        error("Missing required parameter: 'max_tokens'.", param="max_tokens"),
        error("Missing required parameter: 'temperature'.", param="temperature"),
        error("Unsupported parameter: 'messages'", param="messages"),
        error("Bad request"),
        error("The temperature of our GPUs rises"),
        error("Please stop sending seeds: bad stream"),
    ],
)
async def test_refusal_of_nothing_sent_is_final(client, answer):
    with Refusing(always(answer)) as provider:
        failure = await refusal_of(client, provider.url)

    assert isinstance(failure, ProviderRefused)
    assert len(provider.requests) == 1
    assert client.learned == {}


async def test_repeated_refusal_is_final(client):
    answers = [
        error("Unsupported parameter: 'temperature'", param="temperature"),
        error(
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.", param="max_tokens"
        ),
        error("System role not supported"),
        error("max_tokens is too large"),
    ]
    counts = []
    for answer in answers:
        with Refusing(always(answer)) as provider:
            await refusal_of(client, provider.url)
        counts.append(len(provider.requests))
        bodies = [json.dumps(request, sort_keys=True) for request in provider.requests]
        assert len({*bodies}) == len(bodies), "the same request was sent again"

    assert counts == [2, 2, 2, 4]
    assert client.learned == {}, "nothing was learned: none succeeded"


async def test_number_of_forms_is_bounded(client):
    extra = {f"field_{number}": 1 for number in range(20)}

    def refuse(body: Body) -> tuple[int, Any]:
        named = min(name for name in body if name.startswith("field_"))
        return 400, error(f"Unknown parameter: '{named}'")

    with Refusing(refuse) as provider:
        await refusal_of(client, provider.url, extra=extra)

    assert len(provider.requests) == 1 + MOST_ADAPTATIONS


@pytest.mark.parametrize(
    "text",
    [
        "Why is temperature not supported with this model?",
        "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
        "Explain: System role not supported in this template",
        "max_tokens is too large: 8192. This model supports at most 4096 completion tokens",
    ],
)
@pytest.mark.parametrize("flaky", [False, True])
async def test_words_of_user_teach_nothing(client, text, flaky):
    """A server that quotes the message it refuses, for whatever reason."""
    answer = error(f"Blocked by rule 7: '{text}' is invalid")
    with Refusing(always(answer)) as provider:
        if flaky:
            provider.rules = (when(lambda body: len(provider.requests) == 1, answer),)
        await refusal_of(client, provider.url, text)

    assert len(provider.requests) == 1
    assert client.learned == {}


async def test_named_field_counts_whatever_user_wrote(client):
    text = "Unsupported parameter: 'temperature' is not supported with this model."
    with Refusing(when(has("temperature"), error(text, param="temperature"))) as provider:
        await client.ask(provider.url, "What does temperature mean in requests to a model?")

    assert client.learned == {"temperature": "left out"}


# --- Instructions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported",
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        "Developer instruction is not enabled for models/gemma-3-27b-it",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        'messages: Unexpected role "system". This model does not support system messages.',
    ],
)
async def test_instructions_move_to_first_message(client, message):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ]
    with Refusing(when(has_role("system", "developer"), error(message))) as provider:
        await client.ask(provider.url, messages=turns)

    assert provider.requests[-1]["messages"] == [
        {"role": "user", "content": "Be brief.\n\nOne"},
        *turns[2:],
    ]
    assert len(provider.requests) == 2
    assert client.learned == {"instructions": FIRST_USER_MESSAGE}


@pytest.mark.parametrize(
    ("sent", "message", "other"),
    [
        (SYSTEM, "Unsupported value: 'system' role. Use the 'developer' role instead.", DEVELOPER),
        (DEVELOPER, "messages[0].role: unknown variant `developer`, expected one of `system`, `user`, `assistant`", SYSTEM),
        (DEVELOPER, "'developer' is not one of ['system', 'assistant', 'user'] - 'messages.0.role'", SYSTEM),
        (DEVELOPER, "Unsupported role 'developer'", FIRST_USER_MESSAGE),
    ],
)  # fmt: skip
async def test_instructions_take_role_that_server_names(client, sent, message, other):
    role = {SYSTEM: "system", DEVELOPER: "developer"}
    with Refusing(when(has_role(role[sent]), error(message))) as provider:
        await client.ask(provider.url, quirks=Quirks(instructions=sent))

    first, second = (request["messages"][0] for request in provider.requests)
    assert first["role"] == role[sent]
    assert second["role"] == role.get(other, "user")
    assert client.learned == {"instructions": other}


async def test_parts_of_message_keep_their_form(client):
    parts = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    with Refusing() as provider:
        await client.ask(
            provider.url, messages=turns, quirks=Quirks(instructions=FIRST_USER_MESSAGE)
        )

    [request] = provider.requests
    assert request["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Be brief."}, *parts]}
    ]


# --- The cap ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "lowered", "is_longest"),
    [
        ("max_tokens is too large: 8192. This model supports at most 4096 completion tokens, whereas you provided 8192.", 4096, True),
        ("max_tokens: 8192 > 4096, which is the maximum allowed number of output tokens for claude-3-haiku-20240307", 4096, True),
        ("`max_tokens` must be less than or equal to `4096`, the maximum value for `max_tokens` is less than the `context_window` for this model", 4096, True),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 4096]", 4096, True),
        ("<400> InternalError.Algo.InvalidParameter: Range of max_tokens should be [1, 2000]", 2000, True),
        ("Unable to submit request because it has a maxOutputTokens value of 8192 but the supported range is from 1 (inclusive) to 4097 (exclusive).", 4096, True),
        ("too many tokens: max tokens must be less than or equal to 4,096", 4096, True),
        ("The maximum tokens you requested exceeds the model limit of 4096. Try again with a maximum tokens value that is lower than 4097.", 4096, True),
        ("max_tokens (8192) exceeds the model's maximum output tokens (4096)", 4096, True),
        ("max_tokens cannot exceed 4096", 4096, True),
        ("max_tokens must be between 1 and 4096", 4096, True),
        ("The `max_tokens` value must be <= 4096 for this model", 4096, True),
        ("Requested max_tokens 8192 exceeds model max output 4096", 4096, True),
        ("output token limit exceeded. max output tokens 4096.", 4096, True),
        ("max_tokens参数非法。限制是[1,4096]", 4096, True),
        ("'max_tokens' or 'max_completion_tokens' is too large: 8192. This model's maximum context length is 4096 tokens and your request has 20 input tokens (8192 > 4096 - 20).", 4076, False),
        ("This model's maximum context length is 4097 tokens. However, you requested 8292 tokens (100 in the messages, 8192 in the completion). Please reduce the length of the messages or completion.", 3997, False),
        ("Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 8196 tokens: 4 tokens from the input messages and 8192 tokens for the completion.", 4092, False),
        ("This model's maximum context length is 4096 tokens. However, you requested 8192 output tokens and your prompt contains at least 20 input tokens, for a total of at least 8212 tokens.", 4076, False),
        ("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given: 97 `inputs` tokens and 8192 `max_new_tokens`", 4000, False),
        ("max_tokens is too large", 4096, False),
        ("max_completion_tokens is too high for this model, please lower it", 4096, False),
    ],
)  # fmt: skip
async def test_refused_cap_is_lowered(client, message, lowered, is_longest):
    with Refusing(when(lambda body: cap(body) > lowered, error(message))) as provider:
        await client.ask(provider.url, "Hi")

    assert [cap(request) for request in provider.requests] == [8_192, lowered]
    assert client.learned == ({"longest reply": str(lowered)} if is_longest else {})


@pytest.mark.parametrize(
    "answer",
    [
        error("Input should be less than or equal to 4096", param="max_tokens"),
        {"detail": [{"loc": ["body", "max_tokens"], "msg": "ensure this value is less than or equal to 4096", "type": "value_error.number.not_le"}]},
    ],
)  # fmt: skip
async def test_cap_in_field_of_refusal_is_lowered(client, answer):
    with Refusing(when(lambda body: cap(body) > 4_096, answer, 422)) as provider:
        await client.ask(provider.url)

    assert [cap(request) for request in provider.requests] == [8_192, 4_096]
    assert client.learned == {"longest reply": "4096"}


async def test_cap_without_number_is_halved(client):
    with Refusing(
        when(lambda body: cap(body) > 1_500, error("max_tokens is too large"))
    ) as provider:
        await client.ask(provider.url)

    assert [cap(request) for request in provider.requests] == [8_192, 4_096, 2_048, 1_024]


async def test_learned_limit_lowers_first_request(client):
    with Refusing() as provider:
        await client.ask(provider.url, quirks=Quirks(longest_reply=1_000))
        await client.ask(provider.url, max_tokens=500, quirks=Quirks(longest_reply=1_000))

    assert [cap(request) for request in provider.requests] == [1_000, 500]
