"""Usage records, one per provider call, their sums by day, and spending limits."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy

from billing import credits
from billing.models.accounts import Account, Hold
from billing.models.base import CreditsField, at_least, known
from billing.models.prices import ModelPrice


class Purpose(models.TextChoices):
    CHAT = "chat"
    TITLE = "title"
    TOOL = "tool"
    EMBED = "embed"
    INSIGHT = "insight"


class UsageRecord(models.Model):
    """Tokens and cost of one step of one attempt of a run; never changed.

    The cost is split into `charged` (paid by the user), `shortfall` (could not be collected) and
    `absorbed` (paid by the operator on purpose: titles, lost attempts, empty replies, server errors,
    free users).
    """

    class Source(models.TextChoices):
        PROVIDER = "provider"
        COUNTED = "counted"

    class Finish(models.TextChoices):
        COMPLETE = "complete"
        STOPPED = "stopped"
        FAILED = "failed"
        CRASHED = "crashed"  # its worker was lost
        EMPTY = "empty"  # it ended without a word

    run_id = models.UUIDField()
    attempt = models.PositiveSmallIntegerField()
    step = models.PositiveSmallIntegerField(default=0)
    purpose = models.CharField(max_length=7, choices=Purpose, default=Purpose.CHAT)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        related_name="+",
        db_index=False,  # usage_of_user begins with it
    )
    hold = models.ForeignKey(
        Hold, null=True, blank=True, on_delete=models.PROTECT, related_name="usage"
    )
    price = models.ForeignKey(
        ModelPrice, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    model = models.CharField(max_length=200)
    assistant = models.CharField(max_length=100, blank=True)
    conversation = models.UUIDField(null=True, blank=True)
    # No foreign key: a record outlives the key, and billing does not know accounts' tables.
    api_key = models.BigIntegerField(
        null=True, blank=True, help_text="The id of the API key that asked; empty: a chat."
    )
    input_tokens = models.PositiveBigIntegerField(default=0)
    cached_tokens = models.PositiveBigIntegerField(
        default=0, help_text=gettext_lazy("Part of the input.")
    )
    output_tokens = models.PositiveBigIntegerField(default=0)
    reasoning_tokens = models.PositiveBigIntegerField(
        default=0, help_text=gettext_lazy("Part of the output.")
    )
    source = models.CharField(max_length=8, choices=Source)
    cost = CreditsField()
    charged = CreditsField(default=0)
    shortfall = CreditsField(default=0)
    absorbed = CreditsField(default=0)
    finish = models.CharField(max_length=8, choices=Finish)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["user", "-created_at"], name="usage_of_user"),
            models.Index(fields=["created_at"], name="usage_by_time"),
            models.Index(
                fields=["conversation"],
                name="usage_of_conversation",
                condition=Q(conversation__isnull=False),
            ),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["run_id", "attempt", "step"], name="usage_once_per_step"
            ),
            models.CheckConstraint(
                condition=at_least(0, "cost", "charged", "shortfall", "absorbed")
                & Q(cost=F("charged") + F("shortfall") + F("absorbed")),
                name="usage_adds_up",
            ),
            models.CheckConstraint(
                condition=Q(cached_tokens__lte=F("input_tokens"))
                & Q(reasoning_tokens__lte=F("output_tokens")),
                name="usage_parts_within_whole",
            ),
            known("purpose", "chat title tool embed insight", "usage_purpose_known"),
        ]

    def __str__(self) -> str:
        return f"usage of run {self.run_id}"


class DailyUsage(models.Model):
    """The sums of a day's usage records, which pages and reports read for ended days."""

    day = models.DateField(help_text=gettext_lazy("By the site's time zone."))
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    model = models.CharField(max_length=200)
    assistant = models.CharField(max_length=100, blank=True)
    purpose = models.CharField(max_length=7, choices=Purpose)
    calls = models.PositiveBigIntegerField()
    input_tokens = models.PositiveBigIntegerField()
    cached_tokens = models.PositiveBigIntegerField()
    output_tokens = models.PositiveBigIntegerField()
    reasoning_tokens = models.PositiveBigIntegerField()
    cost = CreditsField()
    charged = CreditsField()
    shortfall = CreditsField()
    absorbed = CreditsField()

    class Meta:
        ordering = ["-day"]
        verbose_name_plural = "daily usage"
        indexes = [models.Index(fields=["day"], name="daily_usage_by_day")]
        constraints = [
            models.UniqueConstraint(
                fields=["user", "day", "model", "assistant", "purpose"], name="daily_usage_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.day} {self.model}"


class SpendingLimit(models.Model):
    """A maximum of spending per day, per month or per conversation.

    Set by the user, or by staff for one account or (without an account) for all; `model` restricts it
    to one model. Enforced with every hold, under the account's lock.
    """

    class Period(models.TextChoices):
        DAY = "day"
        MONTH = "month"
        CONVERSATION = "conversation"

    class SetBy(models.TextChoices):
        USER = "user"
        STAFF = "staff"

    account = models.ForeignKey(
        Account, null=True, blank=True, on_delete=models.CASCADE, related_name="limits"
    )
    set_by = models.CharField(max_length=5, choices=SetBy, default=SetBy.STAFF)
    period = models.CharField(max_length=12, choices=Period)
    model = models.CharField(
        max_length=200, blank=True, help_text="The provider's name of a model; empty: all."
    )
    amount = CreditsField(help_text=gettext_lazy("Micro-credits."))

    class Meta:
        ordering = ["account", "period"]
        constraints = [
            models.UniqueConstraint(
                fields=["account", "set_by", "period", "model"],
                name="limit_once",
                nulls_distinct=False,
            ),
            models.CheckConstraint(condition=Q(amount__gte=0), name="limit_not_negative"),
            models.CheckConstraint(
                condition=Q(account__isnull=False) | Q(set_by="staff"),
                name="limit_for_all_is_of_staff",
            ),
            known("period", "day month conversation", "limit_period_known"),
        ]

    def __str__(self) -> str:
        return f"{credits.exact(self.amount)} per {self.period}"
