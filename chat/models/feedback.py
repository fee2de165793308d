"""Feedback of users on replies."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from chat.models.catalogue import LanguageModel
from chat.models.messages import Message

TEXT_LENGTH = 2_000


class MessageFeedback(models.Model):
    """The opinion of a user about a reply: good or bad, with a reason and a text."""

    class Rating(models.TextChoices):
        GOOD = "good", _("Good")
        BAD = "bad", _("Bad")

    class Reason(models.TextChoices):
        """Reason of a bad rating."""

        WRONG = "wrong", _("It is not correct")
        INSTRUCTIONS = "instructions", _("It did not follow my instructions")
        INCOMPLETE = "incomplete", _("It is incomplete")
        STYLE = "style", _("Its style or length is not right")
        REFUSED = "refused", _("It should have answered")
        OTHER = "other", _("Something else")

    message = models.ForeignKey(Message, on_delete=models.CASCADE, related_name="feedback")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    # Of its own, so that the list of staff needs neither the message nor its run.
    model = models.ForeignKey(
        LanguageModel,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        help_text="The model that wrote the reply; empty for an imported one.",
    )
    rating = models.CharField(max_length=4, choices=Rating)
    reason = models.CharField(max_length=12, choices=Reason, blank=True)
    text = models.TextField(blank=True, max_length=TEXT_LENGTH)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True, db_index=True)

    class Meta:
        ordering = ["-updated_at"]
        verbose_name_plural = "message feedback"
        constraints = [
            models.UniqueConstraint(fields=["message", "user"], name="feedback_once"),
            models.CheckConstraint(
                condition=Q(rating__in=["good", "bad"]), name="feedback_rating_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.rating} feedback {self.pk}"
