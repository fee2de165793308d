"""Packages, orders, and the reports of payment providers about them."""

from __future__ import annotations

from django.conf import settings
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy

from billing.credits import show_money
from billing.models.accounts import Account
from billing.models.base import CreditsField, at_least, known, new_id


class CreditPackage(models.Model):
    """An amount of credits that is for sale."""

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=100)
    credits = CreditsField(help_text=gettext_lazy("Micro-credits."))
    bonus = CreditsField(
        default=0, help_text=gettext_lazy("Micro-credits on top, which are spent first.")
    )
    valid_days = models.PositiveIntegerField(
        null=True, blank=True, help_text="Days until the credits expire; empty: never."
    )
    plan = models.ForeignKey(
        "billing.Plan",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text=gettext_lazy("The buyer gets it for the days below."),
    )
    plan_days = models.PositiveIntegerField(
        "days of the plan", null=True, blank=True, validators=[MinValueValidator(1)]
    )
    popular = models.BooleanField(default=False)
    active = models.BooleanField(default=True)
    position = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering = ["position", "credits"]
        constraints = [
            models.CheckConstraint(
                condition=Q(credits__gt=0, bonus__gte=0), name="package_credits_in_bounds"
            ),
            models.CheckConstraint(
                condition=Q(plan=None, plan_days=None) | Q(plan__isnull=False, plan_days__gte=1),
                name="package_plan_has_days",
                violation_error_message=gettext_lazy(
                    "Enter a plan and its days, or neither of them."
                ),
            ),
        ]

    def __str__(self) -> str:
        return self.name


class PackagePrice(models.Model):
    """The price of a package in minor units of a currency (cents; yen have none)."""

    package = models.ForeignKey(CreditPackage, on_delete=models.CASCADE, related_name="prices")
    currency = models.CharField(max_length=3, help_text=gettext_lazy("ISO 4217, for example USD."))
    amount_minor = models.PositiveBigIntegerField(
        help_text=gettext_lazy("In minor units: 500 for USD 5.00.")
    )

    class Meta:
        ordering = ["package", "currency"]
        constraints = [
            models.UniqueConstraint(
                fields=["package", "currency"], name="package_price_once_per_currency"
            ),
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="package_price_positive"),
            models.CheckConstraint(
                condition=Q(currency__regex=r"^[A-Z]{3}$"),
                name="package_price_currency",
                violation_error_message=gettext_lazy(
                    "A currency is three capital letters, for example USD."
                ),
            ),
        ]

    def __str__(self) -> str:
        return show_money(self.amount_minor, self.currency)


