"""The user model: people sign in with their e-mail address."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from django.apps import apps
from django.conf import settings
from django.contrib.auth.hashers import check_password, make_password
from django.contrib.auth.models import AbstractUser, BaseUserManager
from django.db import models, transaction
from django.db.models.functions import Lower
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.ledger import signup
from chatproject.lib.db import after_commit


class UserManager(BaseUserManager["User"]):
    """Makes users by e-mail address; addresses are stored in lower case."""

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Make a user; one without a password cannot sign in until it is reset."""
        if not email:
            raise ValueError("A user needs an e-mail address.")
        user = self.model(email=email.lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Make a member of staff with all permissions, a confirmed address, and the sign-up credits.

        Confirmed, since with VERIFY_EMAIL=1 and mail that does not work no staff could sign in to repair it.
        """
        with transaction.atomic():
            user = self.create_user(email, password, is_staff=True, is_superuser=True, **fields)
            SignupGrant.objects.create(user=user)
            addresses = apps.get_model("account", "EmailAddress").objects
            addresses.create(user=user, email=user.email, verified=True, primary=True)
        return user

    def get_by_natural_key(self, username: str | None) -> User:
        """Return the user of an address, in any case."""
        return self.get(email=(username or "").lower())


class Theme(models.TextChoices):
    """The colours of the pages; SYSTEM follows the device."""

    SYSTEM = "system", _("System")
    LIGHT = "light", _("Light")
    DARK = "dark", _("Dark")


class TextSize(models.TextChoices):
    """The size of all text of the pages."""

    SMALL = "small", _("Small")
    MEDIUM = "medium", _("Medium")
    LARGE = "large", _("Large")


class User(AbstractUser):
    """A user. The e-mail address is used to sign in; there are no user names."""

    username = None  # type: ignore[assignment] # taken out of Django's base
    email = models.EmailField("e-mail address", unique=True)
    # By which other people see the user, beside the address: `signature`.
    display_name = models.CharField(max_length=60, blank=True, default="", db_default="")
    # Settings of the user's own, on all devices: accounts/appearance.py.
    theme = models.CharField(
        max_length=10, choices=Theme, default=Theme.SYSTEM, db_default=Theme.SYSTEM.value
    )
    text_size = models.CharField(
        max_length=10, choices=TextSize, default=TextSize.MEDIUM, db_default=TextSize.MEDIUM.value
    )
    # A code of LANGUAGES: accounts/language.py. Empty until the first sign-in: the browser's.
    language = models.CharField(max_length=10, blank=True, default="", db_default="")
    # Shortcuts of a single key can disturb dictation (WCAG 2.2, 2.1.4), so a user can switch them off.
    single_keys = models.BooleanField(default=True, db_default=True)
    # Signed up and not yet approved by staff; such a user is not active. accounts/joining.py.
    awaits_approval = models.BooleanField(default=False, db_default=False, editable=False)
    # The publication of the newest documents that the user has agreed to: accounts/consent.py.
    consented_at = models.DateTimeField(null=True, editable=False)
    # Where the password was hashed anew: its session hash before and after, with a colon between them.
    rehashed = models.CharField(
        max_length=140, blank=True, default="", db_default="", editable=False
    )
    # Whether the page of a new chat no longer shows the hints of the first minute.
    hints_hidden = models.BooleanField(default=False, db_default=False)
    # A copy of the account's plan, for limits (billing.metering.plan_limits): a trigger keeps it equal.
    plan = models.ForeignKey(
        "billing.Plan",
        null=True,
        editable=False,
        on_delete=models.PROTECT,
        related_name="+",
        db_index=False,
    )
    # Days without a message after which the user's chats are deleted; empty: by RETENTION_DAYS alone.
    retention_days = models.PositiveIntegerField(null=True, blank=True)

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects: ClassVar[UserManager] = UserManager()  # type: ignore[assignment] # by e-mail, not by name

    class Meta:
        constraints = [
            models.UniqueConstraint(
                Lower("email"),
                name="user_email_any_case",
                violation_error_message=_("There is already a user with this e-mail address."),
            )
        ]
        permissions = [
            ("approve_user", _("Can approve a user, with the sign-up credits")),
            ("link_user", _("Can create links that set a user's password")),
            ("reset_factors", _("Can remove the second factors of a user who lost them")),
            ("view_status", _("Can view the system status")),
        ]

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the user; a new one gets an account.

        If opening the account fails the user still exists: the next code that needs it opens it.
        """
        is_new = self._state.adding
        super().save(*args, **kwargs)
        if is_new and settings.BILLING:
            after_commit(signup.account_of, self.pk)

    def check_password(self, raw_password: str | None) -> bool:
        """Return whether a password is the user's; one with an older kind of hash is hashed anew.

        Django ends all sessions of a user whose password hash is another. Sessions of the same password go on.
        """

        def rehash(raw: str | None) -> None:
            former = self.get_session_auth_hash()
            self.password = make_password(raw)
            self.rehashed = f"{former}:{self.get_session_auth_hash()}"
            self.save(update_fields=["password", "rehashed"])

        return check_password(raw_password, self.password, rehash)

    def get_session_auth_fallback_hash(self) -> Iterator[str]:
        """Yield the older hashes with which sessions are still valid; after a change of the password none of it."""
        yield from super().get_session_auth_fallback_hash()
        former, _colon, present = self.rehashed.partition(":")
        if former and present == self.get_session_auth_hash():
            yield former

    @property
    def signature(self) -> str:
        """The display name with the address, so that nobody passes for another; without a name, the address."""
        return f"{self.display_name} ({self.email})" if self.display_name else self.email

    def __str__(self) -> str:
        return self.email


class AccountDeletion(models.Model):
    """The deletion of an account, from its request on; accounts.privacy requests, undoes and completes it.

    The user is not active meanwhile. After the purge the row says when it was.
    """

    user = models.OneToOneField(
        User, on_delete=models.CASCADE, primary_key=True, related_name="deletion"
    )
    by = models.ForeignKey(
        User,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        help_text=_("The member of staff who deleted it; empty: its owner."),
    )
    requested_at = models.DateTimeField(default=timezone.now)
    due_at = models.DateTimeField(help_text=_("When the purge begins."))
    reminded_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(
        null=True, blank=True, help_text=_("When the purge began; then nothing can be restored.")
    )
    claimed_until = models.DateTimeField(
        null=True, blank=True, help_text=_("Until when a job works on the purge.")
    )
    purged_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-requested_at"]
        default_permissions = ["view"]
        indexes = [
            models.Index(
                fields=["due_at"], name="deletion_open", condition=models.Q(purged_at=None)
            )
        ]

    def __str__(self) -> str:
        return f"deletion of user {self.user_id}"


class SignupGrant(models.Model):
    """A user's right to the sign-up credits: for a verified address, or by staff.

    The hash of the address outlives the address, so that an address gives them to one user only.
    """

    user = models.OneToOneField(User, on_delete=models.CASCADE, primary_key=True)
    address_hash = models.CharField(max_length=64, unique=True, null=True)  # noqa: DJ001 # by staff: none
    created_at = models.DateTimeField(default=timezone.now)
    granted_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("right to sign-up credits")
        verbose_name_plural = _("rights to sign-up credits")
        default_permissions = ["view"]
        indexes = [
            models.Index(
                fields=["created_at"],
                name="signup_grant_waits",
                condition=models.Q(granted_at=None),
            )
        ]

    def __str__(self) -> str:
        return f"sign-up credits of user {self.pk}"


class Invitation(models.Model):
    """A link for signing up, with a plan and a group; only the SHA-256 of its token is stored.

    accounts.invitations creates and uses them. A row of an uploaded list has no token until its mail is made.
    """

    hash = models.CharField(max_length=64, unique=True, null=True, editable=False)  # noqa: DJ001 # mail due
    email = models.EmailField(
        blank=True, verbose_name=_("address"), help_text=_("Empty: for any address.")
    )
    max_uses = models.PositiveIntegerField(default=1, verbose_name=_("number of uses"))
    uses = models.PositiveIntegerField(default=0, editable=False)
    expires_at = models.DateTimeField()
    group = models.ForeignKey(
        "auth.Group", null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    plan = models.ForeignKey(
        "billing.Plan", null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    plan_days = models.PositiveIntegerField(
        null=True, blank=True, verbose_name=_("days of the plan"), help_text=_("Empty: no end.")
    )
    note = models.CharField(max_length=100, blank=True, help_text=_("For staff."))
    created_by = models.ForeignKey(
        User, null=True, on_delete=models.SET_NULL, related_name="+", editable=False
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    # Of an uploaded list: sent to the address alone, so that its use confirms the address.
    is_mailed = models.BooleanField(default=False, editable=False)
    mailed_at = models.DateTimeField(null=True, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ["-pk"]
        default_permissions = ["add", "change", "view"]
        indexes = [
            models.Index(
                fields=["id"],
                name="invitation_mail_due",
                condition=models.Q(is_mailed=True, mailed_at=None, revoked_at=None),
            ),
            models.Index(
                fields=["email"], name="invitation_by_email", condition=~models.Q(email="")
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(uses__lte=models.F("max_uses")), name="invitation_uses_in_bounds"
            ),
        ]

    def __str__(self) -> str:
        return self.email or self.note or f"invitation {self.pk}"


class InvitationUse(models.Model):
    """A user has signed up with an invitation; the plan is applied after the commit."""

    user = models.OneToOneField(User, on_delete=models.CASCADE, primary_key=True)
    invitation = models.ForeignKey(Invitation, on_delete=models.PROTECT, related_name="used_by")
    used_at = models.DateTimeField(default=timezone.now)
    applied_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-used_at"]
        default_permissions = ["view"]
        indexes = [
            models.Index(
                fields=["used_at"],
                name="invitation_use_waits",
                condition=models.Q(applied_at=None),
            )
        ]

    def __str__(self) -> str:
        return f"{self.invitation} by {self.user}"


class Scope(models.TextChoices):
    """The kinds of requests that an API key permits."""

    MODELS = "models", _("Call models (the OpenAI-compatible API)")
    READ = "read", _("Read chats, runs and search")
    WRITE = "write", _("Send messages and change chats")
    USAGE = "usage", _("Read balance, usage and history")
    DOCUMENTS = "documents", _("Upload, read and delete documents, and ask about them")
    WEBHOOKS = "webhooks", _("Create and change webhooks, and read their messages")


def all_scopes() -> list[str]:
    """Return the scopes of an API key that names none: a key has `webhooks` only if it was named."""
    return [scope for scope in Scope.values if scope != Scope.WEBHOOKS]


class ApiKey(models.Model):
    """A key by which a program acts for a user; the key itself is not stored, only its SHA-256.

    accounts.api_keys creates, checks and revokes keys. Amounts are micro-credits.
    """

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=60)
    prefix = models.CharField(max_length=20, help_text=_("The first characters, to recognise it."))
    hash = models.CharField(max_length=64, unique=True, editable=False)
    scopes = models.JSONField(default=all_scopes)
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField(null=True, blank=True, help_text=_("Empty: never."))
    last_used_at = models.DateTimeField(null=True, blank=True, help_text=_("To the minute."))
    revoked_at = models.DateTimeField(null=True, blank=True)
    rate = models.PositiveIntegerField(
        null=True, blank=True, help_text="Requests per minute; empty: the site's limit alone."
    )
    limit_total = models.PositiveBigIntegerField(
        null=True,
        blank=True,
        help_text="Micro-credits that it may spend in all; empty: no limit.",
    )
    limit_month = models.PositiveBigIntegerField(
        null=True,
        blank=True,
        help_text="Micro-credits that it may spend in a month; empty: no limit.",
    )
    # Written by the transaction that charges a call, under the lock of the user's account.
    spent = models.PositiveBigIntegerField(default=0, db_default=0)
    spent_in_month = models.PositiveBigIntegerField(default=0, db_default=0)
    month = models.DateField(null=True, blank=True, help_text=_("The month of spent_in_month."))

    class Meta:
        ordering = ["-pk"]
        verbose_name = _("API key")
        verbose_name_plural = _("API keys")
        default_permissions = ["view", "change"]

    def __str__(self) -> str:
        return f"{self.prefix}…"


def language_choices() -> list[tuple[str, str]]:
    """Return the languages of this site; a function, so that another one needs no migration."""
    return list(settings.LANGUAGES)


class LegalDocument(models.Model):
    """A version of the terms, the privacy notice or the imprint, in one language.

    accounts.consent finds the newest ones. A published row is never changed: users may have agreed to it.
    """

    class Kind(models.TextChoices):
        TERMS = "terms", _("Terms of use")
        PRIVACY = "privacy", _("Privacy")
        IMPRINT = "imprint", _("Imprint")

    kind = models.CharField(max_length=7, choices=Kind)
    language = models.CharField(max_length=10, choices=language_choices)
    version = models.PositiveIntegerField(
        blank=True,
        help_text=_(
            "Empty: the next one, or the newest one if it is not written in this language yet."
        ),
    )
    text = models.TextField(max_length=200_000, help_text=_("Markdown."))
    html = models.TextField(editable=False, help_text=_("The text as rendered and sanitised."))
    changes = models.CharField(
        max_length=500,
        blank=True,
        help_text=_("What is new, in one or two sentences: shown where users are asked to agree."),
    )
    needs_consent = models.BooleanField(
        default=False,
        help_text=_(
            "All users are asked to agree to this version. Leave it off for corrections and translations."
        ),
    )
    published_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ["kind", "-version", "language"]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "language", "version"],
                name="legal_document_once",
                violation_error_message=_("This version exists in this language."),
            ),
            models.CheckConstraint(
                condition=~models.Q(kind="imprint", needs_consent=True),
                name="legal_document_imprint_without_consent",
                violation_error_message=_("Users cannot agree to an imprint."),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}, version {self.version} ({self.language})"


class Consent(models.Model):
    """A user has agreed to a version of a document; `document` is the text that was shown."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="consents")
    kind = models.CharField(max_length=7, choices=LegalDocument.Kind)
    version = models.PositiveIntegerField()
    document = models.ForeignKey(LegalDocument, on_delete=models.PROTECT, related_name="+")
    agreed_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-agreed_at", "-pk"]
        default_permissions = ["view"]
        constraints = [
            models.UniqueConstraint(fields=["user", "kind", "version"], name="consent_once")
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}, version {self.version}"
