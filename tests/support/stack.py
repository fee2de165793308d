"""Parley's processes as operators run them (web, worker, clock), for tests that need all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from django.conf import settings
from django.db import connection

from chatproject.local.servers import free_port
from tests.support.programs import is_healthy

PROJECT = Path(__file__).resolve().parent.parent.parent

PROCESSES = {
    "web": ["-m", "chatproject.serve"],
    "worker": ["manage.py", "rqworker", "chat", "--serializer", "rq.serializers.JSONSerializer"],
    "low": [
        "manage.py",
        "rqworker",
        "billing",
        "insights",
        "index",
        "low",
        "--serializer",
        "rq.serializers.JSONSerializer",
    ],
    "clock": ["manage.py", "clock"],
}


class Stack:
    """Processes on this test's database, Valkey and provider, which end with the `with`.

    A process has the name of its command in PROCESSES; further ones of the same kind are `web-2`,
    `worker-2` and so on. Web processes serve `application`, a `module:attribute`, instead of the project's. `base` is the address of the web process `web`, like
    http://127.0.0.1:12345.
    """

    def __init__(
        self,
        folder: Path,
        *,
        provider_url: str,
        environment: Mapping[str, str] | None = None,
        application: str = "",
    ) -> None:
        self._ports: defaultdict[str, int] = defaultdict(free_port)
        self.port = self._ports["web"]
        self.base = self.address("web")
        self._folder = folder
        self._application = application
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {
            **os.environ,
            "DATABASE_URL": database_url(),
            "REDIS_URL": settings.REDIS_URL,
            "OPENAI_BASE_URL": provider_url,
            "OPENAI_API_KEY": "stub",
            "DEBUG": "0",
            "HTTPS": "0",
            **(environment or {}),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
                process.send_signal(signal.SIGCONT)
        for process in self._processes.values():
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def address(self, name: str) -> str:
        """The address of a web process, the same after a restart."""
        return f"http://127.0.0.1:{self._ports[name]}"

    def change_environment(self, **variables: str) -> None:
        """Set variables of the processes that are started from now on."""
        self._environment |= variables

    def start(self, *names: str) -> None:
        """Start processes; return when the web processes among them answer."""
        for name in names:
            self.launch(name)
        for name in names:
            if kind_of(name) == "web":
                self._wait_for_web(name)

    def start_once(self, name: str) -> None:
        """Start a process that only some tests of a shared stack need, unless it runs."""
        if name not in self._processes or self.ended(name) is not None:
            self.start(name)

    def launch(self, name: str) -> None:
        """Start a process without waiting for it."""
        environment, command = self._environment, PROCESSES[kind_of(name)]
        if kind_of(name) == "web":
            environment = {**environment, "PORT": str(self._ports[name])}
            if self._application:
                command = [*command, "--application", self._application]
        with self._log_path(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *command],
                cwd=PROJECT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def pid(self, name: str) -> int:
        """The process id of a process that was started."""
        return self._processes[name].pid

    def ended(self, name: str) -> int | None:
        """The exit code of a process that was started, or None while it runs."""
        return self._processes[name].poll()

    def kill(self, name: str) -> None:
        """SIGKILL: the process cannot clean up."""
        self._end(name, signal.SIGKILL)

    def pause(self, name: str) -> None:
        """SIGSTOP: the process is frozen until `go_on`."""
        self._processes[name].send_signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """SIGCONT."""
        self._processes[name].send_signal(signal.SIGCONT)

    def terminate(self, name: str) -> None:
        """SIGTERM, and wait until the process has ended."""
        self._end(name, signal.SIGTERM)

    def manage(self, *arguments: str) -> str:
        """Run a command of manage.py in the same environment; returns its output.

        Raises RuntimeError with the output when the command fails.
        """
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=PROJECT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode != 0:
            raise RuntimeError(f"manage.py {arguments[0]}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def log(self, name: str) -> str:
        """The output of a process so far."""
        return self._log_path(name).read_text(errors="replace")

    def _end(self, name: str, number: signal.Signals) -> None:
        process = self._processes.pop(name)
        process.send_signal(number)
        process.wait(timeout=60)

    def _log_path(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _wait_for_web(self, name: str) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.ended(name) is not None:
                break
            if is_healthy(self._ports[name]):
                return
            time.sleep(0.05)
        raise RuntimeError(f"the web process does not answer:\n{self.log(name)}")


def kind_of(name: str) -> str:
    """The kind of a process by its name: `worker` for `worker-2`."""
    return name.partition("-")[0]


def database_url() -> str:
    """The URL of the database that this test uses."""
    of = connection.settings_dict
    password = f":{of['PASSWORD']}" if of["PASSWORD"] else ""
    return f"postgres://{of['USER']}{password}@{of['HOST']}:{of['PORT']}/{of['NAME']}"
