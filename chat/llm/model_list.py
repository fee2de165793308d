"""The list of a provider's models (`GET /models`) in the shapes of the known servers.

OpenAI, Ollama, LM Studio (names alone); OpenRouter, Together, Vercel, DeepInfra (sizes and prices); Groq,
Mistral, vLLM, llama.cpp, LM Studio's /api/v0 (sizes); LiteLLM's proxy (sizes and prices at /model/info);
Google ("models/" before names). A field that a list does not state is left open.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from chat.llm.address import Diagnosis, Failure, Server, diagnose, malformed, where
from chat.llm.connections import Row
from chat.llm.deadline import within

NAME_CHARACTERS = 200
TITLE_CHARACTERS = 100
DESCRIPTION_CHARACTERS = 200

PARTS = ("top_provider", "meta", "metadata", "model_info", "limits")  # objects within an item
CONTEXT = (
    "loaded_context_length",  # of LM Studio: less than the model could have
    *("context_length", "max_model_len", "context_window", "max_context_length", "n_ctx"),
    *("n_ctx_train", "max_input_tokens", "inputTokenLimit"),
)
OUTPUT = ("max_completion_tokens", "max_output_tokens", "outputTokenLimit", "max_tokens")

# Words for abilities, in lower case and with hyphens. Lists: OpenRouter, Vercel, DeepInfra, LM Studio,
# Ollama; flags: Mistral, LiteLLM, Google.
LISTS_OF_ABILITIES = ("capabilities", "tags", "supported_parameters", "input_modalities")
VISION = {"vision", "image", "supports-vision"}
TOOLS = {"tools", "tool-use", "function-calling", "tool-calling", "supports-function-calling"}
REASONING = {"reasoning", "reasoning-effort", "include-reasoning", "supports-reasoning", "thinking"}
USUAL_EFFORTS = ("low", "medium", "high")

# Texts are dollars per token (OpenRouter, Vercel), numbers dollars per million (Together, DeepInfra).
PRICES = {
    "input_cost_per_token": ("prompt", "input", "input_tokens"),
    "output_cost_per_token": ("completion", "output", "output_tokens"),
    "cache_read_input_token_cost": ("input_cache_read", "cache_read_tokens", "cached_input"),
    "output_cost_per_reasoning_token": ("internal_reasoning",),
    "input_cost_per_request": ("request",),
}

# Names of models that answer no chat, in lists that do not tell them apart (OpenAI's, Ollama's).
NOT_CHAT = re.compile(
    r"embed|\bbge\b|\be5-|rerank|whisper|\btts\b|\btts-|transcri|speech|dall-e|\bimage|imagen|\bveo\b|\bsora\b"
    r"|stable-diffusion|\bflux\b|moderation|guard\b|realtime|babbage|davinci|-instruct-0914|computer-use",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A model as its provider lists it.

    `context` and `output` are tokens, None where the provider does not state them. `description` is one
    line, "" without one; the abilities are false and `efforts` is empty where they are not stated. `entry` are its
    prices in US dollars per token, in the format of LiteLLM's list; empty without any.
    """

    name: str
    title: str
    context: int | None = None
    output: int | None = None
    is_chat: bool = True
    entry: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    vision: bool = False
    tools: bool = False
    reasoning: bool = False
    efforts: list[str] = field(default_factory=list)


def fetch(row: Row, seconds: float) -> tuple[list[Listed], Diagnosis]:
    """Return the models that a provider lists, and the diagnosis of its address.

    Raises encryption.Undecryptable. Blocks for at most about so many seconds.
    """
    key, headers, proxy, base = row.key, row.headers, row.proxy, row.address.rstrip("/")
    began = time.monotonic()
    patience = seconds - 0.5

    def work() -> list[Listed]:
        # Earlier than the limit, so that a silent second route costs no list.
        with Server(base, key, proxy, headers, began + patience - 0.5) as server:
            found = models_in(answer(server, f"{base}/models"))
            if found and not any(one.context or one.entry for one in found):
                # LiteLLM's proxy states sizes and prices at another route.
                infos = {one.name: one for one in models_in(answer(server, f"{base}/model/info"))}
                found = [infos.get(one.name, one) for one in found]
            return found

    if not malformed(base) and re.fullmatch(r"[\x20-\x7e]*", key):
        with suppress(TimeoutError):
            if found := within(patience, work, name="list of models"):
                milliseconds = round((time.monotonic() - began) * 1000)
                return found, Diagnosis("", "", milliseconds=milliseconds)
    left = seconds - (time.monotonic() - began)
    if left < 1:
        sentence = (
            f"{where(base)} did not answer within {patience:g} seconds. Check host, port and firewall, and"
            " that the server runs, or try again."
        )
        return [], Diagnosis("timeout", sentence)
    diagnosis = diagnose(base, key=key, proxy=proxy, headers=headers, seconds=left)
    return [], diagnosis


def answer(server: Server, url: str) -> Any:
    """Return the JSON at an address, with exact decimals; None without one."""
    try:
        response = server.send("GET", url)
        return json.loads(response.content, parse_float=Decimal) if response.status == 200 else None
    except (Failure, ValueError, ArithmeticError, RecursionError):
        return None  # the diagnosis finds the reason


def models_in(data: Any) -> list[Listed]:
    """Return the models of a list, each once; names that no request could have are left out."""
    if isinstance(data, dict):
        data = data.get("data") or data.get("models")
    found: dict[str, Listed] = {}
    for item in data if isinstance(data, list) else []:
        listed = model_in(item if isinstance(item, dict) else {"id": item})
        if listed is not None:
            found.setdefault(listed.name, listed)
    return list(found.values())


