"""Django's SMTP backend with a limit on the time for one connection, and refusals of single recipients."""

from __future__ import annotations

import io
import smtplib
import time
from typing import Any

from django.core.mail.backends import smtp

# For all answers of one connection, of which each has EMAIL_TIMEOUT. Less than the limit of a job.
SECONDS = 60.0


class PartlyRefused(smtplib.SMTPRecipientsRefused):
    """The mail server took the mail for some of its recipients; `recipients` has the refused ones."""


class EmailBackend(smtp.EmailBackend):
    """Raises PartlyRefused where Django's backend reports a mail as sent."""

    @property
    def connection_class(self) -> type[smtplib.SMTP]:
        return _SecureConnection if self.use_ssl else _Connection


class _Connection(smtplib.SMTP):
    """A connection whose answers have to be complete within SECONDS."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ends_at = time.monotonic() + SECONDS
        super().__init__(*args, **kwargs)

    def getreply(self) -> tuple[int, bytes]:
        if self.file is None:
            self.file = io.BufferedReader(_Answers(self.sock, self._ends_at))
        return super().getreply()

    def sendmail(self, *args: Any, **kwargs: Any) -> dict[str, tuple[int, bytes]]:
        refused = super().sendmail(*args, **kwargs)
        if refused:
            raise PartlyRefused(refused)
        return refused


class _SecureConnection(_Connection, smtplib.SMTP_SSL):
    """The same with TLS from the first byte."""


class _Answers(io.RawIOBase):
    """The bytes that a mail server sends. A server that sends one at a time resets the socket's own limit."""

    def __init__(self, sock: Any, ends_at: float) -> None:
        self._socket = sock
        self._ends_at = ends_at

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if time.monotonic() > self._ends_at:
            raise TimeoutError("The mail server is too slow.")
        return int(self._socket.recv_into(buffer))
