"""The prompt library: texts to begin messages with, of users and of the staff."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from chat.models.base import new_id


class Prompt(models.Model):
    """A text with a title, and with variables as `{{name}}`; without an owner it is the staff's, for all users."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="prompts",
    )
    title = models.CharField(_("title"), max_length=80)
    text = models.TextField(
        _("text"), help_text=_("{{name}} is a variable: it is asked for when the prompt is used.")
    )
    shared = models.BooleanField(_("shared"), default=False, db_index=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = _("prompt")
        verbose_name_plural = _("prompts")
        ordering = ["title", "id"]

    def __str__(self) -> str:
        # The title of a user's prompt is private.
        return self.title if self.owner_id is None else f"prompt {self.pk}"

    @property
    def has_variables(self) -> bool:
        """Whether it may have variables."""
        return "{{" in self.text
