"""The job paths of the previous release, which Redis stores, and which are still enqueued.

Processes of both releases run side by side during an update. The next release enqueues
`chat.generation.jobs.generate`, and the one after it removes this module.
"""

from __future__ import annotations

from chat.generation.jobs import generate

__all__ = ["generate"]
