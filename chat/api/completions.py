"""POST /v1/chat/completions: a run as any other, followed in the web process, in OpenAI's format."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from django.conf import settings

from billing import credits
from chat.api import models, schemas
from chat.api.auth import Caller
from chat.api.errors import ApiError, restarting
from chat.api.replies import (
    Event,
    Following,
    Piece,
    Reply,
    ToolCall,
    failure,
    read_calls,
)
from chat.api.requests import Request, in_thread
from chat.conversations.api_prompt import ApiRequest
from chat.models import LanguageModel, Run
from chat.models.catalogue import ModelKind
from chat.moderation import rules
from chat.runs import api_calls
from chatproject.lib import db

# Seconds. A comment keeps a stream's connection through proxies, which end silent ones after a minute.
COMMENT_EVERY = 15.0
COMMENT = b": waiting\n\n"
DONE = b"data: [DONE]\n\n"
TIMED_OUT = "The reply took longer than {seconds} s. Ask for a stream, which has no such limit."

encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked request of a caller."""

    caller: Caller
    name: str  # of the model, as the request has it
    model: LanguageModel
    request: ApiRequest
    streamed: bool
    include_usage: bool


async def completions(asked: Request) -> None:
    """Answer a request for a chat completion. Raises ApiError."""
    prepared, run = await begun(asked, prepare)
    asked.headers = prepared.caller.headers()
    if prepared.streamed:
        await Stream(asked, prepared, run).answer()
    else:
        await whole(asked, prepared, run)


async def begun(asked: Request, prepare: Callable[[Request], Prepared]) -> tuple[Prepared, Run]:
    """Prepare a request by a function that is called in a database thread, and start its run."""
    if not settings.MODERATION:
        prepared, run = await in_thread(_prepare_and_start, prepare, asked)
        asked.release()
        return released(prepared, run)
    prepared = await in_thread(prepare, asked)
    # A slow rule must not occupy a thread of the database.
    loop = asyncio.get_running_loop()
    for text in api_calls.reviewed(prepared.request):
        await loop.run_in_executor(rules.reviewers(), rules.review_in_thread, text)
    run = await in_thread(start, prepared)
    asked.release()
    return released(prepared, run)


def released(prepared: Prepared, run: Run) -> tuple[Prepared, Run]:
    """Return both without the request, which is stored: its images must not stay in memory as long as the reply."""
    run.api_request = None
    return replace(prepared, request=ApiRequest([])), run


def _prepare_and_start(
    prepare: Callable[[Request], Prepared], asked: Request
) -> tuple[Prepared, Run]:
    prepared = prepare(asked)
    return prepared, start(prepared)


def prepare(asked: Request) -> Prepared:
    """Check the key and the body of a request. Raises ApiError."""
    who = asked.authenticate()
    body = schemas.decode(asked.take_body())
    model = models.find(who.user, body.model, ModelKind.CHAT)
    return Prepared(
        who,
        body.model,
        model,
        schemas.checked(body, model),
        streamed=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )


def start(prepared: Prepared) -> Run:
    """Store and enqueue the run of a request. Raises ChatError."""
    return api_calls.start_call(
        prepared.caller.key, prepared.model, prepared.request, streamed=prepared.streamed
    )


# --- The whole answer -------------------------------------------------------------------------


async def reply_of(asked: Request, prepared: Prepared, run: Run) -> Reply:
    """Return the whole reply of a run that is not streamed. Raises ApiError and ClientGone."""
    reply = Reply(streamed=False)

    async def take(event: Event) -> bool:
        reply.take(event)
        return reply.end is not None

    async def tick() -> None:
        """Do nothing: there is no way to keep a connection before the answer's status."""

    following = Following(run, prepared.caller.user, asked.receive, take)
    seconds = settings.API_ANSWER_SECONDS
    try:
        await following.wait(seconds=seconds, every=COMMENT_EVERY, tick=tick)
    except TimeoutError:
        raise ApiError(504, TIMED_OUT.format(seconds=seconds), code="timeout") from None
    end = reply.end
    assert end is not None
    reply.text = [end.text]
    error = await failure(run, end)
    if error is not None and not (end.code == "limit_reached" and end.text):
        raise error
    if error is not None:
        end.finish_reason = "length"
    if not reply.is_whole:
        reply.calls = await db.run(read_calls, run)
    return reply


async def whole(asked: Request, prepared: Prepared, run: Run) -> None:
    """Answer with the whole reply."""
    reply = await reply_of(asked, prepared, run)
    assert reply.end is not None
    message: dict[str, Any] = {
        "role": "assistant",
        "content": reply.end.text or (None if reply.calls else ""),
        "refusal": None,
    }
    if reply.reasoning:
        message["reasoning_content"] = "".join(reply.reasoning)
    if reply.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": function(call)}
            for _, call in sorted(reply.calls.items())
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": reply.finish_reason,
    }
    answer = {
        "id": id_of(run),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": prepared.name,
        "choices": [choice],
        "usage": usage_of(reply.end),
    }
    await asked.answer(200, encode(answer))


