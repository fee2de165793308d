"""Invitations: links with which people sign up, and lists of addresses that are invited by mail.

A token is 256 random bits, of which only the SHA-256 is stored. A use is counted by a conditional update in the
transaction that makes the user, so that no link is used more often than it permits.
"""

from __future__ import annotations

import csv
import hashlib
import io
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.conf import settings
from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.core.mail import send_mail
from django.core.validators import validate_email
from django.db import transaction
from django.db.models import F, Q
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from accounts.models import Invitation, InvitationUse, User
from billing.ledger import signup
from billing.models import Plan
from chatproject.lib import db, languages
from chatproject.lib.batches import apart

MOST_ADDRESSES = 10_000
MOST_BYTES = 2_000_000  # of a list
MOST_SHOWN = 50  # wrong rows that are named
HEADINGS = {"email", "e-mail", "mail", "address", "e-mail address", "email address"}
EVERY = 10.0  # seconds between two turns of the clock
PATIENCE = timedelta(minutes=1)  # a use of this age lost its process after the commit
BATCH = 200


class NotUsable(Exception):
    """An invitation is used up, expired or revoked, or of another address."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The rights that an invitation gives, and its expiry."""

    expires_at: datetime
    group: Group | None = None
    plan: Plan | None = None
    plan_days: int | None = None  # from the sign-up on; None: without end
    note: str = ""


@dataclass(slots=True)
class AddressList:
    """The addresses of a file, in its order; `wrong` are its errors, each with the number of its line."""

    addresses: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    repeated: int = 0


@dataclass(frozen=True, slots=True)
class Invited:
    """The result of a list: addresses that get a mail, and those left out."""

    added: int
    members: int  # addresses of accounts
    already: int  # addresses that have a usable invitation


def new_token() -> tuple[str, str]:
    """Return a new token and its hash."""
    token = secrets.token_urlsafe(32)
    return token, hash_of(token)


def hash_of(token: str) -> str:
    """Return the SHA-256 under which a token is stored."""
    return hashlib.sha256(token.encode()).hexdigest()


def usable(digest: str) -> Invitation | None:
    """Return the invitation of a token's hash, if a person can sign up with it."""
    return Invitation.objects.select_related("plan").filter(_is_usable(), hash=digest).first()


def _is_usable() -> Q:
    return Q(revoked_at=None, expires_at__gt=timezone.now(), uses__lt=F("max_uses"))


def is_for(invitation: Invitation, email: str) -> bool:
    """Return whether a person with this address may use an invitation."""
    return not invitation.email or invitation.email.lower() == email.lower()


def refusal(digest: str) -> str:
    """Return the sentence for a person whom the invitation of a token's hash does not let in."""
    found = Invitation.objects.filter(hash=digest).first()
    if found is None:
        return _("There is no such invitation. Open the whole link that you were sent.")
    if found.revoked_at is not None:
        return _("It was withdrawn. Ask for a new one.")
    if found.uses >= found.max_uses:
        return _("It was used already. If it was you, sign in; else ask for a new one.")
    if found.expires_at <= timezone.now():
        day = languages.day(found.expires_at, "j F Y")
        return _("It expired on %(day)s. Ask for a new one.") % {"day": day}
    return _("It is for another e-mail address. Ask for a new one.")


def use(invitation: Invitation, user: User) -> None:
    """Count a use, and give group and plan; call it in the transaction that makes the user. Raises NotUsable.

    The account is opened with the plan of the user's row, so that its first monthly credits are the plan's.
    """
    if not is_for(invitation, user.email):
        raise NotUsable
    usable_row = Invitation.objects.filter(_is_usable(), pk=invitation.pk)
    if not usable_row.update(uses=F("uses") + 1):
        raise NotUsable
    InvitationUse.objects.create(user=user, invitation=invitation)
    if invitation.group is not None:
        user.groups.add(invitation.group)
    if invitation.plan is not None:
        user.plan = invitation.plan
        User.objects.filter(pk=user.pk).update(plan=invitation.plan)
    db.after_commit(apply, user.pk)


def apply(user_id: int) -> None:
    """Store the membership of a new user in the plan of the invitation. Raises MoneyBusy."""
    waiting = InvitationUse.objects.filter(user_id=user_id, applied_at=None)
    for one in waiting.select_related("invitation"):
        days = one.invitation.plan_days
        if one.invitation.plan_id is not None:
            db.money_transaction(
                signup.join_plan,
                user_id=user_id,
                plan_id=one.invitation.plan_id,
                invitation_id=one.invitation.pk,
                until=one.used_at + timedelta(days=days) if days else None,
            )
    waiting.update(applied_at=timezone.now())


