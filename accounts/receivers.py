"""Receivers of Django's signals about users."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.db.models.signals import post_delete, post_save

from accounts.models import User
from accounts.signals import access_changed
from chatproject.lib.db import after_commit


def connect() -> None:
    """Connect all receivers."""
    post_save.connect(user_saved, sender=User, dispatch_uid="accounts.user_saved")
    post_delete.connect(user_deleted, sender=User, dispatch_uid="accounts.user_deleted")


def user_saved(
    *, instance: User, created: bool, update_fields: Collection[str] | None, **kwargs: Any
) -> None:
    """Send `access_changed`, unless the user is new or only the time of the sign-in is stored."""
    if not created and (update_fields is None or set(update_fields) - {"last_login"}):
        after_commit(access_changed.send, sender=User, user_id=instance.pk)


def user_deleted(*, instance: User, **kwargs: Any) -> None:
    """Send `access_changed`; Django clears the key of the instance after this call."""
    after_commit(access_changed.send, sender=User, user_id=instance.pk)
