"""The user model: people sign in with their e-mail address."""

from __future__ import annotations

from typing import Any, ClassVar

from django.conf import settings
from django.contrib.auth.models import AbstractUser, BaseUserManager
from django.db import models
from django.db.models.functions import Lower

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
        """Make a member of staff with all permissions."""
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)

    def get_by_natural_key(self, username: str | None) -> User:
        """Return the user of an address, in any case."""
        return self.get(email=(username or "").lower())


class User(AbstractUser):
    """A user. The e-mail address is used to sign in; there are no user names."""

    username = None  # type: ignore[assignment] # taken out of Django's base
    email = models.EmailField("e-mail address", unique=True)

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects: ClassVar[UserManager] = UserManager()  # type: ignore[assignment] # by e-mail, not by name

    class Meta:
        constraints = [models.UniqueConstraint(Lower("email"), name="user_email_any_case")]

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the user; a new one gets an account with the sign-up credits.

        If opening the account fails the user still exists: the next code that needs it opens it.
        """
        is_new = self._state.adding
        super().save(*args, **kwargs)
        if is_new and settings.BILLING:
            after_commit(signup.account_of, self.pk)

    def __str__(self) -> str:
        return self.email
