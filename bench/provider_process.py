"""The provider as a process of its own, for as long as a bench runs."""

from __future__ import annotations

import asyncio
import http.client
import subprocess
import sys
from pathlib import Path
from typing import Self

import msgspec

from bench.provider import Ledger
from chatproject.local.spawn import spawn

PROJECT = Path(__file__).resolve().parent.parent


class Provider:
    """Started by `with`; `url` is its base URL, `pid` its process."""

    def __enter__(self) -> Self:
        self._process = spawn(
            [sys.executable, "-m", "bench.provider"], cwd=PROJECT, output=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        if not self.url.startswith("http"):
            raise RuntimeError(f"the provider did not start: {self.url}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def state(self) -> Ledger:
        """What it counted so far."""
        return msgspec.json.decode(await self._ask("GET", "/bench/state"), type=Ledger)

    async def open(self, gate: str, *, over: float) -> None:
        """End the streams with this gate, one after another within so many seconds."""
        await self._ask("POST", f"/bench/gates/{gate}?over={over}")

    async def sent(self, gate: str) -> dict[str, int]:
        """How many tokens the streams with this gate have sent, by key, of those that have ended."""
        return msgspec.json.decode(
            await self._ask("GET", f"/bench/gates/{gate}"), type=dict[str, int]
        )

    async def _ask(self, method: str, path: str) -> bytes:
        return await asyncio.to_thread(self._ask_now, method, path)

    def _ask_now(self, method: str, path: str) -> bytes:
        # Not urllib: the environment may name a proxy for it.
        connection = http.client.HTTPConnection(self.url.split("/")[2], timeout=10)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"the provider answered {answer.status} to {method} {path}")
            return answer.read()
        finally:
            connection.close()
