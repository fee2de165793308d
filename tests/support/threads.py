"""Calls that race each other, in threads with database connections of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from django.db import connections


def race(calls: Sequence[Callable[[], object]], threads: int = 12) -> list[Any]:
    """Make the calls in threads that begin together; returns what each returned or raised."""
    threads = min(threads, len(calls))
    results: list[Any] = [None] * len(calls)
    together = Barrier(threads)

    def work(first: int) -> None:
        together.wait(30)
        for number in range(first, len(calls), threads):
            try:
                results[number] = calls[number]()
            except Exception as error:  # noqa: BLE001 # the caller checks it
                results[number] = error
        connections.close_all()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    return results