def apply_lost(now: datetime) -> None:
    """Store the memberships whose process died after the sign-up."""
    lost = InvitationUse.objects.filter(applied_at=None, used_at__lte=now - PATIENCE)
    for user_id in list(lost.order_by("used_at").values_list("pk", flat=True)[:BATCH]):
        with apart(f"the invitation of user {user_id}"):
            apply(user_id)


def parse(data: bytes) -> AddressList:
    """Read a list of addresses: the column `email`, or the first one; one address in a line."""
    found = AddressList()
    if len(data) > MOST_BYTES:
        found.wrong.append(_("The file is larger than 2 MB. Split it."))
        return found
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        found.wrong.append(
            _("Line %(line)s is not UTF-8. Save the file as UTF-8.") % {"line": line}
        )
        return found
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    column, seen = 0, set()
    try:
        for number, row in enumerate(reader):
            cells = [cell.strip() for cell in row]
            if number == 0 and (headings := [c for c in cells if c.lower() in HEADINGS]):
                column = cells.index(headings[0])
                continue
            if not any(cells):
                continue
            address = cells[column].lower() if column < len(cells) else ""
            try:
                validate_email(address)
            except ValidationError:
                found.wrong.append(
                    _("Line %(line)s: “%(text)s” is not an e-mail address.")
                    % {"line": reader.line_num, "text": address[:80]}
                )
                continue
            if address in seen:
                found.repeated += 1
                continue
            seen.add(address)
            found.addresses.append(address)
    except csv.Error as error:
        found.wrong.append(
            _("Line %(line)s cannot be read: %(error)s.")
            % {"line": reader.line_num, "error": error}
        )
    if len(found.addresses) > MOST_ADDRESSES:
        found.wrong.append(
            _("The file has %(count)s addresses, at most %(most)s are possible. Split it.")
            % {"count": len(found.addresses), "most": MOST_ADDRESSES}
        )
    if not found.addresses and not found.wrong:
        found.wrong.append(_("The file has no addresses."))
    return found


@transaction.atomic
def invite(addresses: Iterable[str], terms: Terms, *, by: User) -> Invited:
    """Store an invitation for each address; the clock mails them.

    Leaves out addresses of accounts, and those with an invitation that is not used yet.
    """
    wanted = list(addresses)
    members = set(User.objects.filter(email__in=wanted).values_list("email", flat=True))
    open_ones = Invitation.objects.filter(_is_usable(), email__in=wanted)
    already = set(open_ones.values_list("email", flat=True)) - members
    rows = [
        Invitation(
            email=address,
            expires_at=terms.expires_at,
            group=terms.group,
            plan=terms.plan,
            plan_days=terms.plan_days,
            note=terms.note,
            created_by=by,
            is_mailed=True,
        )
        for address in wanted
        if address not in members and address not in already
    ]
    Invitation.objects.bulk_create(rows, batch_size=1_000)
    return Invited(len(rows), len(members), len(already))


def mail_due(now: datetime) -> None:
    """Mail the invitations of lists, at most INVITATION_MAILS_PER_MINUTE."""
    most = max(1, round(settings.INVITATION_MAILS_PER_MINUTE * EVERY / 60))
    due = Invitation.objects.filter(is_mailed=True, mailed_at=None, revoked_at=None)
    for key in list(due.order_by("pk").values_list("pk", flat=True)[:most]):
        with apart(f"the invitation {key}"):
            _mail(key, now)


@transaction.atomic
def _mail(key: int, now: datetime) -> None:
    token, digest = new_token()
    # The call whose update writes the hash stores the mail, in the same transaction.
    unsent = Invitation.objects.filter(pk=key, mailed_at=None, revoked_at=None)
    if not unsent.update(hash=digest, mailed_at=now):
        return
    one = Invitation.objects.select_related("plan").get(pk=key)
    context = {
        "site_name": settings.SITE_NAME,
        "link": f"{settings.SITE_URL}{reverse('account_invitation', args=[token])}",
        "invitation": one,
    }
    with languages.use(settings.LANGUAGE_CODE):
        subject = _("Your invitation to %(site)s") % {"site": settings.SITE_NAME}
        body = render_to_string("account/email/invitation.txt", context)
    send_mail(subject, body, None, [one.email])
