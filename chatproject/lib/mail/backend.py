"""Django's mail backend of this project (EMAIL_BACKEND)."""

from __future__ import annotations

from collections.abc import Sequence

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

from chatproject.lib.mail import outbox


class OutboxBackend(BaseEmailBackend):
    """Stores messages in the outbox instead of connecting to the mail server."""

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Store each message that has a recipient; return how many.

        Raises ValueError for a line break in a header.
        """
        with_recipient = [message for message in email_messages if message.recipients()]
        for message in with_recipient:
            outbox.store(message)
        return len(with_recipient)
