"""Functions that tests run in a sandbox."""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatproject.lib.sandbox import Refused


def count(argument: dict[str, Any]) -> Iterator[dict[str, Any]]:
    os.write(1, b"not a frame\n")
    for number in range(argument["to"]):
        yield {"number": number, "text": "line\nline"}


def refuse_after_two(argument: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from count({"to": 2})
    raise Refused("too_odd", line=3)


def echo(argument: dict[str, Any]) -> dict[str, Any]:
    return argument


def some_bytes(argument: dict[str, Any]) -> bytes:
    times: int = argument["times"]
    return b"a\n.\n\xff" * times


def environment(argument: dict[str, Any]) -> dict[str, Any]:
    return {
        "variables": dict(os.environ),
        "folder": os.getcwd(),
        "content": os.listdir("."),
        "parent": os.getppid(),
        "pid": os.getpid(),
    }


def read(argument: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"text": Path(argument["path"]).read_text()}
    except PermissionError:
        return {"error": "permission"}


def write(argument: dict[str, Any]) -> dict[str, Any]:
    with Path(argument["path"]).open("wb") as file:
        file.writelines(b"x" * 100_000 for _part in range(argument["parts"]))
    return {}


def connect(argument: dict[str, Any]) -> dict[str, Any]:
    try:
        socket.create_connection(("127.0.0.1", argument["port"]), timeout=2).close()
    except PermissionError:
        return {"error": "permission"}
    return {"error": ""}


def take_memory(argument: dict[str, Any]) -> dict[str, Any]:
    return {"size": len(b"x" * argument["bytes"])}


def spin(argument: dict[str, Any]) -> dict[str, Any]:
    while True:
        pass


def sleep(argument: dict[str, Any]) -> dict[str, Any]:
    time.sleep(argument["seconds"])
    return {}


def pour(argument: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"pid": os.getpid()}
    for _line in itertools.count():
        yield {"text": "x" * 10_000}


def fail(argument: dict[str, Any]) -> dict[str, Any]:
    raise ValueError("Zanzibar")


def crash(argument: dict[str, Any]) -> dict[str, Any]:
    ctypes.string_at(0)
    return {}


def open_many(argument: dict[str, Any]) -> dict[str, Any]:
    files = [open(os.devnull) for _file in range(argument["files"])]  # noqa: SIM115
    return {"files": len(files)}
