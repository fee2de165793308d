"""The purge of accounts whose time to be restored has passed, by jobs of the `low` workers.

A job claims an account (compare-and-set on the end of the last claim) and calls the registered steps in their
order until each reports that nothing is left. Every step may be killed at any statement and called again, so
a purge needs no state but the rows that are left. Last, the user's row becomes a tombstone: the ledger, records
of usage, orders and invoices go on to belong to it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import datetime, timedelta

import msgspec
from allauth.account.models import EmailAddress
from django.contrib.admin.models import LogEntry
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.hashers import make_password
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.models import Session
from django.db import transaction
from django.db.models import CharField, F, Q, QuerySet, TextField, Value
from django.db.models.functions import Cast, Coalesce, Replace
from django.utils import timezone

from accounts.models import AccountDeletion, Invitation, TextSize, Theme, User
from chatproject.lib import personal_data
from chatproject.lib.batches import apart
from chatproject.lib.log_events import log_event
from chatproject.lib.mail import outbox
from chatproject.lib.mail.models import OutgoingMail
from chatproject.lib.personal_data import Document

logger = logging.getLogger(__name__)

EVERY = 60.0  # seconds between two jobs
JOB = "accounts.privacy.jobs.purge"
SECONDS = 60.0  # time limit of one job's work; the next job continues
CLAIM = timedelta(minutes=3)  # longer than a job, whose time limit is that of the queue
ACCOUNTS = 20  # of one job
BATCH = 500  # rows of one statement

ERASED = "(erased)"
TOMBSTONE = "erased-{id}@erased.invalid"  # RFC 2606: no mail reaches it


def enqueue_due(now: datetime) -> None:
    """Enqueue a job if an account is due; called by the clock. Raises redis.RedisError."""
    if _due(now).exists():
        outbox.low_queue().enqueue_call(func=JOB, description="purge accounts")


def _due(now: datetime) -> QuerySet[AccountDeletion]:
    is_free = Q(claimed_until=None) | Q(claimed_until__lt=now)
    return AccountDeletion.objects.filter(is_free, due_at__lte=now, purged_at=None)


def run(now: datetime) -> int:
    """Purge the accounts that are due; return how many are purged."""
    deadline = time.monotonic() + SECONDS
    purged = 0
    for user_id in list(_due(now).order_by("due_at").values_list("pk", flat=True)[:ACCOUNTS]):
        if time.monotonic() > deadline:
            break
        with apart(f"the purge of account {user_id}"):
            purged += purge(user_id, now, deadline)
    return purged


def purge(user_id: int, now: datetime, deadline: float) -> bool:
    """Go on with the purge of an account until a time (`time.monotonic`); return whether it is complete.

    Returns False without any effect while another job works on it, or if it was restored.
    """
    claimed = _due(now).filter(pk=user_id)
    moment = timezone.now()
    if not claimed.update(
        claimed_until=moment + CLAIM, started_at=Coalesce("started_at", Value(moment))
    ):
        return False
    user = User.objects.get(pk=user_id)
    for _name, step in personal_data.steps():
        if not step(user, deadline):
            AccountDeletion.objects.filter(pk=user_id).update(claimed_until=None)
            return False
    _bury(user)
    log_event("account_purged", user_id=user_id)
    return True


@transaction.atomic
def _bury(user: User) -> None:
    """Turn the user's row into a tombstone."""
    User.objects.filter(pk=user.pk).update(
        email=TOMBSTONE.format(id=user.pk),
        password=make_password(None),
        rehashed="",
        first_name="",
        last_name="",
        is_active=False,
        is_staff=False,
        is_superuser=False,
        last_login=None,
        display_name="",
        theme=Theme.SYSTEM,
        text_size=TextSize.MEDIUM,
        language="",
        single_keys=True,
        hints_hidden=False,
        consented_at=None,
        retention_days=None,
    )
    AccountDeletion.objects.filter(pk=user.pk).update(purged_at=timezone.now(), claimed_until=None)


# --- Steps ------------------------------------------------------------------------------------


def erase_invitations(user: User, deadline: float) -> bool:
    """Remove the user's addresses from invitations, which others may have used, and end those for them."""
    mine = Invitation.objects.filter(Q(used_by__user=user) | Q(email__in=addresses(user)))
    keys = list(mine.values_list("pk", flat=True))
    rows = Invitation.objects.filter(pk__in=keys)
    rows.filter(revoked_at=None).exclude(email="").update(revoked_at=timezone.now())
    rows.exclude(email="").update(email="")
    Invitation.objects.filter(created_by=user).update(created_by=None)
    return True


def erase_admin_log(user: User, deadline: float) -> bool:
    """Remove the names of the user's objects from the admin's log, while the objects still exist.

    Actor, time and kind of each action stay, and the id of an object that is kept.
    """
    for table in personal_data.tables():
        if not table.user or table.model == "admin.LogEntry":
            continue
        kind = ContentType.objects.get_for_model(table.kind, for_concrete_model=False)
        entries = LogEntry.objects.filter(content_type=kind).exclude(object_repr=ERASED)
        if not entries.exists():
            continue
        keys = table.of(user.pk).annotate(text=Cast("pk", CharField(max_length=64)))
        found = entries.filter(object_id__in=keys.values("text"))
        if not table.kept:
            found.update(object_repr=ERASED, change_message="", object_id=None)
        else:
            found.update(object_repr=ERASED, change_message="")
    for address in addresses(user):
        for name in ("object_repr", "change_message"):
            LogEntry.objects.filter(**{f"{name}__contains": address}).update(
                **{name: Replace(F(name), Value(address, TextField()), Value(ERASED, TextField()))}
            )
    return True


def erase_tables(user: User, deadline: float) -> bool:
    """Delete the rows of all tables that no other step erases, some at a time."""
    for table in personal_data.tables():
        if table.kept or table.erased_by:
            continue
        rows = table.of(user.pk)
        while found := list(rows.order_by("pk").values_list("pk", flat=True)[:BATCH]):
            if table.model == "account.EmailAddress":
                erase_mails(user, deadline)  # which are found by the addresses
            table.kind._base_manager.filter(pk__in=found).delete()
            if time.monotonic() > deadline:
                return False
    return True


def erase_sessions(user: User, deadline: float) -> bool:
    """Delete the user's sessions, which only their content names."""
    Session.objects.filter(pk__in=session_keys(user)).delete()
    return True


def session_documents(user: User) -> Iterator[Document]:
    """Yield the file of the export that lists the user's sessions: when each ends."""
    ends = Session.objects.filter(pk__in=session_keys(user)).values("expire_date")
    yield "sessions.json", iter([msgspec.json.encode(list(ends)) + b"\n"])


def session_keys(user: User) -> list[str]:
    """Return the keys of the user's sessions. It reads all sessions of the site, some at a time."""
    found: list[str] = []
    last = ""
    while batch := list(Session.objects.filter(pk__gt=last).order_by("pk")[:BATCH]):
        last = batch[-1].pk
        found += [one.pk for one in batch if one.get_decoded().get(SESSION_KEY) == str(user.pk)]
    return found


def erase_mails(user: User, deadline: float) -> bool:
    """Delete the records of mails to the user's addresses, also of mails on their way."""
    for address in addresses(user):
        OutgoingMail.objects.filter(recipients__contains=outbox.hash_of(address)).delete()
    return True


def addresses(user: User) -> set[str]:
    """Return all addresses of a user."""
    found = EmailAddress.objects.filter(user=user).values_list("email", flat=True)
    return {user.email, *found}
