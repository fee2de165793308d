"""A time limit for blocking work that has none of its own, such as looking up a host's name."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T], *, name: str) -> T:
    """Return the result of a function that is called in a thread of its own, and raise its exception.

    Raises TimeoutError when it has not returned in time; the thread then ends later, unnoticed.
    """
    results: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue()

    def call() -> None:
        try:
            results.put((work(), None))
        except Exception as error:  # noqa: BLE001 # raised again in the caller's thread
            results.put((None, error))

    threading.Thread(target=call, name=name, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"{name}: not finished within {seconds:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value] # None only if the function returns it
