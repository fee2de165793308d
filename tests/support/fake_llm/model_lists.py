"""The answers of the fake provider to `GET /models`, in the shapes of known servers."""

from __future__ import annotations

from typing import Any

CREATED = 1_700_000_000


def openai_item(model: str, owner: str, **fields: Any) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": CREATED, "owned_by": owner, **fields}


def listed(*items: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [*items]}


def openrouter_item(
    name: str, title: str, context: int, output: int | None, prompt: str, completion: str
) -> dict[str, Any]:
    return {
        "id": name,
        "canonical_slug": name,
        "name": title,
        "created": CREATED,
        "description": f"{title} is a model for tests. " * 10,
        "context_length": context,
        "architecture": {
            "modality": "text->text",
            "input_modalities": ["text"],
            "output_modalities": ["text"],
            "tokenizer": "Other",
            "instruct_type": None,
        },
        "pricing": {
            "prompt": prompt,
            "completion": completion,
            "request": "0",
            "image": "0",
            "web_search": "0",
            "internal_reasoning": "0",
        },
        "top_provider": {
            "context_length": context,
            "max_completion_tokens": output,
            "is_moderated": False,
        },
        "per_request_limits": None,
        "supported_parameters": ["max_tokens", "temperature"],
    }


OPENROUTER = [
    openrouter_item("openai/gpt-4o", "OpenAI: GPT-4o", 128_000, 16_384, "0.0000025", "0.00001"),
    openrouter_item(
        "meta-llama/llama-3.3-70b-instruct:free", "Llama 3.3 70B (free)", 65_536, None, "0", "0"
    ),
    openrouter_item("openrouter/auto", "Auto Router", 2_000_000, None, "-1", "-1"),
]

MISTRAL_CHAT = {"completion_chat": True, "completion_fim": False, "function_calling": True}

VLLM_PERMISSION = {
    "id": "modelperm-1",
    "object": "model_permission",
    "created": CREATED,
    "allow_sampling": True,
    "organization": "*",
    "group": None,
    "is_blocking": False,
}

LISTS: dict[str, Any] = {
    "openai": listed(
        openai_item("fake-large", "system"),
        openai_item("text-embedding-3-small", "system"),
        openai_item("fake-small", "system"),
    ),
    "openrouter": {"data": OPENROUTER},
    "vllm": listed(
        openai_item(
            "Qwen/Qwen3-8B",
            "vllm",
            root="Qwen/Qwen3-8B",
            parent=None,
            max_model_len=40_960,
            permission=[VLLM_PERMISSION],
        )
    ),
    "lmstudio": listed(
        {"id": "qwen2.5-7b-instruct", "object": "model", "owned_by": "organization_owner"},
        {
            "id": "text-embedding-nomic-embed-text-v1.5",
            "object": "model",
            "owned_by": "organization_owner",
        },
    ),
    # Its API of its own, which has chat completions, too.
    "lmstudio-rest": listed(
        {
            "id": "qwen2.5-7b-instruct",
            "object": "model",
            "type": "llm",
            "publisher": "lmstudio-community",
            "arch": "qwen2",
            "compatibility_type": "gguf",
            "quantization": "Q4_K_M",
            "state": "not-loaded",
            "max_context_length": 32_768,
        },
        {
            "id": "qwen2-vl-7b-instruct",
            "object": "model",
            "type": "vlm",
            "state": "loaded",
            "max_context_length": 32_768,
            "loaded_context_length": 4_096,
        },
        {"id": "nomic", "object": "model", "type": "embeddings", "max_context_length": 2_048},
    ),
    "mistral": listed(
        openai_item(
            "mistral-large-latest",
            "mistralai",
            capabilities=MISTRAL_CHAT,
            name="mistral-large-2411",
            max_context_length=131_072,
            aliases=["mistral-large-2411"],
            deprecation=None,
            type="base",
        ),
        openai_item(
            "mistral-embed",
            "mistralai",
            capabilities=MISTRAL_CHAT | {"completion_chat": False},
            name="mistral-embed",
            max_context_length=8_192,
            aliases=[],
            type="base",
        ),
    ),
    "together": [
        {
            "id": "meta-llama/Llama-3.3-70B-Instruct-Turbo",
            "object": "model",
            "created": 0,
            "type": "chat",
            "running": False,
            "display_name": "Meta Llama 3.3 70B Instruct Turbo",
            "organization": "Meta",
            "context_length": 131_072,
            "config": {"chat_template": None, "stop": [], "bos_token": None},
            "pricing": {"hourly": 0, "input": 0.88, "output": 0.9, "base": 0, "finetune": 0},
        },
        {
            "id": "black-forest-labs/FLUX.1-schnell",
            "object": "model",
            "created": 0,
            "type": "image",
            "display_name": "FLUX.1 Schnell",
            "pricing": {"hourly": 0, "input": 0, "output": 0, "base": 0, "finetune": 0},
        },
    ],
    "many": {
        "data": [
            openrouter_item(
                f"lab-{number % 7}/model-{number:03}",
                f"Lab {number % 7}: Model {number:03}",
                8_192 * (1 + number % 16),
                4_096,
                "0.0000001" if number % 3 else "0",
                f"0.00000{1 + number % 9}" if number % 3 else "0",
            )
            for number in range(350)
        ]
    },
    "empty": listed(),
}

REFUSALS = {
    "unauthorized": (401, "Incorrect API key provided.", "invalid_api_key"),
    "missing": (404, "Not Found", None),
}
KINDS = (*LISTS, *REFUSALS)
