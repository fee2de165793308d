"""The bodies of requests: decoded, checked, and turned into an ApiRequest.

The types below are OpenAI's. Fields that change the answer and are not supported are refused, as are unknown ones;
fields that concern OpenAI's own service alone (`user`, `store`, `metadata` …) are accepted without effect.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType
from PIL import Image

from chat.api.errors import ApiError
from chat.attachments.content import (
    AREA,
    BOUND_OF_IMAGE,
    MAX_IMAGE_BYTES,
    MAX_IMAGES,
    SMALLEST_AREA,
    TOKENS_OF_AREA,
)
from chat.conversations.api_prompt import ApiRequest
from chat.models import LanguageModel
from chat.models.catalogue import EFFORTS

T = TypeVar("T")

IMAGE_URL = re.compile(r"data:image/(png|jpeg|webp|gif);base64,([A-Za-z0-9+/=\s]*)")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MOST_MESSAGES = 2_000
MOST_TOOLS = 128


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a chat completion."""

    model: str
    messages: list[dict[str, Any]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    # Passed to the model's server.
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    logit_bias: dict[str, float] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    # Without effect here.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # Refused, unless they ask for nothing.
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    audio: Any | UnsetType = UNSET
    prediction: Any | UnsetType = UNSET
    functions: Any | UnsetType = UNSET
    function_call: Any | UnsetType = UNSET
    web_search_options: Any | UnsetType = UNSET


PASSED = (
    *("top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "logit_bias", "tools"),
    *("tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort", "verbosity"),
)
REFUSED = ("audio", "prediction", "functions", "function_call", "web_search_options")

_decoder = msgspec.json.Decoder(Body)
WHERE = re.compile(r" - at `\$\.?([^`]*)`$")
UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`")
MISSING = re.compile(r"Object missing required field `([^`]*)`")


def decode(data: bytes) -> Body:
    """Decode the body of a chat completion. Raises ApiError with the name of the wrong field."""
    return decode_as(_decoder, data)


def decode_as(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """Decode a body. Raises ApiError."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _wrong_shape(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ApiError(
            400,
            "The body is not valid JSON. Send an object with the header “Content-Type: application/json”.",
            code="invalid_json",
        ) from None


def _wrong_shape(detail: str) -> ApiError:
    where = WHERE.search(detail)
    param = where[1] if where else ""
    text = WHERE.sub("", detail)
    if (found := UNKNOWN.match(text)) is not None:
        param = f"{param}.{found[1]}".lstrip(".")
        text = f"Unrecognized request argument supplied: {param}"
        return ApiError(400, text, code="unknown_parameter", param=param)
    if (found := MISSING.match(text)) is not None:
        param = f"{param}.{found[1]}".lstrip(".")
        text = f"Missing required parameter: '{param}'."
        return ApiError(400, text, code="missing_required_parameter", param=param)
    return wrong(param or None, f"Invalid value for '{param or 'body'}': {text}.")


def wrong(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """Return the error for a value of a field."""
    return ApiError(400, message, code=code, param=param)


def unsupported(param: str, message: str = "") -> ApiError:
    """Return the error for a field, or a value of it, that is not supported."""
    text = message or f"'{param}' is not supported."
    return ApiError(400, text, code="unsupported_parameter", param=param)


def checked(body: Body, model: LanguageModel) -> ApiRequest:
    """Return the request of a body to a model. Raises ApiError."""
    for name in REFUSED:
        if getattr(body, name) not in (UNSET, None):
            raise unsupported(name)
    if body.logprobs or body.top_logprobs:
        raise unsupported("logprobs")
    if body.modalities not in (None, ["text"]):
        raise unsupported("modalities", "Only text is supported: leave out 'modalities'.")
    if body.n not in (None, 1):
        raise unsupported("n", "Only one choice is made: leave out 'n', or set it to 1.")
    if body.stream_options is not None and not body.stream:
        raise wrong("stream_options", "'stream_options' is only allowed when 'stream' is true.")
    if body.reasoning_effort is not None and body.reasoning_effort not in EFFORTS:
        allowed = ", ".join(EFFORTS)
        raise wrong(
            "reasoning_effort", f"Invalid value for 'reasoning_effort': use one of {allowed}."
        )
    if not body.messages:
        raise wrong("messages", "'messages' is empty: send at least one message.", "empty_array")
    if len(body.messages) > MOST_MESSAGES:
        raise wrong("messages", f"'messages' has more than {MOST_MESSAGES} messages.")
    for number, tool in enumerate(body.tools or ()):
        _check_tool(tool, f"tools[{number}]")
    images = Images(model)
    messages = [
        Message(one, f"messages[{number}]", images).checked()
        for number, one in enumerate(body.messages)
    ]
    fields = {
        name: value for name in PASSED if (value := getattr(body, name)) not in (None, [], {})
    }
    return ApiRequest(
        messages=messages,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature,
        fields=fields,
        image_tokens=(images.tokens, BOUND_OF_IMAGE * images.tokens),
    )


def _check_tool(tool: dict[str, Any], where: str) -> None:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        raise unsupported(f"{where}.type", "Only tools of type 'function' are supported.")
    name = function.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.:-]{1,128}", name, re.ASCII):
        raise wrong(
            f"{where}.function.name",
            f"'{where}.function.name' must be 1 to 128 letters, digits, underscores or hyphens.",
        )


class Images:
    """The images of a request, counted: their number, bytes and tokens."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._count = self._bytes = 0
        self.tokens = 0

    def add(self, image: Any, where: str) -> dict[str, Any]:
        """Return an image part as it is passed on. Raises ApiError."""
        url = image.get("url") if isinstance(image, dict) else None
        if not isinstance(url, str):
            raise wrong(f"{where}.url", f"'{where}.url' must be a string.")
        if not self._model.vision:
            raise ApiError(
                400,
                f"The model {self._model.name} cannot see images.",
                code="no_vision",
                param=where,
            )
        found = IMAGE_URL.fullmatch(url)
        if found is None:
            raise wrong(
                f"{where}.url",
                "Send images as data URLs (data:image/png;base64,…) of type png, jpeg, webp or gif:"
                " remote addresses are not loaded.",
                "invalid_image_url",
            )
        self._count += 1
        self._bytes += len(found[2])
        if self._count > MAX_IMAGES or self._bytes > MAX_IMAGE_BYTES:
            raise wrong(where, f"A request has at most {MAX_IMAGES} images of 16 MB together.")
        try:
            data = base64.b64decode(found[2], validate=False)
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:  # reads the head alone
                width, height = opened.size
        except (binascii.Error, OSError, ValueError, Image.DecompressionBombError):
            raise wrong(f"{where}.url", "The image cannot be read.", "invalid_image") from None
        # Servers scale larger images down.
        area = max(SMALLEST_AREA, min(width * height, 4 * AREA)) / AREA
        self.tokens += math.ceil(area * (self._model.image_tokens or TOKENS_OF_AREA))
        passed = {"url": url}
        if image.get("detail") in ("low", "high", "auto"):
            passed["detail"] = image["detail"]
        return {"type": "image_url", "image_url": passed}


class Message:
    """One message of a request; `where` names it in errors."""

    def __init__(self, message: dict[str, Any], where: str, images: Images) -> None:
        self._message = message
        self._where = where
        self._images = images

    def checked(self) -> dict[str, Any]:
        """Return the message as it is passed on: known fields alone. Raises ApiError."""
        role = self._message.get("role")
        if role in ("system", "developer"):
            made = {"role": "system", "content": self._content()}
        elif role == "user":
            made = {"role": "user", "content": self._content(with_images=True)}
        elif role == "assistant":
            made = self._of_assistant()
        elif role == "tool":
            made = {
                "role": "tool",
                "content": self._content(),
                "tool_call_id": self._text("tool_call_id"),
            }
        else:
            raise wrong(
                f"{self._where}.role",
                f"Invalid value for '{self._where}.role': use one of system, developer, user,"
                " assistant, tool.",
            )
        if role in ("system", "developer", "user", "assistant") and self._message.get("name"):
            made["name"] = self._text("name")
        return made

    def _text(self, name: str) -> str:
        value = self._message.get(name)
        if not isinstance(value, str):
            raise wrong(f"{self._where}.{name}", f"'{self._where}.{name}' must be a string.")
        return value

    def _content(self, *, with_images: bool = False) -> str | list[dict[str, Any]]:
        content = self._message.get("content")
        if isinstance(content, str):
            return content
        where = f"{self._where}.content"
        if not isinstance(content, list) or not content:
            raise wrong(where, f"'{where}' must be a string or a list of parts.")
        parts: list[dict[str, Any]] = []
        for number, part in enumerate(content):
            at = f"{where}[{number}]"
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                parts.append({"type": "text", "text": part["text"]})
            elif kind == "image_url" and with_images:
                parts.append(self._images.add(part.get("image_url"), f"{at}.image_url"))
            else:
                allowed = "text or image_url" if with_images else "text"
                raise wrong(f"{at}.type", f"'{at}' must be a part of type {allowed}.")
        if all(part["type"] == "text" for part in parts):
            # Many servers take text alone.
            return "\n".join(part["text"] for part in parts)
        return parts

    def _of_assistant(self) -> dict[str, Any]:
        made: dict[str, Any] = {"role": "assistant"}
        calls = self._message.get("tool_calls")
        if self._message.get("content") is not None:
            made["content"] = self._content()
        elif self._message.get("refusal") is not None:
            made["content"] = self._text("refusal")
        elif calls:
            made["content"] = None
        else:
            made["content"] = self._content()  # refuses
        if not calls:
            return made
        if not isinstance(calls, list):
            raise wrong(f"{self._where}.tool_calls", f"'{self._where}.tool_calls' must be a list.")
        made["tool_calls"] = [
            self._call(call, f"{self._where}.tool_calls[{number}]")
            for number, call in enumerate(calls)
        ]
        return made

    def _call(self, call: Any, where: str) -> dict[str, Any]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not all(
            isinstance(value, str)
            for value in (call.get("id"), function.get("name"), function.get("arguments"))
        ):
            raise wrong(
                where, f"'{where}' must have an id, and a function with name and arguments."
            )
        return {
            "id": call["id"],
            "type": "function",
            "function": {"name": function["name"], "arguments": function["arguments"]},
        }
