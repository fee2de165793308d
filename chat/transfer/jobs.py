"""Entry points of the jobs that import and export chats.

Redis stores their paths: a renamed function must keep its old name for one release.
"""

from __future__ import annotations

from uuid import UUID

from chat.transfer import archives, imports


def run_import(import_id: str, attempt: int) -> None:
    """Store the chats of an upload, unless another job has claimed this attempt."""
    imports.run(UUID(import_id), attempt)


def run_export(export_id: str, attempt: int) -> None:
    """Write the archive of a user's chats, unless another job has claimed this attempt."""
    archives.run(UUID(export_id), attempt)
