"""Parley by its OpenAI-compatible API: the processes of bench.parley, and clients that stream completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec
from aiohttp import ClientSession, ClientTimeout, TCPConnector

from bench.parley import Parley
from bench.systems import Client, WrongReply


class Delta(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    delta: Delta


class Chunk(msgspec.Struct):
    """The fields of a chunk that a client needs; `error` ends a stream."""

    choices: list[Choice] = []
    error: dict[str, object] | None = None


decode = msgspec.json.Decoder(Chunk).decode
DONE = b"data: [DONE]"


class ParleyApi(Parley):
    """The same processes, each of whose users has an API key."""

    name = "parley-api"

    def start(self) -> None:
        super().start()
        self.keys = self._run("-m", "bench.users", "--keys", str(self.users)).split()

    async def connect(self, user: int) -> ApiClient:  # type: ignore[override] # no tab
        return ApiClient(f"http://127.0.0.1:{self.ports[0]}", self.keys[user])


class ApiClient(Client):
    """One kept-alive HTTP connection with a user's key."""

    def __init__(self, base: str, key: str) -> None:
        self._session = ClientSession(
            base,
            connector=TCPConnector(limit=1),
            timeout=ClientTimeout(total=None),
            headers={"Authorization": f"Bearer {key}"},
        )

    async def send(self, prompt: str) -> AsyncGenerator[str]:
        body = {
            "model": "bench",
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
        }
        content = msgspec.json.encode(body)
        rest, last = b"", b""
        async with self._session.post("/v1/chat/completions", data=content) as answer:
            if answer.status != 200:
                raise WrongReply(f"HTTP {answer.status}: {await answer.text()}")
            while read := await answer.content.readany():
                *events, rest = (rest + read).split(b"\n\n")
                for last in events:
                    if last == DONE or last.startswith(b":"):
                        continue
                    chunk = decode(last.removeprefix(b"data: "))
                    if chunk.error is not None:
                        raise WrongReply(f"the stream ended with {chunk.error}")
                    for choice in chunk.choices:
                        if choice.delta.content:
                            yield choice.delta.content
        if last != DONE or rest:
            raise WrongReply("the stream ended without [DONE]")

    async def close(self) -> None:
        await self._session.close()
