"""Sharing of conversations with named readers and by public links."""

from __future__ import annotations

import secrets
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from chat.models.base import new_id
from chat.models.conversations import Conversation

TOKEN_BYTES = 24  # of randomness, in the address of a public link


class ConversationShare(models.Model):
    """Permission to read a conversation, for the user who has verified an e-mail address.

    It is bound to an account (`user`) at the verification of the address, never before.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="shares")
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+", db_index=False
    )
    email = models.EmailField(max_length=254)  # in lower case
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="+",
        db_index=False,
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["owner", "-id"], name="share_of_owner"),
            models.Index(
                fields=["user", "-id"], name="share_of_reader", condition=Q(user__isnull=False)
            ),
            models.Index(fields=["email"], name="share_unbound", condition=Q(user=None)),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["conversation", "email"], name="share_once"),
        ]

    def __str__(self) -> str:
        return f"share {self.pk}"


def new_token() -> str:
    """Return a token of TOKEN_BYTES random bytes for the address of a public link."""
    return secrets.token_urlsafe(TOKEN_BYTES)


class PublicLink(models.Model):
    """A page of a conversation for every visitor with its address.

    With `last`, a snapshot: the path to that message. Without it the page follows the conversation.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    token = models.CharField(max_length=43, unique=True, default=new_token, editable=False)
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="links")
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+", db_index=False
    )
    # No foreign key: it would cost an index, and messages are purged with their conversation.
    last = models.UUIDField(null=True, blank=True)
    title = models.CharField(max_length=100, blank=True)
    shown_name = models.CharField(max_length=50, blank=True, default="")
    shows_reasoning = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["owner", "-id"], name="link_of_owner")]

    def __str__(self) -> str:
        # Not the token, which opens the page.
        return f"link {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("chat:public", args=[self.token])

    @property
    def has_expired(self) -> bool:
        """Whether it has expired."""
        return self.expires_at is not None and self.expires_at <= timezone.now()

    @property
    def name(self) -> str:
        """The title that its page shows: a snapshot's own, or the present one."""
        return self.title if self.last else self.conversation.name
