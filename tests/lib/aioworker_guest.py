"""The worker as a guest in the process of the tests."""

from __future__ import annotations

from chatproject.lib.aioworker import AsyncWorker


class GuestWorker(AsyncWorker):
    """Leaves the process's memory alone: collecting it would warn of what other tests have left."""

    def _settle_memory(self) -> None:
        return None