class Order(models.Model):
    """A purchase of credits. billing.payments.checkout changes its status, which only moves forward."""

    class Status(models.TextChoices):
        CREATED = "created"
        PENDING = "pending"
        PAID = "paid"
        PARTIALLY_REFUNDED = "partially_refunded"
        REFUNDED = "refunded"
        CANCELED = "canceled"
        FAILED = "failed"
        REVIEW = "review"

    OPEN = (Status.CREATED, Status.PENDING)
    SETTLED = (Status.PAID, Status.PARTIALLY_REFUNDED, Status.REFUNDED)

    class Kind(models.TextChoices):
        MANUAL = "manual"
        AUTO = "auto"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="orders"
    )
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="orders")
    kind = models.CharField(max_length=6, choices=Kind, default=Kind.MANUAL)
    status = models.CharField(max_length=18, choices=Status, default=Status.CREATED)
    client_key = models.CharField(
        max_length=64,
        help_text=gettext_lazy("Named by the client, so that a double click makes one order."),
    )

    # A copy of the package as it was bought: it may change afterwards.
    package = models.ForeignKey(CreditPackage, on_delete=models.PROTECT, related_name="orders")
    package_name = models.CharField(max_length=100)
    credits = CreditsField()
    bonus = CreditsField(default=0)
    valid_days = models.PositiveIntegerField(null=True, blank=True)
    plan = models.ForeignKey(
        "billing.Plan",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        db_index=False,
    )
    plan_days = models.PositiveIntegerField(null=True, blank=True)
    plan_reclaimed_at = models.DateTimeField(
        null=True,
        blank=True,
        help_text=gettext_lazy("When the plan's days were taken back, as all the money went back."),
    )
    amount_minor = models.PositiveBigIntegerField()
    tax_minor = models.PositiveBigIntegerField(
        default=0, help_text=gettext_lazy("Part of the amount.")
    )
    currency = models.CharField(max_length=3)
    amount_refunded_minor = models.PositiveBigIntegerField(default=0)
    lost_minor = models.PositiveBigIntegerField(
        "lost",
        db_default=0,
        default=0,
        help_text=gettext_lazy(
            "Money that went back beyond the price, by refunds and disputes together."
        ),
    )

    provider = models.CharField(max_length=20)
    livemode = models.BooleanField(default=False)
    provider_order_id = models.CharField(max_length=255, null=True, blank=True)  # noqa: DJ001 # unique
    provider_payment_id = models.CharField(max_length=255, null=True, blank=True)  # noqa: DJ001 # unique
    checkout_url = models.URLField(max_length=2000, blank=True)
    receipt_url = models.URLField(max_length=2000, blank=True)
    invoice_no = models.PositiveBigIntegerField(null=True, blank=True, unique=True)
    buyer_name = models.CharField(max_length=200, blank=True, db_default="", default="")
    buyer_address = models.TextField(blank=True, db_default="", default="")
    buyer_tax_id = models.CharField(max_length=100, blank=True, db_default="", default="")
    tax_rate = models.CharField(
        max_length=100,
        blank=True,
        db_default="",
        default="",
        help_text=gettext_lazy("As printed: 19 %."),
    )
    return_to = models.CharField(
        max_length=500,
        blank=True,
        help_text=gettext_lazy("The page to go back to after the purchase."),
    )
    problem = models.CharField(
        max_length=300, blank=True, help_text=gettext_lazy("Why it failed or waits for staff.")
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)
    paid_at = models.DateTimeField(null=True, blank=True)
    asked_at = models.DateTimeField(
        null=True, blank=True, help_text=gettext_lazy("When the provider was last asked about it.")
    )

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["user", "-created_at"], name="order_of_user"),
            models.Index(
                fields=["created_at"],
                name="order_open",
                condition=Q(status__in=["created", "pending"]),
            ),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["user", "client_key"], name="order_once_per_client_key"
            ),
            models.UniqueConstraint(
                fields=["provider", "provider_order_id"], name="order_once_per_provider_order"
            ),
            models.UniqueConstraint(
                fields=["provider", "provider_payment_id"], name="order_once_per_payment"
            ),
            models.UniqueConstraint(
                fields=["user"],
                condition=Q(kind="auto", status__in=["created", "pending"]),
                name="order_one_auto_top_up",
            ),
            models.CheckConstraint(
                condition=Q(amount_minor__gt=0, amount_refunded_minor__lte=F("amount_minor"))
                & Q(tax_minor__lte=F("amount_minor"), credits__gt=0, bonus__gte=0),
                name="order_amounts_in_bounds",
            ),
            known(
                "status",
                "created pending paid partially_refunded refunded canceled failed review",
                "order_status_known",
            ),
        ]

    def __str__(self) -> str:
        return f"order {self.id}"

    @property
    def is_paid(self) -> bool:
        """Whether its credits were granted (some may have been taken back since)."""
        return self.status in self.SETTLED


