"""Public links to the statistics of chats."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy

from chat.documents.models.documents import Document
from chat.models import new_id
from chat.models.sharing import new_token


class StatisticsLink(models.Model):
    """A page with chosen figures of a chat for every visitor with its address: no texts, and no whole names."""

    class Names(models.TextChoices):
        LETTERS = "letters", gettext_lazy("Person A, Person B")
        INITIALS = "initials", gettext_lazy("Initials")
        FIRST_NAMES = "first_names", gettext_lazy("First names")

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    token = models.CharField(max_length=43, unique=True, default=new_token, editable=False)
    document = models.ForeignKey(
        Document, on_delete=models.CASCADE, related_name="statistics_links"
    )
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+", db_index=False
    )
    title = models.CharField(max_length=100, blank=True)
    names = models.CharField(max_length=11, choices=Names, default=Names.LETTERS)
    sections = models.JSONField(default=list)  # of chat.documents.figures.page
    language = models.CharField(max_length=10)  # of the card, which is drawn once
    card = models.BinaryField(null=True)  # a PNG file; empty if it could not be drawn
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["owner", "-id"], name="statistics_link_of_owner"),
            models.Index(
                fields=["created_at"], name="statistics_link_no_card", condition=Q(card=None)
            ),
        ]

    def __str__(self) -> str:
        # Not the token, which opens the page.
        return f"statistics link {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("chat:public_statistics", args=[self.token])

    @property
    def has_expired(self) -> bool:
        """Whether it has expired."""
        return self.expires_at is not None and self.expires_at <= timezone.now()
