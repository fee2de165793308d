"""Accounts, ledger entries, lots and holds. Only billing.ledger.postings writes them."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy

from billing import credits
from billing.models.base import CreditsField, at_least, known, new_id
from billing.models.prices import ModelPrice


class Account(models.Model):
    """A user's credits: one small row, the only one that concurrent payments and runs contend for.

    The credits available for spending are `balance` less `held`. `debt` is money returned to the user
    for credits already spent; while it is not zero, nothing new may be held.
    """

    class Status(models.TextChoices):
        ACTIVE = "active"
        FROZEN = "frozen"

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="account"
    )
    status = models.CharField(max_length=6, choices=Status, default=Status.ACTIVE)
    plan = models.ForeignKey(
        "billing.Plan", null=True, blank=True, on_delete=models.PROTECT, related_name="accounts"
    )
    balance = CreditsField(default=0)
    held = CreditsField(default=0)
    debt = CreditsField(default=0)
    seq = models.BigIntegerField(
        default=0, help_text=gettext_lazy("Number of its last ledger entry.")
    )
    next_expiry_at = models.DateTimeField(
        null=True, blank=True, help_text=gettext_lazy("When the first of its lots expires.")
    )
    messages_from = models.DateTimeField(
        null=True,
        blank=True,
        help_text=gettext_lazy(
            "From when messages are counted, where staff have set the month's count back."
        ),
    )
    low_told_at = models.DateTimeField(
        null=True,
        blank=True,
        help_text=gettext_lazy("When the user was told that the balance is low."),
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["id"]
        indexes = [
            models.Index(
                fields=["next_expiry_at"],
                name="account_expiring",
                condition=Q(next_expiry_at__isnull=False),
            ),
        ]
        constraints = [
            known("status", "active frozen", "account_status_known"),
            models.CheckConstraint(
                condition=Q(held__gte=0, balance__gte=F("held")), name="account_covers_its_holds"
            ),
            models.CheckConstraint(
                condition=at_least(0, "debt", "seq"), name="account_not_negative"
            ),
        ]

    def __str__(self) -> str:
        return f"account of {self.user}"

    @property
    def available(self) -> int:
        """The micro-credits that may be held or taken now."""
        return self.balance - self.held


class CreditLot(models.Model):
    """Credits granted or bought together, with their date of expiry and priority of spending."""

    class Kind(models.TextChoices):
        PAID = "paid"
        BONUS = "bonus"
        PROMO = "promo"
        GRANT = "grant"

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="lots")
    kind = models.CharField(max_length=5, choices=Kind)
    granted = CreditsField()
    remaining = CreditsField()
    priority = models.PositiveSmallIntegerField(
        default=50, help_text=gettext_lazy("0 is spent first, 100 last.")
    )
    effective_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    order = models.ForeignKey(
        "billing.Order", null=True, blank=True, on_delete=models.PROTECT, related_name="lots"
    )
    paid_minor = models.BigIntegerField(
        default=0, help_text=gettext_lazy("What was paid for it, in minor units of the currency.")
    )
    currency = models.CharField(max_length=3, blank=True)
    source_key = models.CharField(max_length=100, unique=True)

    class Meta:
        ordering = ["id"]
        indexes = [
            models.Index(
                fields=["account", "priority", "expires_at", "id"],
                name="lot_spendable",
                condition=Q(remaining__gt=0),
            ),
            models.Index(fields=["expires_at"], name="lot_expiring", condition=Q(remaining__gt=0)),
        ]
        constraints = [
            known("kind", "paid bonus promo grant", "lot_kind_known"),
            models.CheckConstraint(
                condition=Q(granted__gt=0, remaining__gte=0, remaining__lte=F("granted")),
                name="lot_remaining_in_bounds",
            ),
            models.CheckConstraint(condition=Q(priority__lte=100), name="lot_priority_in_bounds"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} lot {self.pk}"


class ExpiryNotice(models.Model):
    """A notice to the owner of a lot, `days` before it expires."""

    lot = models.ForeignKey(CreditLot, on_delete=models.PROTECT, related_name="notices")
    days = models.PositiveSmallIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["lot", "days"], name="expiry_notice_once"),
        ]

    def __str__(self) -> str:
        return f"{self.days} days before lot {self.lot_id}"


class Hold(models.Model):
    """Credits reserved before work begins, and resolved exactly once: settled or released."""

    class Status(models.TextChoices):
        ACTIVE = "active"
        SETTLED = "settled"
        RELEASED = "released"

    class Resolver(models.TextChoices):
        WORKER = "worker"
        SWEEPER = "sweeper"
        EXPIRY = "expiry"
        STAFF = "staff"
        USER = "user"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="holds")
    key = models.CharField(max_length=100, unique=True)
    amount = CreditsField()
    status = models.CharField(max_length=8, choices=Status, default=Status.ACTIVE)
    settled = CreditsField(
        null=True, blank=True, help_text=gettext_lazy("What was charged in the end.")
    )
    shortfall = CreditsField(
        default=0, help_text=gettext_lazy("What it cost beyond all that could be charged.")
    )
    price = models.ForeignKey(
        ModelPrice, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    model = models.CharField(max_length=200, blank=True)
    conversation = models.UUIDField(null=True, blank=True)
    expires_at = models.DateTimeField()
    created_at = models.DateTimeField(auto_now_add=True)
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolved_by = models.CharField(max_length=7, choices=Resolver, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["expires_at"], name="hold_expiring", condition=Q(status="active")),
            models.Index(
                fields=["account"], name="hold_of_account_active", condition=Q(status="active")
            ),
            models.Index(fields=["account", "-created_at"], name="hold_of_account"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(amount__gt=0, shortfall__gte=0), name="hold_amounts_in_bounds"
            ),
            models.CheckConstraint(
                condition=Q(status="active", settled=None, resolved_at=None, shortfall=0)
                | Q(status="settled", settled__gt=0, resolved_at__isnull=False)
                | Q(status="released", settled=0, resolved_at__isnull=False),
                name="hold_resolved_in_full",
            ),
        ]

    def __str__(self) -> str:
        return f"hold {self.key}"


class LedgerEntry(models.Model):
    """One movement of credits between a user's account and a counter-account; never changed.

    Each row names both sides, so that double entry holds row by row. The balance of a counter-account
    is the negative sum of its rows, computed for reports and never stored: it would be one hot row.
    """

    class Kind(models.TextChoices):
        PURCHASE = "purchase"
        BONUS = "bonus"
        GRANT = "grant"
        PROMO = "promo"
        ADJUST_UP = "adjust_up", "correction"
        REFUND_REVERSAL = "refund_reversal"
        DISPUTE_WON = "dispute_won"
        USAGE = "usage"
        EXPIRE = "expire", "expired"
        ADJUST_DOWN = "adjust_down", "correction"
        REFUND = "refund"
        DISPUTE = "dispute"
        DEBT_RECOVERY = "debt_recovery"

    class Counter(models.TextChoices):
        """The system's side of an entry."""

        PAYMENTS = "payments"
        GRANTS = "grants"
        PROMO = "promo"
        REVENUE = "revenue"
        BREAKAGE = "breakage"
        REFUNDS = "refunds"
        DISPUTES = "disputes"
        DEBT = "debt"
        ADJUSTMENTS = "adjustments"

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="entries")
    seq = models.BigIntegerField()
    kind = models.CharField(max_length=15, choices=Kind)
    counter_account = models.CharField(max_length=11, choices=Counter)
    amount = CreditsField()
    balance_before = CreditsField()
    balance_after = CreditsField()
    idempotency_key = models.CharField(max_length=120, unique=True)
    hold = models.OneToOneField(
        Hold, null=True, blank=True, on_delete=models.PROTECT, related_name="entry"
    )
    order = models.ForeignKey(
        "billing.Order", null=True, blank=True, on_delete=models.PROTECT, related_name="entries"
    )
    refund = models.ForeignKey(
        "billing.Refund", null=True, blank=True, on_delete=models.PROTECT, related_name="entries"
    )
    dispute = models.ForeignKey(
        "billing.Dispute", null=True, blank=True, on_delete=models.PROTECT, related_name="entries"
    )
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    note = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "ledger entries"
        indexes = [
            models.Index(fields=["account", "kind", "-seq"], name="entry_by_kind"),
            models.Index(fields=["created_at", "kind"], name="entry_by_time"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["account", "seq"], name="entry_seq_once"),
            models.CheckConstraint(
                condition=Q(balance_after=F("balance_before") + F("amount"))
                & at_least(0, "balance_before", "balance_after"),
                name="entry_adds_up",
            ),
            models.CheckConstraint(
                condition=Q(
                    kind__in=[
                        "purchase", "bonus", "grant", "promo", "adjust_up", "refund_reversal",
                        "dispute_won",
                    ],
                    amount__gt=0,
                )
                | Q(
                    kind__in=[
                        "usage", "expire", "adjust_down", "refund", "dispute", "debt_recovery",
                    ],
                    amount__lt=0,
                ),
                name="entry_sign_by_kind",
            ),
            models.CheckConstraint(condition=Q(seq__gte=1), name="entry_seq_from_one"),
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.kind} {credits.exact(self.amount)}"


class DebtEntry(models.Model):
    """One change of an account's debt, which is the sum of its debt entries; never changed."""

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="debt_entries")
    amount = CreditsField(
        help_text=gettext_lazy("Positive when credits that were taken back had been spent.")
    )
    idempotency_key = models.CharField(max_length=120, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "debt entries"
        constraints = [
            models.CheckConstraint(condition=~Q(amount=0), name="debt_entry_not_empty"),
        ]

    def __str__(self) -> str:
        return f"debt {credits.exact(self.amount)}"


class LotMove(models.Model):
    """The part of an entry that went into or out of a lot; never changed."""

    entry = models.ForeignKey(LedgerEntry, on_delete=models.PROTECT, related_name="moves")
    lot = models.ForeignKey(CreditLot, on_delete=models.PROTECT, related_name="moves")
    amount = CreditsField()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["entry", "lot"], name="move_once_per_entry_and_lot"),
            models.CheckConstraint(condition=~Q(amount=0), name="move_not_empty"),
        ]

    def __str__(self) -> str:
        return f"{credits.exact(self.amount)} of lot {self.lot_id}"
