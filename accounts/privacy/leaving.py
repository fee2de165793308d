"""Leaving: an account is deleted ACCOUNT_DELETION_DAYS after the request, and can be restored until then.

Meanwhile its user is not active, so that pages, sockets and API keys are closed. A sign-in leads to the page that
restores the account (accounts/leaving_pages.py), unless staff deleted it. `erase.py` purges it then.
"""

from __future__ import annotations

import logging
import math
from datetime import datetime, timedelta

from django.conf import settings
from django.core.mail import send_mail
from django.db import transaction
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone

from accounts.models import AccountDeletion, User
from chatproject.lib import languages, personal_data
from chatproject.lib.batches import apart
from chatproject.lib.db import UNREACHABLE
from chatproject.lib.log_events import log_event

logger = logging.getLogger(__name__)

REMINDED_BEFORE = timedelta(days=3)  # the purge
BATCH = 100  # mails of one turn


class LastSuperuser(Exception):
    """Without this user no superuser would be left to administer the site."""


class NotRestorable(Exception):
    """The account is not being deleted, or its purge has begun."""


def request(user: User, *, by: User | None = None) -> AccountDeletion:
    """Request the deletion of an account, by its owner or by a member of staff. Raises LastSuperuser.

    A second request changes nothing, but one by staff takes the restoration away from a user who has requested the
    deletion before. Closings that fail are logged: the purge does their work as well.
    """
    with transaction.atomic():
        # All superusers are locked, or two of them could leave at the same time.
        others = User.objects.select_for_update(no_key=True).filter(
            is_superuser=True, is_active=True
        )
        superusers = set(others.order_by("pk").values_list("pk", flat=True))
        if superusers == {user.pk}:
            raise LastSuperuser
    close(user)
    now = timezone.now()
    with transaction.atomic():
        made, is_new = AccountDeletion.objects.get_or_create(
            user=user,
            defaults={"by": by, "due_at": now + timedelta(days=settings.ACCOUNT_DELETION_DAYS)},
        )
        if by is not None and not is_new:
            AccountDeletion.objects.filter(user=user, by=None).update(by=by)
        locked = User.objects.select_for_update(no_key=True).get(pk=user.pk)
        locked.is_active = False
        locked.save(update_fields=["is_active"])  # its receiver ends the sockets
        if is_new:
            _mail(user, "account/email/deletion_requested", made)
            log_event("account_deletion_requested", user_id=user.pk, by=by.pk if by else user.pk)
    return made


def close(user: User) -> None:
    """Stop what runs for a user, and end what others see or get of the account. A failure of one part is logged."""
    for one in personal_data.closings():
        try:
            one(user)
        except UNREACHABLE:
            raise
        except (
            Exception
        ):  # a fault of one part must not keep the account open; the purge ends what is left
            logger.exception("%s failed for user %d", one.__qualname__, user.pk)


def restore(user: User) -> None:
    """Undo a requested deletion. Raises NotRestorable."""
    with transaction.atomic():
        rows = AccountDeletion.objects.select_for_update()
        requested = rows.filter(user=user, started_at=None).first()
        if requested is None:
            raise NotRestorable
        requested.delete()
        locked = User.objects.select_for_update(no_key=True).get(pk=user.pk)
        locked.is_active = True
        locked.save(update_fields=["is_active"])
        _mail(user, "account/email/deletion_undone", None)
    log_event("account_restored", user_id=user.pk)


def restorable(user_id: int) -> AccountDeletion | None:
    """Return the deletion that the user may undo; None without one, if staff requested it, or once the purge began."""
    found = AccountDeletion.objects.select_related("user")
    return found.filter(user=user_id, by=None, started_at=None).first()


def days_left(deletion: AccountDeletion) -> int:
    """Return the number of days in which the account can still be restored, rounded up."""
    left = deletion.due_at - timezone.now()
    return max(0, math.ceil(left / timedelta(days=1)))


def remind(now: datetime) -> int:
    """Mail the users whose accounts are purged soon, once each; return how many. Called by the clock."""
    due = AccountDeletion.objects.filter(
        reminded_at=None, started_at=None, due_at__lte=now + REMINDED_BEFORE, due_at__gt=now
    ).filter(requested_at__lt=now - timedelta(days=1))
    sent = 0
    for one in due.select_related("user")[:BATCH]:
        with apart(f"the notice to user {one.pk}"), transaction.atomic():
            if AccountDeletion.objects.filter(pk=one.pk, reminded_at=None).update(reminded_at=now):
                _mail(one.user, "account/email/deletion_soon", one)
                sent += 1
    return sent


def _mail(user: User, template: str, deletion: AccountDeletion | None) -> None:
    page = reverse("account_login")
    with languages.use(user.language):
        context = {
            "site_name": settings.SITE_NAME,
            "link": f"{settings.SITE_URL}{page}" if settings.SITE_URL else "",
            "day": languages.day(deletion.due_at, "j F Y") if deletion else "",
            "can_restore": deletion is not None and deletion.by_id is None,
        }
        subject = render_to_string(f"{template}_subject.txt", context).strip()
        body = render_to_string(f"{template}_message.txt", context)
        send_mail(f"{settings.SITE_NAME}: {subject}", body, None, [user.email])
