from __future__ import annotations

from django.apps import AppConfig


class ChatConfig(AppConfig):
    name = "chat"

    def ready(self) -> None:
        from billing.signals import balance_changed
        from chat.streaming import user_channel

        balance_changed.connect(
            user_channel.announce_balance, dispatch_uid="chat.streaming.user_channel"
        )
