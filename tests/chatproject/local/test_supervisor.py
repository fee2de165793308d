"""The supervisor: restarts what ends, passes signals on, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from chatproject.local import supervisor
from chatproject.local.servers import BASE_DIR, is_alive
from chatproject.local.supervisor import Backoff, describe_exit, read_procfile
from tests.support.programs import PATIENCE, Program, wait_until

# Prints its process id, and then does the rest of the line.
HELLO = "python -c \"import os, signal, subprocess, sys, time; print(f'hello {os.getpid()}'); "
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(1000)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a folder's name"
    folder.mkdir()
    return folder


class Supervised(Program):
    """The supervisor with this Procfile."""

    def __init__(self, folder: Path, *lines: str, stop_timeout: float = 60.0) -> None:
        procfile = folder / "Procfile"
        procfile.write_text("\n".join(lines))
        options = [str(procfile), "--stop-timeout", str(stop_timeout)]
        command = [sys.executable, "-m", "chatproject.local.supervisor", *options]
        super().__init__(command, cwd=BASE_DIR)

    def hello(self, name: str) -> int:
        """The process id that the process of this name prints next."""
        line = self.wait_for("hello")
        assert line.split()[0] == name
        return int(line.split()[-1])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal, and wait for a proper end."""
        self.signal(number)
        assert self.wait() == 0


def test_ended_process_is_restarted(folder):
    with Supervised(folder, f'fickle: {HELLO} sys.exit(3)"') as program:
        first = program.hello("fickle")
        program.wait_for("fickle ended with exit code 3; again in 0.5 s")
        assert program.hello("fickle") != first
        program.wait_for("again in 1 s")
        program.stop()


def test_killed_process_is_restarted(folder):
    with Supervised(folder, f'loyal: {HELLO} time.sleep(1000)"') as program:
        pid = program.hello("loyal")
        os.kill(pid, signal.SIGKILL)
        program.wait_for("loyal was ended by SIGKILL; again in")
        successor = program.hello("loyal")
        program.stop()
        assert not is_alive(successor)


def test_missing_command_does_not_stop_the_others(folder):
    lines = ["lost: /does/not/exist", f'loyal: {HELLO} time.sleep(1000)"']
    with Supervised(folder, *lines) as program:
        program.wait_for("lost ended with exit code 126")
        program.stop()
    assert "Cannot start /does/not/exist" in program.text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stop_signal_reaches_processes_as_one_sigterm(folder, number):
    handler = "signal.signal(signal.SIGTERM, lambda *a: (print('polite'), sys.exit()))"
    lines = [f'{name}: {HELLO} {handler}; time.sleep(1000)"' for name in ("one", "two")]
    with Supervised(folder, *lines) as program:
        pids = [int(program.wait_for("hello").split()[-1]) for _ in lines]
        # They install their handlers a moment after the greeting.
        wait_until(lambda: all(map(catches_sigterm, pids)), "both catch SIGTERM")
        program.stop(number)
        assert program.text().count("polite") == 2
        assert not any(map(is_alive, pids))


def test_echo_of_a_signal_kills_nothing(folder):
    handler = "lambda *a: (time.sleep(1.5), print('in peace'), sys.exit())"
    slow = f'slow: {HELLO} signal.signal(signal.SIGTERM, {handler}); time.sleep(1000)"'
    with Supervised(folder, slow) as program:
        pid = program.hello("slow")
        wait_until(lambda: catches_sigterm(pid), "it catches SIGTERM")
        program.signal(signal.SIGTERM)
        program.wait_for("Stopping")
        program.signal(signal.SIGTERM)  # as make and a process group deliver it
        assert program.wait() == 0
    assert "in peace" in program.text()


def test_process_that_ignores_sigterm_is_killed(folder):
    with Supervised(folder, f'deaf: {HELLO} {STUBBORN}"', stop_timeout=1.0) as program:
        pid = program.hello("deaf")
        program.wait_for("| deaf")
        program.stop()
        assert not is_alive(pid)


