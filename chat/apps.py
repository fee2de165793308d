from __future__ import annotations

from django.apps import AppConfig


class ChatConfig(AppConfig):
    name = "chat"

    def ready(self) -> None:
        from billing.signals import balance_changed
        from chat import balance

        balance_changed.connect(balance.announce, dispatch_uid="chat.balance")
