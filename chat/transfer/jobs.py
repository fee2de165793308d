"""Entry point of the job that imports chats.

Redis stores its path: a renamed function must keep its old name for one release.
"""

from __future__ import annotations

from uuid import UUID

from chat.transfer import imports


def run_import(import_id: str, attempt: int) -> None:
    """Store the chats of an upload, unless another job has claimed this attempt."""
    imports.run(UUID(import_id), attempt)
