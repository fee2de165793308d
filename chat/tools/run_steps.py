"""The finished and the begun steps of runs that call tools."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy

from chat.models import Run


class RunStep(models.Model):
    """A step of an active run: a request of its model that asked for tools, or a call of a tool.

    A lost worker's next attempt goes on after the last finished step. When the run ends, its calls become parts
    of the reply and usage records, and the rows are deleted.
    """

    class Kind(models.TextChoices):
        REQUEST = "request"
        CALL = "call"

    class Status(models.TextChoices):
        RUNNING = "running"
        WAITING = "waiting"  # for the user's approval
        ALLOWED = "allowed"  # by the user; not begun
        REFUSED = "refused"  # by the user
        EXPIRED = "expired"  # its user did not answer in time
        DONE = "done"
        FAILED = "failed"

    PENDING = (Status.RUNNING, Status.WAITING, Status.ALLOWED)

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="run_steps")
    number = models.PositiveSmallIntegerField(
        help_text=gettext_lazy("Its place in the run, from 1.")
    )
    request = models.PositiveSmallIntegerField(
        help_text=gettext_lazy(
            "The number of the request that a call belongs to; 0: Parley made it itself."
        )
    )
    attempt = models.PositiveSmallIntegerField()
    kind = models.CharField(max_length=7, choices=Kind)
    status = models.CharField(max_length=7, choices=Status)

    # Of a request: its output and usage.
    text = models.TextField(blank=True)
    reasoning = models.TextField(blank=True)
    model = models.CharField(max_length=200, blank=True)
    prompt_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    reasoning_tokens = models.PositiveIntegerField(default=0)
    usage_estimated = models.BooleanField(default=False)

    # Of a call. `call` is the provider's id; `at` the characters of the reply's text before it.
    call = models.CharField(max_length=100, blank=True)
    name = models.CharField(max_length=100, blank=True)
    title = models.CharField(max_length=200, blank=True)
    arguments = models.TextField(blank=True)
    at = models.PositiveIntegerField(default=0)
    has_effect = models.BooleanField(default=False)
    result = models.TextField(blank=True)
    summary = models.CharField(max_length=300, blank=True)
    parts = models.JSONField(default=list)
    untrusted = models.BooleanField(default=False)
    fee = models.PositiveBigIntegerField(default=0, help_text=gettext_lazy("In micro-credits."))
    seconds = models.FloatField(null=True)
    begun_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["number"]
        constraints = [
            models.UniqueConstraint(fields=["run", "number"], name="step_number_once"),
        ]

    def __str__(self) -> str:
        return f"step {self.number} of {self.run_id}"
