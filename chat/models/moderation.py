"""Reports of replies to the staff, and the rules that messages are checked by."""

from __future__ import annotations

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from chat.models.catalogue import LanguageModel, Provider
from chat.models.conversations import Conversation
from chat.models.messages import Message
from chat.models.sharing import PublicLink

REPORT_LENGTH = 2_000
WORDS_LENGTH = 50_000
MOST_WORDS = 1_000


class Report(models.Model):
    """A reply, or the page of a public link, that a reader reported to the staff, with the state of their work on it."""

    class Reason(models.TextChoices):
        HARM = "harm", _("It encourages harm")
        ILLEGAL = "illegal", _("It is illegal")
        HATE = "hate", _("It is hateful or harassing")
        SEXUAL = "sexual", _("It is sexual and unwanted")
        PRIVACY = "privacy", _("It reveals personal data")
        OTHER = "other", _("Something else")

    class Status(models.TextChoices):
        OPEN = "open", _("Open")
        REVIEW = "review", _("In review")
        UPHELD = "upheld", _("Upheld")
        DISMISSED = "dismissed", _("Dismissed")

    CLOSED = (Status.UPHELD, Status.DISMISSED)

    # Empty when the message was purged: the report stays, without any text.
    message = models.ForeignKey(
        Message, null=True, blank=True, on_delete=models.SET_NULL, related_name="reports"
    )
    # Of a public link, which may end before its report is closed. The database sets both to NULL when their rows are
    # deleted, also by a process of an earlier release.
    link = models.ForeignKey(
        PublicLink,
        null=True,
        blank=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="+",
    )
    conversation = models.ForeignKey(
        Conversation,
        null=True,
        blank=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="+",
    )
    # Empty: a visitor without an account reported a public link.
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.CASCADE, related_name="+"
    )
    model = models.ForeignKey(
        LanguageModel, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    reason = models.CharField(max_length=8, choices=Reason)
    text = models.TextField(blank=True, max_length=REPORT_LENGTH)
    status = models.CharField(max_length=9, choices=Status, default=Status.OPEN)
    assignee = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        help_text=_("The member of staff who works on it."),
    )
    note = models.TextField(blank=True, max_length=REPORT_LENGTH, help_text=_("For the staff."))
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    closed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["-id"], name="report_open", condition=Q(status__in=["open", "review"])
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["message", "user"], name="report_once"),
            models.UniqueConstraint(fields=["link", "user"], name="report_of_link_once"),
            models.CheckConstraint(
                condition=Q(status__in=["open", "review", "upheld", "dismissed"]),
                name="report_status_known",
            ),
        ]

    def __str__(self) -> str:
        return f"report {self.pk}"


class ModerationRule(models.Model):
    """A rule by which messages are checked before their run: a list of words, or a provider's endpoint."""

    class Kind(models.TextChoices):
        WORDS = "words", _("List of words")
        ENDPOINT = "endpoint", _("Moderation endpoint of a provider")

    class OnFailure(models.TextChoices):
        """The fate of a message when the endpoint gives no verdict in time."""

        ALLOW = "allow", _("Send the message")
        REFUSE = "refuse", _("Refuse the message")

    name = models.CharField(
        max_length=100, unique=True, help_text=_("Users read it when a message is refused.")
    )
    is_enabled = models.BooleanField(default=True)
    kind = models.CharField(max_length=8, choices=Kind, default=Kind.WORDS)
    words = models.TextField(
        blank=True,
        max_length=WORDS_LENGTH,
        help_text=_(
            "One word or phrase a line, up to 1,000. Upper case, accents and invisible characters make no"
            " difference. A * at the end also finds longer words."
        ),
    )
    provider = models.ForeignKey(
        Provider, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    provider_model = models.CharField(
        max_length=100,
        blank=True,
        help_text=_("Its name at the provider, for example omni-moderation-latest."),
    )
    on_failure = models.CharField(max_length=6, choices=OnFailure, default=OnFailure.REFUSE)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["kind", "name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Check the fields of the rule's kind. Raises ValidationError."""
        lines = [line for line in self.words.splitlines() if line.strip()]
        if self.kind == self.Kind.WORDS:
            if not lines:
                raise ValidationError({"words": _("Enter at least one word.")})
            if len(lines) > MOST_WORDS:
                raise ValidationError({"words": _("Enter up to 1,000 words or phrases.")})
        elif self.provider is None:
            raise ValidationError({"provider": _("Choose the provider that is asked.")})
