"""The sandbox: results, limits, confinement, and the end of the child."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chatproject.lib import sandbox
from chatproject.lib.sandbox import Limits, SandboxError, landlock

HERE = "tests.support.sandboxed"
confined = pytest.mark.skipif(not landlock.version(), reason="the kernel has no Landlock")


def error_of(function: str, argument: dict[str, Any], limits: Limits | None = None) -> SandboxError:
    with pytest.raises(SandboxError) as raised:
        sandbox.call(f"{HERE}:{function}", argument, limits)
    return raised.value


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_lines_arrive_in_order():
    found = list(sandbox.lines(f"{HERE}:count", {"to": 5_000}))
    assert [one["number"] for one in found] == list(range(5_000))
    assert found[0]["text"] == "line\nline"


def test_results_are_values_or_bytes():
    assert sandbox.call(f"{HERE}:echo", {"text": "ü\n"}) == {"text": "ü\n"}
    assert sandbox.call(f"{HERE}:some_bytes", {"times": 200_000}) == b"a\n.\n\xff" * 200_000
    assert sandbox.call(f"{HERE}:some_bytes", {"times": 0}) == b""


def test_refusal_keeps_lines_code_and_details():
    lines = sandbox.lines(f"{HERE}:refuse_after_two", {})
    assert [next(lines)["number"], next(lines)["number"]] == [0, 1]
    with pytest.raises(SandboxError) as raised:
        next(lines)
    error = raised.value
    assert (error.code, error.reason, error.details) == ("failed", "too_odd", {"line": 3})


def test_environment_has_no_secrets(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "Zanzibar")
    found = sandbox.call(f"{HERE}:environment", {})
    allowed = {"PATH", "LANG", "TZ", "HOME", "TMPDIR", "LC_CTYPE"}  # the last by Python itself
    assert set(found["variables"]) <= allowed
    assert found["content"] == []
    assert not Path(found["folder"]).exists()
    assert not is_alive(found["pid"])


@confined
def test_only_named_files_are_readable(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "secret").write_text("Zanzibar")
    mine, secret = str(tmp_path / "mine"), str(tmp_path / "secret")
    assert sandbox.call(f"{HERE}:read", {"path": mine}, readable=[mine]) == {"text": "mine"}
    for path in (secret, f"/proc/{os.getpid()}/environ", "/etc/passwd"):
        assert sandbox.call(f"{HERE}:read", {"path": path}, readable=[mine]) == {
            "error": "permission"
        }
    error = error_of("write", {"path": secret, "parts": 1})
    assert (error.code, error.reason.split()[0]) == ("crashed", "PermissionError")
    folder = tmp_path / "made"
    folder.mkdir()
    out = str(folder / "out")
    sandbox.call(f"{HERE}:write", {"path": out, "parts": 1}, writable=[folder])
    assert Path(out).stat().st_size == 100_000


@confined
@pytest.mark.skipif(landlock.version() < landlock.TCP_SINCE, reason="Landlock knows no TCP")
def test_no_tcp_connection_is_opened():
    with socket.create_server(("127.0.0.1", 0)) as server:
        argument = {"port": server.getsockname()[1]}
        assert sandbox.call(f"{HERE}:connect", argument) == {"error": "permission"}


@pytest.mark.parametrize(
    ("function", "argument", "limits", "code"),
    [
        ("take_memory", {"bytes": 200_000_000}, Limits(memory=150_000_000), "too_much_memory"),
        ("spin", {}, Limits(cpu=1, seconds=30), "too_slow"),
        ("sleep", {"seconds": 30}, Limits(seconds=0.5), "too_slow"),
        ("some_bytes", {"times": 100_000}, Limits(output=50_000), "too_much_output"),
        ("write", {"path": "out", "parts": 5}, Limits(file_bytes=200_000), "too_much_output"),
        ("open_many", {"files": 100}, Limits(files=50), "crashed"),
        ("fail", {}, Limits(), "crashed"),
        ("crash", {}, Limits(), "crashed"),
        ("not_there", {}, Limits(), "crashed"),
    ],
)
def test_limit_ends_the_call(function, argument, limits, code):
    error = error_of(function, argument, limits)
    assert error.code == code
    assert "Zanzibar" not in str(error)  # no text of a file in a log


def test_memory_within_the_limit_is_granted():
    limits = Limits(memory=150_000_000)
    assert sandbox.call(f"{HERE}:take_memory", {"bytes": 100_000_000}, limits)["size"]


def test_closed_iterator_ends_the_child():
    with closing(sandbox.lines(f"{HERE}:pour", {})) as lines:
        pid = next(lines)["pid"]
        assert is_alive(pid)
    assert not is_alive(pid)


def test_callers_work_is_not_counted():
    lines = sandbox.lines(f"{HERE}:count", {"to": 30_000}, Limits(seconds=1))
    next(lines)
    time.sleep(1.2)
    assert sum(1 for _line in lines) == 29_999


def test_killed_parent_takes_the_child_along():
    script = (
        "from chatproject.lib import sandbox\n"
        f"lines = sandbox.lines('{HERE}:pour', {{}})\n"
        "print(next(lines)['pid'], flush=True)\n"
        "import time; time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while is_alive(child) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert not is_alive(child)
