"""Lists of models in the shapes of providers, gateways and servers."""

from __future__ import annotations

from decimal import Decimal

import pytest

from chat.llm.model_list import models_in

OPENROUTER = {
    "id": "openai/gpt-4o",
    "name": "OpenAI: GPT-4o",
    "context_length": 128000,
    "architecture": {"output_modalities": ["text"]},
    "pricing": {
        "prompt": "0.0000025",
        "completion": "0.00001",
        "request": "0.01",
        "image": "0.003613",
        "input_cache_read": "0.00000125",
        "internal_reasoning": "0",
    },
    "top_provider": {"context_length": 128000, "max_completion_tokens": 16384},
}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (
            {"id": "gpt-4o", "object": "model", "owned_by": "openai"},
            ("gpt-4o", "gpt-4o", None, None),
        ),
        (OPENROUTER, ("openai/gpt-4o", "OpenAI: GPT-4o", 128000, 16384)),
        ({"id": "qwen", "max_model_len": 32768}, ("qwen", "qwen", 32768, None)),
        ({"id": "g.gguf", "meta": {"n_ctx_train": 131072}}, ("g.gguf", "g.gguf", 131072, None)),
        (
            {"id": "meta/Llama", "display_name": "Llama", "type": "chat", "context_length": 8192},
            ("meta/Llama", "Llama", 8192, None),
        ),
        (
            {"id": "mistral", "max_context_length": 32768, "name": "mistral-small-2503"},
            ("mistral", "mistral-small-2503", 32768, None),
        ),
        (
            {"id": "groq", "context_window": 131072, "max_completion_tokens": 32768},
            ("groq", "groq", 131072, 32768),
        ),
        (
            {"id": "models/gemini-2.5-flash", "owned_by": "google"},
            ("gemini-2.5-flash", "gemini-2.5-flash", None, None),
        ),
        ("bare", ("bare", "bare", None, None)),
        ({"id": "odd", "context_length": "4096"}, ("odd", "odd", 4096, None)),
        ({"id": "odd", "context_length": -1, "max_tokens": True}, ("odd", "odd", None, None)),
        ({"id": "odd", "context_length": 10**30}, ("odd", "odd", None, None)),
    ],
)
def test_sizes_of_known_shapes_are_read(item, expected):
    for data in ([item], {"object": "list", "data": [item]}, {"models": [item]}):
        (found,) = models_in(data)
        assert (found.name, found.title, found.context, found.output) == expected


@pytest.mark.parametrize(
    ("item", "entry"),
    [
        (
            OPENROUTER,
            {
                "input_cost_per_token": Decimal("0.0000025"),
                "output_cost_per_token": Decimal("0.00001"),
                "cache_read_input_token_cost": Decimal("0.00000125"),
                "input_cost_per_request": Decimal("0.01"),
            },
        ),
        (
            {"id": "thinker", "pricing": {"completion": "0.1", "internal_reasoning": "0.2"}},
            {
                "output_cost_per_token": Decimal("0.1"),
                "output_cost_per_reasoning_token": Decimal("0.2"),
            },
        ),
        ({"id": "auto", "pricing": {"prompt": "-1", "completion": "-1"}}, {}),
        (
            {"id": "together", "pricing": {"hourly": 0, "input": 0.18, "output": Decimal("0.59")}},
            {
                "input_cost_per_token": Decimal("0.00000018"),
                "output_cost_per_token": Decimal("0.00000059"),
            },
        ),
        ({"id": "unknown", "pricing": {"input": 0, "output": 0}}, {}),
        (
            {"id": "some:free", "pricing": {"prompt": "0", "completion": "0"}},
            {"input_cost_per_token": Decimal(0), "output_cost_per_token": Decimal(0)},
        ),
        ({"id": "odd", "pricing": {"prompt": "cheap"}}, {}),
        ({"id": "odd", "pricing": {"prompt": [], "completion": {}}}, {}),
        ({"id": "odd", "pricing": "free"}, {}),
        (
            {"model_name": "lite", "model_info": {"input_cost_per_token": 0.1, "mode": "chat"}},
            {"input_cost_per_token": 0.1},
        ),
        ({"model_name": "lite", "model_info": {"input_cost_per_token": 0}}, {}),
    ],
)
def test_prices_of_known_shapes_are_read(item, entry):
    (found,) = models_in([item])

    assert found.entry == entry


@pytest.mark.parametrize(
    "item",
    [
        {"id": "text-embedding-3-large"},
        {"id": "whisper-1"},
        {"id": "m", "capabilities": {"completion_chat": False}},
        {"id": "m", "type": "image"},
        {"id": "m", "architecture": {"output_modalities": ["image"]}},
        {"model_name": "m", "model_info": {"mode": "embedding"}},
    ],
)
def test_models_without_chat_are_recognized(item):
    (found,) = models_in([item])

    assert not found.is_chat


@pytest.mark.parametrize("data", [None, 3, "x", {}, {"data": 3}, {"data": [None, 3, {"id": ""}]}])
def test_other_content_lists_no_models(data):
    assert models_in(data) == []


def test_names_are_listed_once_and_usable():
    data = [{"id": "one"}, {"id": "one"}, {"id": "x" * 201}, {"id": "tab\t"}, {"id": "\0"}]

    assert [one.name for one in models_in(data)] == ["one"]


@pytest.mark.parametrize(
    ("item", "abilities", "efforts"),
    [
        (
            {
                "id": "a",
                "description": "Good\nfor  long texts.",
                "architecture": {"input_modalities": ["text", "image"]},
                "supported_parameters": ["tools", "reasoning", "reasoning_effort"],
            },
            (True, True, True),
            ["low", "medium", "high"],
        ),
        (
            {
                "id": "a",
                "description": "Good for long texts.",
                "capabilities": {
                    "completion_chat": True,
                    "vision": True,
                    "function_calling": False,
                },
            },
            (True, False, False),
            [],
        ),
        (
            {"id": "a", "metadata": {"description": "Good for long texts.", "tags": ["reasoning"]}},
            (False, False, True),
            [],
        ),
        (
            {
                "model_name": "a",
                "description": "Good for long texts.",
                "model_info": {"supports_vision": True, "supports_function_calling": True},
            },
            (True, True, False),
            [],
        ),
        (
            {
                "id": "a",
                "description": "Good for long texts.",
                "type": "vlm",
                "capabilities": ["tool_use"],
                "reasoning": {"supported_efforts": ["high", "low", 7]},
            },
            (True, True, False),
            ["high", "low"],
        ),
        (
            {"id": "a", "description": "Good for long texts.", "tags": 7, "architecture": []},
            (False, False, False),
            [],
        ),
    ],
)
def test_abilities_of_known_shapes_are_read(item, abilities, efforts):
    [found] = models_in([item])
    assert found.description == "Good for long texts."
    assert (found.vision, found.tools, found.reasoning) == abilities
    assert found.efforts == efforts


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("One sentence. " * 30, ("One sentence. " * 14).strip()),
        ("word " * 100, ("word " * 39).strip() + "…"),
        ("x" * 500, "x" * 199 + "…"),
        (7, ""),
        ("\u200e \n", ""),
    ],
)
def test_description_is_one_short_line(text, line):
    [found] = models_in([{"id": "a", "description": text}])
    assert found.description == line
    assert len(line) <= 200
