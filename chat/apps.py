from __future__ import annotations

from django.apps import AppConfig


class ChatConfig(AppConfig):
    name = "chat"

    def ready(self) -> None:
        from allauth.account.models import EmailAddress
        from django.db.models.signals import post_save

        from accounts.signals import (
            access_changed,
            account_claimed,
            key_revoked,
            session_renewed,
        )
        from billing.signals import balance_changed, balance_low
        from chat.attachments import sweep  # noqa: F401 # receives the deletion of attachments
        from chat.conversations import sharing
        from chat.privacy import registry
        from chat.push import devices
        from chat.runs import stop, webhook_events
        from chat.streaming import user_channel
        from chat.webhooks import editing

        registry.register()
        access_changed.connect(
            user_channel.announce_access, dispatch_uid="chat.streaming.user_channel"
        )
        access_changed.connect(
            sharing.owner_changed, dispatch_uid="chat.conversations.sharing.owner"
        )
        post_save.connect(
            sharing.email_saved, sender=EmailAddress, dispatch_uid="chat.conversations.sharing"
        )
        account_claimed.connect(editing.delete_all, dispatch_uid="chat.webhooks.editing")
        key_revoked.connect(stop.stop_calls_of, dispatch_uid="chat.runs.stop")
        session_renewed.connect(devices.session_renewed, dispatch_uid="chat.push.devices")
        balance_low.connect(webhook_events.credits_low, dispatch_uid="chat.runs.webhook_events")
        balance_changed.connect(
            user_channel.announce_balance, dispatch_uid="chat.streaming.user_channel"
        )
