from __future__ import annotations

from typing import Any, ClassVar

from django.conf import settings
from django.contrib.auth.models import AbstractUser, BaseUserManager
from django.db import models
from django.db.models.functions import Lower

from billing.ledger import postings
from chatproject.lib.db import after_commit


class UserManager(BaseUserManager["User"]):
    """Makes users by e-mail address; addresses are kept in lower case."""

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Make a user; without a password nobody can sign in as them until it is reset."""
        if not email:
            raise ValueError("A user needs an e-mail address.")
        user = self.model(email=email.lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Make a member of staff who may do everything."""
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)

    def get_by_natural_key(self, username: str | None) -> User:
        """The user of an address, in whatever case it was typed."""
        return self.get(email=(username or "").lower())


class User(AbstractUser):
    """Somebody with an account. Signs in with the e-mail address; there are no user names."""

    username = None  # type: ignore[assignment] # taken out of Django's base
    email = models.EmailField("e-mail address", unique=True)

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects: ClassVar[UserManager] = UserManager()  # type: ignore[assignment] # by e-mail, not by name

    class Meta:
        constraints = [
            models.UniqueConstraint(Lower("email"), name="user_email_any_case"),
        ]

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the user; a new one gets an account with the sign-up credits.

        If that fails the user is there nevertheless: whoever needs the account next opens it.
        """
        is_new = self._state.adding
        super().save(*args, **kwargs)
        if is_new and settings.BILLING:
            after_commit(postings.account_of, self.pk)

    def __str__(self) -> str:
        return self.email
