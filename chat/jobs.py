"""Job paths of the previous release: Redis stores them, and this release still enqueues them.

Processes of both releases run side by side during an update. The next release enqueues
`chat.generation.jobs.generate`, and the release after that removes this module.
"""

from __future__ import annotations

from chat.generation.jobs import generate

__all__ = ["generate"]
