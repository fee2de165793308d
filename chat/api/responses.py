"""POST /v1/responses without state: translated to a chat completion, and its reply translated back.

| of a response | of a completion |
|---|---|
| `instructions` | a system message before the others |
| `input`: a text, or items of type message, function_call, function_call_output | `messages` |
| `tools` of type function, `tool_choice` | the same, with their function in an object |
| `text.format`, `text.verbosity` | `response_format`, `verbosity` |
| `reasoning.effort` | `reasoning_effort` |
| `max_output_tokens` | `max_completion_tokens` |

Nothing is stored: references to an earlier response are refused.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from chat.api import models, schemas
from chat.api.completions import Prepared, Stream, begun, encode, reply_of, usage_of
from chat.api.errors import ApiError
from chat.api.replies import Event, Piece, Reply, ToolCall
from chat.api.requests import Request
from chat.api.schemas import unsupported, wrong
from chat.models import Run
from chat.models.catalogue import ModelKind


class Text(msgspec.Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: Any = None
    generate_summary: Any = None


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a response."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    # Without effect here.
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    include: list[str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # Refused, unless they ask for nothing.
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    truncation: str | None = None
    top_logprobs: int | None = None
    max_tool_calls: int | None = None


STATELESS = "Responses are not stored here: leave out '{}', and send all items in 'input'."

_decoder = msgspec.json.Decoder(Body)


async def responses(asked: Request) -> None:
    """Answer a request for a response. Raises ApiError."""
    bodies: list[Body] = []  # of the thread that prepares

    def prepare(asked: Request) -> Prepared:
        who = asked.authenticate()
        body = schemas.decode_as(_decoder, asked.take_body())
        bodies.append(body)
        model = models.find(who.user, body.model, ModelKind.CHAT)
        request = schemas.checked(translated(body), model)
        return Prepared(who, body.model, model, request, bool(body.stream), include_usage=True)

    prepared, run = await begun(asked, prepare)
    shape = Shape(bodies.pop(), prepared, run)
    if prepared.streamed:
        await ResponseStream(asked, prepared, run, shape).answer()
        return
    reply = await reply_of(asked, prepared, run)
    await asked.answer(200, encode(shape.ended(reply)))


# --- To a completion --------------------------------------------------------------------------


def translated(body: Body) -> schemas.Body:
    """Return a body as that of a completion. Raises ApiError."""
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(body, name) is not None:
            raise unsupported(name, STATELESS.format(name))
    if body.background:
        raise unsupported("background", "Responses are not made in the background: leave it out.")
    if body.truncation not in (None, "disabled"):
        raise unsupported("truncation", "Only 'disabled' is supported for 'truncation'.")
    if body.top_logprobs:
        raise unsupported("top_logprobs")
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        for number, item in enumerate(body.input):
            _add_item(messages, item, f"input[{number}]")
        if not body.input:
            raise wrong(
                "input", "'input' is empty: send a text, or at least one item.", "empty_array"
            )
    text, reasoning = body.text, body.reasoning
    return schemas.Body(
        model=body.model,
        messages=messages,
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        tools=[_tool(tool, f"tools[{number}]") for number, tool in enumerate(body.tools or ())],
        tool_choice=_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(text.format) if text and text.format else None,
        verbosity=text.verbosity if text else None,
        reasoning_effort=reasoning.effort if reasoning else None,
    )


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        content = item.get("content")
        if isinstance(content, list):
            content = [_part(part, f"{where}.content[{at}]") for at, part in enumerate(content)]
        messages.append({"role": item.get("role"), "content": content})
    elif kind == "function_call":
        call = {
            "id": item.get("call_id"),
            "type": "function",
            "function": {"name": item.get("name"), "arguments": item.get("arguments")},
        }
        if messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        output = item.get("output")
        if isinstance(output, list):
            output = [_part(part, f"{where}.output[{at}]") for at, part in enumerate(output)]
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    elif kind != "reasoning":  # a model does not read its thoughts again
        raise unsupported(
            f"{where}.type",
            f"'{where}' must be an item of type message, function_call or function_call_output.",
        )


def _part(part: Any, where: str) -> Any:
    """Return a part of a content in the form of a completion's."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": part.get("text")}
    if kind == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    if kind == "input_image":
        if part.get("file_id"):
            raise unsupported(f"{where}.file_id", "Send images as data URLs in 'image_url'.")
        image = {"url": part.get("image_url"), "detail": part.get("detail")}
        return {"type": "image_url", "image_url": image}
    raise wrong(
        f"{where}.type", f"'{where}' must be of type input_text, output_text or input_image."
    )


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise unsupported(f"{where}.type", "Only tools of type 'function' are supported.")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if name in tool}}