class InvoiceAddress(models.Model):
    """A buyer's name and address for invoices; each new order copies it."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="invoice_address"
    )
    name = models.CharField(gettext_lazy("name or company"), max_length=200, blank=True)
    address = models.TextField(max_length=1000, blank=True)
    tax_id = models.CharField("tax number", max_length=100, blank=True)

    class Meta:
        ordering = ["id"]
        verbose_name_plural = "invoice addresses"

    def __str__(self) -> str:
        return self.name or str(self.user)


class Invoice(models.Model):
    """An invoice, a credit note, or the cancellation of one, as it was issued; never changed.

    `content` has the lines that are printed besides the amounts: seller, buyer, rows, remarks.
    """

    class Kind(models.TextChoices):
        INVOICE = "invoice"
        CREDIT_NOTE = "credit_note"
        CANCELLATION = "cancellation"

    order = models.ForeignKey(Order, on_delete=models.PROTECT, related_name="invoices")
    refund = models.ForeignKey(
        "billing.Refund", null=True, blank=True, on_delete=models.PROTECT, related_name="invoices"
    )
    kind = models.CharField(max_length=12, choices=Kind)
    position = models.PositiveIntegerField(help_text="Within the order; 0 is the invoice.")
    number = models.CharField(max_length=40, unique=True)
    issued_on = models.DateField()
    amount_minor = models.PositiveBigIntegerField()
    tax_minor = models.PositiveBigIntegerField()
    tax_rate = models.CharField(max_length=100, blank=True)
    currency = models.CharField(max_length=3)
    content = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["order", "position"]
        constraints = [
            models.UniqueConstraint(fields=["order", "position"], name="invoice_position_once"),
            models.UniqueConstraint(fields=["refund", "kind"], name="invoice_once_per_refund"),
            known("kind", "invoice credit_note cancellation", "invoice_kind_known"),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.number}"


class ProviderEvent(models.Model):
    """A webhook as received: it is stored, then acknowledged, and processed by a job.

    `event_id` is unique per provider. Razorpay signs only the body, so a body that is replayed under
    another id must be recognized by `body_sha256`; for Stripe the hash stays empty.
    """

    class Status(models.TextChoices):
        RECEIVED = "received"
        PROCESSED = "processed"
        IGNORED = "ignored"
        FAILED = "failed"
        REVIEW = "review"

    UNDONE = (Status.RECEIVED, Status.FAILED)

    provider = models.CharField(max_length=20)
    event_id = models.CharField(max_length=255)
    event_type = models.CharField(max_length=100)
    livemode = models.BooleanField(default=False)
    body = models.BinaryField()
    body_sha256 = models.CharField(max_length=64, null=True, blank=True)  # noqa: DJ001 # unique
    headers = models.JSONField(
        default=dict, help_text=gettext_lazy("Those of the signature and the event's id.")
    )
    about = models.JSONField(
        default=dict,
        help_text=gettext_lazy(
            "Which order it seems to be about: our id, the provider's, the payment's."
        ),
    )
    status = models.CharField(max_length=9, choices=Status, default=Status.RECEIVED)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField(null=True, blank=True)
    error = models.TextField(blank=True)
    order = models.ForeignKey(
        Order, null=True, blank=True, on_delete=models.PROTECT, related_name="events"
    )
    received_at = models.DateTimeField(auto_now_add=True)
    processed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["next_attempt_at"],
                name="event_undone",
                condition=Q(status__in=["received", "failed"]),
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["provider", "event_id"], name="event_once"),
            models.UniqueConstraint(fields=["provider", "body_sha256"], name="event_body_once"),
            known(
                "status",
                "received processed ignored failed review",
                "event_status_known",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.provider} {self.event_type} {self.event_id}"


class Refund(models.Model):
    """A refund to the buyer; the credits are taken back before the money is sent.

    A refund made in the provider's dashboard is found there and stored with `initiated_by` provider.
    `credits` are the micro-credits taken from the account, `debt` those already spent.
    """

    class Status(models.TextChoices):
        REQUESTED = "requested"
        PENDING = "pending"
        SUCCEEDED = "succeeded"
        FAILED = "failed"

    OPEN = (Status.REQUESTED, Status.PENDING)

    class Initiator(models.TextChoices):
        STAFF = "staff"
        USER = "user"
        PROVIDER = "provider"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    order = models.ForeignKey(Order, on_delete=models.PROTECT, related_name="refunds")
    provider_refund_id = models.CharField(max_length=255, null=True, blank=True, unique=True)
    amount_minor = models.PositiveBigIntegerField()
    credits = CreditsField(default=0)
    debt = CreditsField(default=0)
    postings = models.PositiveIntegerField(
        default=0,
        db_default=0,
        help_text=gettext_lazy("How often credits were taken or returned for it."),
    )
    status = models.CharField(max_length=9, choices=Status, default=Status.REQUESTED)
    initiated_by = models.CharField(max_length=8, choices=Initiator)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    reason = models.CharField(max_length=300, blank=True)
    error = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_minor__gt=0) & at_least(0, "credits", "debt"),
                name="refund_amounts_in_bounds",
            ),
            known("status", "requested pending succeeded failed", "refund_status_known"),
        ]

    def __str__(self) -> str:
        return f"refund {self.id}"


class ProviderRequest(models.Model):
    """A request with an idempotency key, stored before it is sent (billing.payments.providers).

    Key and parameters never change. `closed_at` is the time of a definite error: the next request
    for the same subject has another key.
    """

    provider = models.CharField(max_length=20)
    subject = models.CharField(
        max_length=60, help_text=gettext_lazy("What it asks for: `refund:` and an id.")
    )
    number = models.PositiveIntegerField(help_text=gettext_lazy("Counts the keys of a subject."))
    params = models.TextField(
        help_text=gettext_lazy(
            "JSON as text: jsonb would forget the order, and bodies are compared."
        )
    )
    created_at = models.DateTimeField(auto_now_add=True)
    closed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["provider", "subject", "number"], name="provider_request_number_once"
            ),
            models.UniqueConstraint(
                fields=["provider", "subject"],
                condition=Q(closed_at=None),
                name="provider_request_one_open",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.provider} {self.key}"

    @property
    def key(self) -> str:
        """The idempotency key, as it is sent."""
        return self.subject if self.number == 1 else f"{self.subject}:{self.number}"


class Dispute(models.Model):
    """A charge that the buyer's bank took back: its credits are taken and the account is frozen."""

    class Status(models.TextChoices):
        OPEN = "open"
        WON = "won"
        LOST = "lost"

    provider = models.CharField(max_length=20)
    provider_dispute_id = models.CharField(max_length=255)
    order = models.ForeignKey(Order, on_delete=models.PROTECT, related_name="disputes")
    amount_minor = models.PositiveBigIntegerField()
    status = models.CharField(max_length=4, choices=Status, default=Status.OPEN)
    funds_withdrawn = models.BooleanField(default=False)
    credits = CreditsField(default=0, help_text=gettext_lazy("Taken from the account."))
    debt = CreditsField(default=0, help_text=gettext_lazy("What could not be taken."))
    postings = models.PositiveIntegerField(
        default=0,
        db_default=0,
        help_text=gettext_lazy("How often credits were taken or returned for it."),
    )
    returned = models.BooleanField(
        default=False, help_text=gettext_lazy("The credits were given back.")
    )
    froze = models.BooleanField(
        default=False, help_text=gettext_lazy("The account is frozen because of it.")
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["provider", "provider_dispute_id"], name="dispute_once"
            ),
            models.CheckConstraint(
                condition=at_least(0, "credits", "debt"), name="dispute_amounts_in_bounds"
            ),
            known("status", "open won lost", "dispute_status_known"),
        ]

    def __str__(self) -> str:
        return f"dispute {self.provider_dispute_id}"