def function(call: ToolCall) -> dict[str, str]:
    """Return the function of a tool call."""
    return {"name": call.name, "arguments": call.arguments}


def id_of(run: Run) -> str:
    """Return the id of a completion."""
    return f"chatcmpl-{run.pk.hex}"


def usage_of(end: Event) -> dict[str, Any]:
    """Return the tokens of a reply, and its `cost` in credits, which is exactly what was charged."""
    usage = end.usage
    prompt = usage.prompt_tokens if usage else 0
    output = usage.completion_tokens if usage else 0
    found: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens if usage else 0},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens if usage else 0},
    }
    if end.cost is not None:
        found["cost"] = msgspec.Raw(credits.exact(end.cost).encode())
    return found


# --- A stream ---------------------------------------------------------------------------------


class Stream:
    """The answer as server-sent events; another format of them overrides the methods without an underscore.

    It begins with the first piece of the reply, so that an error before has a status of its own, or with a comment
    when the client has waited for COMMENT_EVERY.
    """

    def __init__(self, asked: Request, prepared: Prepared, run: Run) -> None:
        self.prepared = prepared
        self.run = run
        self.reply = Reply(streamed=True)
        self._asked = asked
        common = {
            "id": id_of(run),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": prepared.name,
            "system_fingerprint": None,
        }
        self._head = b"data: " + encode(common)[:-1]
        # A client that asked for the usage gets it in a last chunk, and null in all others.
        self._tail = b',"usage":null}\n\n' if prepared.include_usage else b"}\n\n"
        self._has_role = False

    async def answer(self) -> None:
        """Send the reply as it is written. Raises ApiError before the first event, and ClientGone."""
        following = Following(self.run, self.prepared.caller.user, self._asked.receive, self._take)
        try:
            await following.wait(seconds=None, every=COMMENT_EVERY, tick=self._comment)
        except ApiError as error:
            if not self._asked.has_begun:
                raise
            await self._asked.send_part(self.failed(error), is_last=True)
        except asyncio.CancelledError:
            if self._asked.has_begun:
                await self._asked.send_part(self.failed(restarting()), is_last=True)
            raise

    async def _comment(self) -> None:
        await self._begin()
        await self._asked.send_part(COMMENT)

    async def _begin(self) -> None:
        if not self._asked.has_begun:
            await self._asked.begin_stream()
            if beginning := self.beginning():
                await self._asked.send_part(beginning)

    async def _take(self, event: Event) -> bool:
        piece = self.reply.take(event)
        if piece is not None:
            await self._send(self.chunk(piece))
        end = self.reply.end
        if end is None:
            return False
        error = await failure(self.run, end)
        rest = self.reply.rest()
        if rest:
            await self._send(self.chunk(Piece(text=rest)))
        if error is not None:
            raise error
        if not self.reply.is_whole:
            for missing in await self._missing_calls():
                await self._send(self.chunk(missing))
        await self._begin()
        await self._asked.send_part(self.ending(end), is_last=True)
        return True

    async def _send(self, chunk: bytes) -> None:
        await self._begin()
        await self._asked.send_part(chunk)

    async def _missing_calls(self) -> list[Piece]:
        """Return the pieces of tool calls whose events were lost."""
        missing = []
        for index, call in (await db.run(read_calls, self.run)).items():
            sent = self.reply.calls.get(index)
            if sent is None:
                missing.append(Piece(index=index, call=call))
            elif rest := call.arguments[len(sent.arguments) :]:
                missing.append(Piece(index=index, call=ToolCall(arguments=rest)))
            self.reply.calls[index] = call
        return missing

    def beginning(self) -> bytes:
        """Return what is sent before the first piece."""
        return b""

    def chunk(self, piece: Piece) -> bytes:
        """Return a piece of the reply as it is sent."""
        if piece.text:
            return self._with_role({"content": piece.text})
        if piece.reasoning:
            return self._with_role({"reasoning_content": piece.reasoning})
        call = piece.call
        if call is None:
            return b""
        made: dict[str, Any] = {"index": piece.index, "function": {"arguments": call.arguments}}
        if call.name:
            first = {"index": piece.index, "id": call.id, "type": "function"}
            made = {**first, "function": function(call)}
        return self._with_role({"tool_calls": [made]})

    def _with_role(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        if not self._has_role:
            self._has_role = True
            delta = {"role": "assistant", "content": ""} | delta
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._head + b',"choices":[' + encode(choice) + b"]" + self._tail

    def ending(self, end: Event) -> bytes:
        """Return what is sent after the last piece."""
        last = self._with_role({}, self.reply.finish_reason)
        if self.prepared.include_usage:
            last += self._head + b',"choices":[],"usage":' + encode(usage_of(end)) + b"}\n\n"
        return last + DONE

    def failed(self, error: ApiError) -> bytes:
        """Return the event that ends a stream by an error."""
        return b"data: " + error.body() + b"\n\n"
