from __future__ import annotations

import pytest

from chatproject.lib.mail import outbox
from chatproject.local.servers import free_port


@pytest.fixture
def by_outbox(settings, valkey_client, monkeypatch):
    """Mails go through the outbox to a port on which no mail server listens yet."""
    settings.EMAIL_BACKEND = "chatproject.lib.mail.backend.OutboxBackend"
    settings.MAIL_TRANSPORT = "chatproject.lib.mail.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", free_port()
    settings.EMAIL_USE_TLS = False
    settings.EMAIL_TIMEOUT = 2
    outbox.low_queue.cache_clear()
    return settings
