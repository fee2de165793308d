from __future__ import annotations

from django.apps import AppConfig


class ChatConfig(AppConfig):
    name = "chat"

    def ready(self) -> None:
        from accounts.signals import access_changed
        from billing.signals import balance_changed
        from chat.attachments import sweep  # noqa: F401 # receives the deletion of attachments
        from chat.streaming import user_channel

        access_changed.connect(
            user_channel.announce_access, dispatch_uid="chat.streaming.user_channel"
        )
        balance_changed.connect(
            user_channel.announce_balance, dispatch_uid="chat.streaming.user_channel"
        )
