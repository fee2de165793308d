"""Browsers that receive notifications."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy


class PushSubscription(models.Model):
    """A browser of a user, at the push service that it has chosen (chat/push/).

    It belongs to the session in which it was made: when that ends, nothing is sent any more.
    """

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="push_subscriptions"
    )
    session_key = models.CharField(max_length=40, db_index=True)
    endpoint = models.CharField(max_length=1_000, unique=True)
    p256dh = models.CharField(
        max_length=100, help_text=gettext_lazy("The browser's public key, base64url.")
    )
    auth = models.CharField(
        max_length=40, help_text=gettext_lazy("The browser's secret, base64url.")
    )
    server_key = models.CharField(
        max_length=100, help_text=gettext_lazy("This site's public key, base64url.")
    )
    device = models.CharField(
        max_length=60, help_text=gettext_lazy("Its name in the list of the user.")
    )
    shows_title = models.BooleanField(
        default=False,
        help_text=gettext_lazy("Whether notifications contain the title of the chat."),
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.device