def test_second_signal_kills_at_once(folder):
    with Supervised(folder, f'deaf: {HELLO} {STUBBORN}"', stop_timeout=1000.0) as program:
        pid = program.hello("deaf")
        program.wait_for("| deaf")
        program.signal(signal.SIGINT)
        program.wait_for("Stopping")
        time.sleep(2 * supervisor.ONE_SIGNAL)
        assert is_alive(pid)
        program.stop(signal.SIGINT)
        assert not is_alive(pid)


@pytest.mark.parametrize("ending", ["sys.exit()", "time.sleep(1000)"])
def test_children_end_with_their_process(folder, ending):
    child = "c = subprocess.Popen(['sleep', '1000']); print(f'child {c.pid}')"
    with Supervised(folder, f'parent: {HELLO} {child}; {ending}"') as program:
        pid = int(program.wait_for("child").split()[-1])
        if "exit" in ending:
            program.wait_for("parent ended with exit code 0")
        program.stop()
        assert not is_alive(pid)


def test_processes_end_with_a_killed_supervisor(folder):
    with Supervised(folder, f'deaf: {HELLO} {STUBBORN}"') as program:
        pid = program.hello("deaf")
        program.wait_for("| deaf")
        program.signal(signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "it ends with its supervisor")


def test_supervisor_stops_when_its_output_is_closed(folder):
    chatter = "[print(time.sleep(0.1), flush=True) for _ in range(10**6)]"
    with Supervised(folder, f'chatty: {HELLO} {chatter}"') as program:
        pid = program.hello("chatty")
        program.stop_reading()
        assert program.process.wait(PATIENCE) == 0
        assert not is_alive(pid)


def test_lines_are_whole_and_named(folder):
    lines = [
        "a: python -c \"import sys, time; w = sys.stdout.buffer.write; w(b'first half, '); "
        "sys.stdout.flush(); time.sleep(0.3); w(b'second half\\n' + b'\\xff\\xfe\\n\\n' + b'no end'); "
        'sys.stdout.flush(); time.sleep(1000)"',
        "longname: python -c \"import time; print('x' * 200000); time.sleep(1000)\"",
    ]
    with Supervised(folder, *lines) as program:
        program.wait_for("first half, second half")
        program.wait_for("\ufffd\ufffd")
        program.stop()
    said = program.lines
    assert all(line[:13] in {"a          | ", "longname   | ", "supervisor | "} for line in said)
    assert "a          | no end" in said
    assert "".join(line[13:] for line in said if line.startswith("longname")) == "x" * 200_000
    assert "\x1b" not in program.text(), "colours are for terminals"


def test_restart_pauses_grow_and_reset_after_calm():
    backoff = Backoff()
    pauses = [backoff.after(lived=0.1) for _ in range(9)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert backoff.after(lived=59.0) == 30.0
    assert backoff.after(lived=60.0) == 0.5
    assert backoff.after(lived=0.1) == 1.0


def test_procfile_may_have_comments_and_quotes(folder):
    path = folder / "Procfile"
    path.write_text("# what runs\n\nweb: python -m x --name 'two words'\nclock: ./tick  \n")
    assert read_procfile(path) == {
        "web": ["python", "-m", "x", "--name", "two words"],
        "clock": ["./tick"],
    }


@pytest.mark.parametrize("line", ["web", "web:", "web:   "])
def test_procfile_line_without_command_is_named(folder, line):
    path = folder / "Procfile"
    path.write_text(f"clock: ./tick\n{line}\n")
    with pytest.raises(ValueError, match="Procfile, line 2"):
        read_procfile(path)


def test_own_procfile_has_the_four_processes():
    """Its line `release` is for platforms, which run it before they start a new version."""
    assert (BASE_DIR / "Procfile").read_text().startswith("release: python manage.py migrate")
    commands = read_procfile(BASE_DIR / "Procfile")
    assert list(commands) == ["web", "worker", "low", "clock"]
    assert all(command[0] == "python" for command in commands.values())
    # Without this option a worker would read every job as a pickle.
    for name in ("worker", "low"):
        option = commands[name].index("--serializer")
        assert commands[name][option + 1] == "rq.serializers.JSONSerializer"


def test_exit_is_described_in_words():
    assert describe_exit(2) == "ended with exit code 2"
    assert describe_exit(-9) == "was ended by SIGKILL"


def catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))