def model_in(item: dict[str, Any]) -> Listed | None:
    """Return one model of a list; None for an item without a usable name."""
    names = (item.get(key) for key in ("id", "model_name", "name", "model"))
    name = next((one for one in names if isinstance(one, str) and one), "")
    if item.get("owned_by") == "google":
        name = name.removeprefix("models/")  # its API takes both forms
    if not name.isprintable() or not 0 < len(name) <= NAME_CHARACTERS:
        return None
    titles = (item.get(key) for key in ("display_name", "name"))
    title = next((one for one in titles if isinstance(one, str) and one.isprintable()), "")
    places = [item, *(part for key in PARTS if isinstance(part := item.get(key), dict))]
    words = ability_words(places)
    return Listed(
        name,
        (title or name)[:TITLE_CHARACTERS],
        first_number(places, CONTEXT),
        first_number(places, OUTPUT),
        is_chat(item, name),
        prices_in(item, name),
        description_in(places),
        vision=bool(words & VISION) or item.get("type") == "vlm",
        tools=bool(words & TOOLS),
        reasoning=bool(words & REASONING),
        efforts=efforts_in(places, words),
    )


def description_in(places: list[dict[str, Any]]) -> str:
    """Return the first sentences of a model's description, as one line of DESCRIPTION_CHARACTERS at most."""
    found = (place.get("description") for place in places)
    text = next((one for one in found if isinstance(one, str) and one.strip()), "")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:2_000]).split())
    if len(line) <= DESCRIPTION_CHARACTERS:
        return line
    cut = line[:DESCRIPTION_CHARACTERS]
    sentences = cut.rpartition(". ")[0]
    return f"{sentences}." if sentences else f"{cut[:-1].rpartition(' ')[0] or cut[:-1]}…"


def ability_words(places: list[dict[str, Any]]) -> set[str]:
    """Return the words by which a list states abilities: flags that are true, and names in its lists."""
    words: set[str] = set()
    objects = [
        one
        for place in places
        for key in ("capabilities", "architecture")
        if isinstance(one := place.get(key), dict)
    ]
    for place in [*places, *objects]:
        words |= {key for key, value in place.items() if value is True}
        for key in LISTS_OF_ABILITIES:
            if isinstance(found := place.get(key), list):
                words |= {one for one in found if isinstance(one, str)}
    return {word.lower().replace("_", "-") for word in words}


def efforts_in(places: list[dict[str, Any]], words: set[str]) -> list[str]:
    """Return the reasoning efforts that a model takes: as stated, else the usual ones if it takes any."""
    for place in places:
        reasoning = place.get("reasoning")
        stated = reasoning.get("supported_efforts") if isinstance(reasoning, dict) else None
        if isinstance(stated, list):
            return [one for one in stated if isinstance(one, str)]
    return [*USUAL_EFFORTS] if "reasoning-effort" in words else []


def first_number(places: list[dict[str, Any]], keys: tuple[str, ...]) -> int | None:
    """Return the first number of tokens under these keys."""
    for key in keys:
        for place in places:
            value = place.get(key)
            if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value):
                value = int(value)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
                return value
    return None


def is_chat(item: dict[str, Any], name: str) -> bool:
    """Return whether a model answers chats: as its list states it, else by its name."""
    capabilities, architecture = item.get("capabilities"), item.get("architecture")
    info = item.get("model_info")
    if isinstance(capabilities, dict) and "completion_chat" in capabilities:
        return bool(capabilities["completion_chat"])
    if isinstance(architecture, dict) and isinstance(architecture.get("output_modalities"), list):
        return "text" in architecture["output_modalities"]
    kind = item.get("type") or (info.get("mode") if isinstance(info, dict) else None)
    if isinstance(kind, str) and kind not in {"model", "base"}:
        return kind in {"chat", "language", "code", "completion", "responses", "llm", "vlm"}
    return NOT_CHAT.search(name) is None and item.get("active") is not False


def prices_in(item: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the prices of a model in the format of LiteLLM's list; empty without usable ones."""
    if isinstance(info := item.get("model_info"), dict):
        entry = {key: value for key, value in info.items() if "cost" in key and value is not None}
        return entry if any(entry.values()) else {}  # it has zeros where it knows no price
    metadata = item.get("metadata")
    stated = item.get("pricing") or (metadata.get("pricing") if isinstance(metadata, dict) else 0)
    if not isinstance(stated, dict):
        return {}
    entry = {}
    for field_name, keys in PRICES.items():
        value = next((stated[key] for key in keys if stated.get(key) not in (None, "")), None)
        is_per_token = isinstance(value, str)
        try:
            number = None if value is None else Decimal(str(value))
        except ArithmeticError:
            return {}
        if number is None:
            continue
        if not number.is_finite() or number < 0:
            return {}  # OpenRouter has -1 for prices that vary
        if field_name == "output_cost_per_reasoning_token" and not number:
            continue  # OpenRouter's for "as output", of which thoughts are a part
        is_per_call = field_name == "input_cost_per_request"
        entry[field_name] = number if is_per_token or is_per_call else number / 1_000_000
    is_free = name.endswith(":free")  # elsewhere zeros may be unknown prices
    return entry if any(entry.values()) or (entry and is_free) else {}