class AutoTopUp(models.Model):
    """An automatic purchase of a package when the balance falls below a threshold; off by default.

    The monthly cap is a guarantee: the claim of a charge adds to `charged_this_month_minor` before
    the provider is called, and the claim stays if the charge fails.
    """

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="auto_top_up"
    )
    enabled = models.BooleanField(default=False)
    threshold = CreditsField(help_text=gettext_lazy("Micro-credits."))
    package = models.ForeignKey(CreditPackage, on_delete=models.PROTECT, related_name="+")
    currency = models.CharField(max_length=3)
    monthly_cap_minor = models.PositiveBigIntegerField()
    month = models.DateField(
        null=True, blank=True, help_text=gettext_lazy("First day of the counted month.")
    )
    charged_this_month_minor = models.PositiveBigIntegerField(default=0)
    cooldown_until = models.DateTimeField(null=True, blank=True)
    failures = models.PositiveSmallIntegerField(default=0)
    last_failure = models.CharField(max_length=300, blank=True)
    provider = models.CharField(max_length=20, blank=True)
    customer_ref = models.CharField(max_length=255, blank=True)
    payment_method_ref = models.CharField(max_length=255, blank=True)
    consented_at = models.DateTimeField(null=True, blank=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(charged_this_month_minor__lte=F("monthly_cap_minor"), threshold__gte=0),
                name="top_up_within_cap",
            ),
        ]

    def __str__(self) -> str:
        return f"auto top-up of {self.user}"


class SandboxPayment(models.Model):
    """An order's payment at the bank of the sandbox provider. For development only."""

    class Status(models.TextChoices):
        OPEN = "open"
        PAID = "paid"
        FAILED = "failed"
        CLOSED = "closed"

    id = models.CharField(primary_key=True, max_length=40)
    order_id = models.UUIDField()
    user_id = models.BigIntegerField()
    amount_minor = models.PositiveBigIntegerField()
    currency = models.CharField(max_length=3)
    return_url = models.CharField(
        max_length=2000, help_text=gettext_lazy("Where the buyer goes afterwards.")
    )
    cancel_url = models.CharField(
        max_length=2000, help_text=gettext_lazy("Where the buyer goes without paying.")
    )
    status = models.CharField(max_length=6, choices=Status, default=Status.OPEN)
    pay_at = models.DateTimeField(
        null=True, blank=True, help_text=gettext_lazy("When a late payment arrives.")
    )
    payment_id = models.CharField(max_length=40, null=True, blank=True, unique=True)
    refunded_minor = models.PositiveBigIntegerField(default=0)
    refunds = models.JSONField(default=list)
    disputes = models.JSONField(default=list)
    idempotency_key = models.CharField(max_length=100, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.id
