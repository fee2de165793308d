"""Plans, and the memberships of accounts. Only billing.ledger.plans writes memberships."""

from __future__ import annotations

from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing.models.base import CreditsField, at_least, known

SITES = gettext_lazy("Empty: the limit of the site.")


def limit_field(name: Any, help_text: Any = SITES) -> Any:
    """Return the column of a limit, a positive number; empty is the installation's setting."""
    return models.PositiveIntegerField(
        name, null=True, blank=True, validators=[MinValueValidator(1)], help_text=help_text
    )


class Plan(models.Model):
    """A plan: the monthly credits, the group and the limits of its members."""

    LIMITS: ClassVar[tuple[str, ...]] = (
        "messages_per_minute",
        "parallel_runs",
        "upload_mb",
        "uploads_per_hour",
        "api_requests_per_minute",
        "shares_per_hour",
    )

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=100)
    monthly_credits = CreditsField(
        default=0, help_text="Micro-credits granted each month; they expire at its end."
    )
    monthly_messages = models.PositiveIntegerField(
        null=True, blank=True, help_text="Messages per month; empty: as many as the credits allow."
    )
    is_default = models.BooleanField(
        default=False, help_text=gettext_lazy("For accounts that have no plan.")
    )
    group = models.ForeignKey(
        "auth.Group",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text=gettext_lazy(
            "Members of the plan are in it: it opens models and assistants. It may have no permissions."
        ),
    )
    messages_per_minute = limit_field(gettext_lazy("messages per minute"))
    parallel_runs = limit_field(
        gettext_lazy("parallel runs"),
        gettext_lazy("Replies that are made at the same time. Empty: the limit of the site."),
    )
    upload_mb = limit_field(gettext_lazy("space for files, in MB"))
    uploads_per_hour = limit_field(gettext_lazy("uploads per hour"))
    api_requests_per_minute = limit_field(
        gettext_lazy("API requests per minute"),
        gettext_lazy("By each API key. Empty: the limit of the site."),
    )
    shares_per_hour = limit_field(gettext_lazy("shares per hour"))
    position = models.PositiveSmallIntegerField(
        default=0, db_default=0, help_text=gettext_lazy("Plans are listed by it, then by name.")
    )
    is_shown = models.BooleanField(
        gettext_lazy("shown to users"),
        default=True,
        db_default=True,
        help_text=gettext_lazy("Listed on the page about plans. Its members see it in any case."),
    )

    class Meta:
        ordering = ["position", "name"]
        constraints = [
            models.CheckConstraint(
                condition=at_least(0, "monthly_credits"), name="plan_credits_not_negative"
            ),
            models.UniqueConstraint(
                fields=["is_default"], condition=Q(is_default=True), name="plan_one_default"
            ),
            models.CheckConstraint(
                condition=at_least(
                    1,
                    "messages_per_minute",
                    "parallel_runs",
                    "upload_mb",
                    "uploads_per_hour",
                    "api_requests_per_minute",
                    "shares_per_hour",
                ),
                name="plan_limits_positive",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Refuse a group with permissions, which a plan would give to staff past their superusers."""
        if self.group is not None and self.group.permissions.exists():
            raise ValidationError(
                {"group": _("This group has permissions. Choose one that has none.")}
            )


class Membership(models.Model):
    """A time in which an account has a plan: open until `ended_at`. Without one it has the default plan."""

    class Source(models.TextChoices):
        STAFF = "staff", gettext_lazy("staff")
        INVITATION = "invitation", gettext_lazy("an invitation")
        ORDER = "order", gettext_lazy("an order")
        EARLIER = "earlier", gettext_lazy("an earlier release")

    account = models.ForeignKey(
        "billing.Account", on_delete=models.PROTECT, related_name="memberships"
    )
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="memberships")
    since = models.DateTimeField(default=timezone.now)
    until = models.DateTimeField(
        null=True,
        blank=True,
        help_text=gettext_lazy("When the account goes back to the default plan; empty: never."),
    )
    ended_at = models.DateTimeField(null=True, blank=True)
    source = models.CharField(max_length=10, choices=Source)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        help_text=gettext_lazy("The member of staff who gave it."),
    )
    invitation = models.ForeignKey(
        "accounts.Invitation", null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    order = models.OneToOneField(
        "billing.Order", null=True, blank=True, on_delete=models.PROTECT, related_name="membership"
    )
    reason = models.CharField(max_length=300, blank=True)

    class Meta:
        ordering = ["-id"]
        default_permissions = ["view"]
        indexes = [
            models.Index(
                fields=["until"],
                name="membership_due",
                condition=Q(ended_at=None, until__isnull=False),
            )
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["account"], condition=Q(ended_at=None), name="membership_one_open"
            ),
            known("source", "staff invitation order earlier", "membership_source_known"),
        ]

    def __str__(self) -> str:
        return f"{self.account_id}: {self.plan_id}"


class PlanGroup(models.Model):
    """The group that a user is in because of the plan, and was not in before."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, primary_key=True, related_name="+"
    )
    group = models.ForeignKey("auth.Group", on_delete=models.CASCADE, related_name="+")

    class Meta:
        verbose_name = gettext_lazy("group by plan")
        verbose_name_plural = gettext_lazy("groups by plan")
        default_permissions = ["view"]

    def __str__(self) -> str:
        return f"group {self.group_id} of user {self.user_id}"
