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

        Addresses below ".invalid" are left out: those of purged accounts (RFC 2606), to which a late refund would
        write. Raises ValueError for a line break in a header.
        """
        for message in email_messages:
            for name in ("to", "cc", "bcc"):
                addresses = getattr(message, name)
                setattr(message, name, [one for one in addresses if not is_invalid(one)])
        with_recipient = [message for message in email_messages if message.recipients()]
        for message in with_recipient:
            outbox.store(message)
        return len(with_recipient)


def is_invalid(address: str) -> bool:
    """Return whether an address, also one with a name, can have no mailbox."""
    return address.rstrip("> ").lower().endswith(".invalid")
