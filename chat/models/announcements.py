"""Announcements of staff to users, and the users who have closed them."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth.models import Group
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

TEXT_LENGTH = 2_000


class Announcement(models.Model):
    """A banner on the pages of its audience, from a time on and perhaps to another one."""

    class Level(models.TextChoices):
        INFO = "info", _("Information")
        SUCCESS = "success", _("Good news")
        WARNING = "warning", _("Warning")

    class Audience(models.TextChoices):
        ALL = "all", _("All users")
        GROUPS = "groups", _("Users of the groups below")
        STAFF = "staff", _("Staff")

    text = models.TextField(max_length=TEXT_LENGTH, help_text=_("Markdown."))
    html = models.TextField(editable=False, help_text=_("The text as rendered and sanitised."))
    level = models.CharField(max_length=7, choices=Level, default=Level.INFO)
    audience = models.CharField(max_length=6, choices=Audience, default=Audience.ALL)
    groups = models.ManyToManyField(Group, blank=True, related_name="+")
    starts_at = models.DateTimeField(default=timezone.now)
    ends_at = models.DateTimeField(
        null=True, blank=True, help_text=_("Empty: until it is deleted.")
    )
    is_dismissible = models.BooleanField(
        default=True, help_text=_("Each user can close it, on all devices.")
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-starts_at", "-id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(ends_at=None) | Q(ends_at__gt=F("starts_at")),
                name="announcement_ends_after_start",
                violation_error_message=_("It must end after it starts."),
            ),
        ]

    def __str__(self) -> str:
        return " ".join(self.text.split())[:60]


class AnnouncementDismissal(models.Model):
    """A user has closed an announcement."""

    announcement = models.ForeignKey(
        Announcement, on_delete=models.CASCADE, related_name="dismissals"
    )
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["user", "announcement"], name="announcement_dismissed_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user_id} closed {self.announcement_id}"