def _choice(choice: Any) -> Any:
    if choice is None or choice in ("none", "auto", "required"):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    raise wrong("tool_choice", "'tool_choice' must be none, auto, required or a function.")


def _format(format: dict[str, Any]) -> dict[str, Any] | None:
    kind = format.get("type")
    if kind == "text":
        return None
    if kind == "json_schema":
        names = ("name", "description", "schema", "strict")
        schema = {name: format[name] for name in names if name in format}
        return {"type": kind, "json_schema": schema}
    if kind == "json_object":
        return {"type": kind}
    raise wrong("text.format.type", "'text.format.type' must be text, json_object or json_schema.")


# --- From a completion ------------------------------------------------------------------------


class Shape:
    """The response object of a run, at its beginning and at its end."""

    def __init__(self, body: Body, prepared: Prepared, run: Run) -> None:
        self._hex = run.pk.hex
        self._common: dict[str, Any] = {
            "id": f"resp_{self._hex}",
            "object": "response",
            "created_at": int(time.time()),
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": prepared.name,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {
                "effort": body.reasoning.effort if body.reasoning else None,
                "summary": None,
            },
            "store": False,
            "temperature": body.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "metadata": body.metadata or {},
            "user": body.user,
        }

    def begun(self) -> dict[str, Any]:
        """Return the response before its reply."""
        return {**self._common, "status": "in_progress", "output": [], "usage": None}

    def failed(self, error: ApiError) -> dict[str, Any]:
        """Return the response of a run that has failed."""
        said = {"code": error.code or "server_error", "message": error.message}
        return {**self._common, "status": "failed", "error": said, "output": [], "usage": None}

    def ended(self, reply: Reply) -> dict[str, Any]:
        """Return the response of a whole reply."""
        assert reply.end is not None
        reason = {"length": "max_output_tokens"}.get(reply.finish_reason, reply.finish_reason)
        is_cut = reason in ("max_output_tokens", "content_filter")
        used = usage_of(reply.end)
        usage = {
            "input_tokens": used["prompt_tokens"],
            "input_tokens_details": used["prompt_tokens_details"],
            "output_tokens": used["completion_tokens"],
            "output_tokens_details": used["completion_tokens_details"],
            "total_tokens": used["total_tokens"],
        }
        if "cost" in used:
            usage["cost"] = used["cost"]
        output = []
        if reply.reasoning:
            output.append(self.thoughts("".join(reply.reasoning)))
        text = "".join(reply.text)
        if text or not reply.calls:
            output.append(self.message(text))
        output += [self.call(index, one) for index, one in sorted(reply.calls.items())]
        return {
            **self._common,
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": reason} if is_cut else None,
            "output": output,
            "usage": usage,
        }

    def thoughts(self, text: str, status: str = "completed") -> dict[str, Any]:
        """Return the item of the reasoning."""
        content = [{"type": "reasoning_text", "text": text}] if text else []
        return {
            "type": "reasoning",
            "id": f"rs_{self._hex}",
            "summary": [],
            "content": content,
            "status": status,
        }

    def message(self, text: str, status: str = "completed") -> dict[str, Any]:
        """Return the item of the text."""
        content = [part(text)] if text or status == "completed" else []
        return {
            "type": "message",
            "id": f"msg_{self._hex}",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def call(self, index: int, one: ToolCall, status: str = "completed") -> dict[str, Any]:
        """Return the item of a tool call."""
        return {
            "type": "function_call",
            "id": f"fc_{self._hex}_{index}",
            "call_id": one.id,
            "name": one.name,
            "arguments": one.arguments,
            "status": status,
        }


def part(text: str) -> dict[str, Any]:
    """Return the part of a message that its text is."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class ResponseStream(Stream):
    """The events of a response: each item is added, written and done before the next one begins."""

    def __init__(self, asked: Request, prepared: Prepared, run: Run, shape: Shape) -> None:
        super().__init__(asked, prepared, run)
        self._shape = shape
        self._number = 0
        self._items = 0  # that have begun
        self._open: str | int | None = None  # "text", "reasoning" or the index of a tool call

    def beginning(self) -> bytes:
        response = self._shape.begun()
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def chunk(self, piece: Piece) -> bytes:
        if piece.text:
            made = self._open_item("text")
            at = {"item_id": self._shape.message("")["id"], "content_index": 0, "logprobs": []}
            return made + self._delta("response.output_text.delta", piece.text, at)
        if piece.reasoning:
            made = self._open_item("reasoning")
            at = {"item_id": self._shape.thoughts("")["id"], "content_index": 0}
            return made + self._delta("response.reasoning_text.delta", piece.reasoning, at)
        if piece.call is None or piece.index is None:
            return b""
        made = self._open_item(piece.index)
        if not piece.call.arguments:
            return made
        at = {"item_id": self._shape.call(piece.index, piece.call)["id"]}
        return made + self._delta(
            "response.function_call_arguments.delta", piece.call.arguments, at
        )

    def ending(self, end: Event) -> bytes:
        response = self._shape.ended(self.reply)
        made = self._open_item("text") if not self._items else b""  # a reply without a word
        made += self._close_item()
        return made + self._event(f"response.{response['status']}", response=response)

    def failed(self, error: ApiError) -> bytes:
        return self._event("response.failed", response=self._shape.failed(error))

    def _open_item(self, item: str | int) -> bytes:
        """Return the events of the beginning of an item, after the end of the one before it."""
        if self._open == item:
            return b""
        made = self._close_item()
        self._open = item
        self._items += 1
        status = "in_progress"
        if isinstance(item, int):
            one = self.reply.calls[item]
            added = self._shape.call(item, ToolCall(one.id, one.name), status)
        elif item == "reasoning":
            added = self._shape.thoughts("", status)
        else:
            added = self._shape.message("", status)
        made += self._event("response.output_item.added", output_index=self._at, item=added)
        if item == "text":
            at = {"item_id": added["id"], "output_index": self._at, "content_index": 0}
            made += self._event("response.content_part.added", **at, part=part(""))
        return made

    def _close_item(self) -> bytes:
        """Return the events of the end of the open item."""
        item, self._open = self._open, None
        if item is None:
            return b""
        at: dict[str, Any] = {"output_index": self._at}
        if isinstance(item, int):
            done = self._shape.call(item, self.reply.calls[item])
            named = {"item_id": done["id"], "name": done["name"], "arguments": done["arguments"]}
            made = self._event("response.function_call_arguments.done", **at, **named)
        elif item == "reasoning":
            done = self._shape.thoughts("".join(self.reply.reasoning))
            at |= {"item_id": done["id"], "content_index": 0}
            made = self._event(
                "response.reasoning_text.done", **at, text="".join(self.reply.reasoning)
            )
        else:
            text = "".join(self.reply.text)
            done = self._shape.message(text)
            at |= {"item_id": done["id"], "content_index": 0}
            made = self._event("response.output_text.done", **at, text=text, logprobs=[])
            made += self._event("response.content_part.done", **at, part=part(text))
        return made + self._event("response.output_item.done", output_index=self._at, item=done)

    @property
    def _at(self) -> int:
        return self._items - 1

    def _delta(self, kind: str, text: str, at: dict[str, Any]) -> bytes:
        return self._event(kind, **at, output_index=self._at, delta=text)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + encode(data) + b"\n\n"
