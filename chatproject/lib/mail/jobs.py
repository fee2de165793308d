"""Entry point of the outbox's job.

Redis stores its path: a renamed function must keep its old name for one release.
"""

from __future__ import annotations

from chatproject.lib.mail import outbox


def send(mail_id: int, attempt: int) -> None:
    """Send a mail of the outbox, unless another job has claimed this attempt."""
    outbox.send(mail_id, attempt)
