"""The fake provider in a process of its own, started and steered by a test or a bench.

A process, not a thread: like a real provider it takes no turn from the event loop under test, so a
test may call these methods, which block, in the middle of a coroutine; where the loop must go on
meanwhile, through `asyncio.to_thread`. It takes about half a second to start: share one
(`scope="session"`) and `reset()` it before each test.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import msgspec

from tests.support.fake_llm.model_lists import KINDS
from tests.support.fake_llm.record import Call

PROJECT = Path(__file__).resolve().parents[3]


class FakeLLM:
    """Start it, give `url` to the client, read `requests`, `calls` and the counters.

    The process ends with `stop()`, and automatically when the process that started it ends, however
    that happens.
    """

    url: str  # the OpenAI base URL: http://127.0.0.1:PORT/v1

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Return when it accepts requests. A second start after `stop()` takes a new port."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fake_llm"],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C ends the test or bench, which ends this
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"the fake provider ended with {self._process.wait()}")

    def stop(self) -> None:
        """End the process and with it every stream; does nothing when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # closes the pipes too
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The bodies of the requests received since `reset()`, oldest first (the last 2,000)."""
        return [request["body"] for request in self._state()["requests"]]

    @property
    def headers(self) -> list[dict[str, str]]:
        """The headers of the same requests."""
        return [request["headers"] for request in self._state()["requests"]]

    @property
    def connections(self) -> int:
        """The number of different connections by which those requests came."""
        return len({tuple(request["peer"]) for request in self._state()["requests"]})

    @property
    def calls(self) -> list[Call]:
        """The outcome of each call since `reset()`, oldest first (the last 20,000)."""
        return msgspec.json.decode(self._ask("calls"), type=list[Call])

    @property
    def counts(self) -> dict[str, int]:
        """Streams under way (`active`), ended as their directives say (`finished`), whose connection
        the client closed or `cut` broke (`aborted`), waiting for a release (`held`); and requests
        that were answered with a status or a reset (`failed`).
        """
        counts: dict[str, int] = self._state()["counts"]
        return counts

    @property
    def peak(self) -> int:
        """The largest number of streams under way at the same time since `reset()`."""
        return int(self._state()["peak"])

    def wait(self, *, timeout: float = 10.0, **counts: int) -> None:
        """Return when the counters are as given: `wait(active=0, aborted=1)`, `wait(held=1)`.

        Raises TimeoutError after `timeout` seconds.
        """
        self._ask("wait", timeout=timeout, **counts)

    def release(self, key: str) -> None:
        """Let the streams with `[[hold=N key=…]]` go on, those to come too."""
        self._ask("release", key=key)

    def end(self, group: str, *, over: float) -> None:
        """End the streams with `[[group=…]]` in the order of their beginning, over so many seconds."""
        self._ask("end", group=group, over=over)

    def list_models(self, kind: str, *, delay: float = 0.0) -> None:
        """Answer `GET /models` in the shape of this kind of server (see model_lists.py), so late."""
        assert kind in KINDS
        self._ask("models", kind=kind, delay=delay)

    def reset(self) -> None:
        """Forget requests, calls, attempts, releases and counters; list models as OpenAI does."""
        self._ask("reset")

    def cut(self) -> None:
        """Break all connections, and with them the streams."""
        self._ask("cut")

    def away(self, seconds: float) -> None:
        """Restart on the same port, with the record; returns when it is back, after so many seconds."""
        self._ask("away", timeout=seconds + 10, seconds=seconds)

    def _state(self) -> dict[str, Any]:
        return msgspec.json.decode(self._ask("state"), type=dict[str, Any])

    def _ask(self, name: str, *, timeout: float = 10.0, **query: object) -> bytes:
        # Not urllib: the environment may name a proxy for it.
        connection = http.client.HTTPConnection(self.url.split("/")[2], timeout=timeout)
        try:
            connection.request("POST", f"/control/{name}?{urlencode(query)}", body=b"")
            return connection.getresponse().read()
        finally:
            connection.close()
