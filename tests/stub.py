"""The stub provider for tests: `bench.stub_llm` in a process of its own.

A process, not a thread: like a real provider it takes no turn from the loop under test, so a
test may ask it something synchronously in the middle of a coroutine.  It costs about half a
second to start; share one (`scope="session"`) and `reset()` it before each test.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

from bench.stub_llm import reasoning_text, reply_text

__all__ = ["StubProvider", "reasoning_text", "reply_text"]

PROJECT = Path(__file__).resolve().parent.parent


class StubProvider:
    """Start it, give `url` to the client, read `requests` and the counters.

    The process ends with `stop()`, and by itself when the tests' process ends, however it does.
    """

    url: str  # the OpenAI base URL: http://127.0.0.1:PORT/v1

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        # Without a handler of its own urllib would ask a proxy from the environment.
        self._opener = build_opener(ProxyHandler({}))

    def start(self) -> None:
        """Returns when it accepts requests.  A second start after `stop()` takes a new port."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.stub_llm", "--until-stdin-ends"],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"the stub provider ended with {self._process.wait()}")

    def stop(self) -> None:
        """Ends the process and with it every stream; does nothing when it is not running."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.communicate()  # closes the pipes too

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The bodies of the requests received since `reset()`, oldest first (the last 2,000)."""
        return [request["body"] for request in self._ask("state")["requests"]]

    @property
    def headers(self) -> list[dict[str, str]]:
        """The headers of the same requests."""
        return [request["headers"] for request in self._ask("state")["requests"]]

    @property
    def connections(self) -> int:
        """How many different connections those requests came by."""
        return len({tuple(request["peer"]) for request in self._ask("state")["requests"]})

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What became of each call since `reset()`, oldest first: see `bench.stub_llm.Call`."""
        calls: list[dict[str, Any]] = self._ask("calls")
        return calls

    @property
    def active(self) -> int:
        """Streams being sent now."""
        return self._count("active")

    @property
    def aborted(self) -> int:
        """Streams whose client hung up before their end."""
        return self._count("aborted")

    @property
    def finished(self) -> int:
        """Streams that ended as their directives say."""
        return self._count("finished")

    def wait(self, *, timeout: float = 10.0, **counts: int) -> None:
        """Returns when the counters are as given: `wait(active=0, aborted=1)`, `wait(held=1)`.

        In a coroutine call it through `asyncio.to_thread`, as it blocks.  TimeoutError after
        `timeout` seconds.
        """
        self._ask(f"wait?{urlencode(counts)}", timeout=timeout)

    def release(self, key: str) -> None:
        """Lets the streams with `[[hold=N key=…]]` go on."""
        self._ask(f"release?{urlencode({'key': key})}", method="POST")

    def reset(self) -> None:
        """Forgets requests, calls, attempts, holds and counters."""
        self._ask("reset", method="POST")

    def cut(self) -> None:
        """Breaks all connections, and with them what is being sent."""
        self._ask("cut", method="POST")

    def away(self, seconds: float) -> None:
        """A restart on the same port; returns when it is back, after so many seconds."""
        self._ask(f"away?{urlencode({'seconds': seconds})}", method="POST", timeout=seconds + 10)

    def _count(self, name: str) -> int:
        return int(self._ask("state")[name])

    def _ask(self, path: str, *, method: str = "GET", timeout: float = 10.0) -> Any:
        url = f"{self.url.removesuffix('/v1')}/stub/{path}"
        with self._opener.open(Request(url, method=method), timeout=timeout) as response:
            return json.load(response)
