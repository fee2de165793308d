from __future__ import annotations

from tests.chat.conftest import assistant, owner, provider, provider_process, valkey_client

__all__ = ["assistant", "owner", "provider", "provider_process", "valkey_client"]
