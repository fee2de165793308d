"""What staff do to accounts. Every deed leaves an audit record in the same transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db.models import Sum
from django.utils import timezone

from billing import credits
from billing.ledger import postings
from billing.models import Account, AuditRecord, LedgerEntry, Plan
from chatproject.lib.db import money_transaction


class StaffRefused(Exception):
    """Nothing was done; the message is a sentence for the member of staff."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Change:
    """An entry that staff caused, and whether it was made by this call."""

    entry: LedgerEntry
    is_new: bool


def give_or_take(
    *,
    actor_id: int,
    account_id: int,
    amount: int,
    reason: str,
    nonce: str,
    ip: str | None,
    expires_at: datetime | None = None,
) -> Change:
    """Give micro-credits, or take them when `amount` is negative, once per nonce.

    `expires_at` is for gifts. Raises StaffRefused when more would be taken than is free, when the
    day's limit of the member of staff would be exceeded, and for a nonce used for something else.
    """
    if amount == 0 or not reason.strip():
        raise StaffRefused("Name an amount other than zero, and a reason.")
    return money_transaction(
        partial(_give_or_take, actor_id, account_id, amount, reason.strip(), nonce, ip, expires_at)
    )


def _give_or_take(
    actor_id: int,
    account_id: int,
    amount: int,
    reason: str,
    nonce: str,
    ip: str | None,
    expires_at: datetime | None,
) -> Change:
    key = f"grant:{nonce}"
    # One gift after the other by the same person, so that the day's limit cannot be passed by two
    # at once. It comes before the account in the order of locks.
    get_user_model()._default_manager.select_for_update(no_key=True).get(pk=actor_id)
    if not LedgerEntry.objects.filter(idempotency_key=key).exists():
        _insist_on_daily_limit(actor_id, amount)
    try:
        if amount > 0:
            posted = postings.grant(
                account_id=account_id, amount=amount, key=key, expires_at=expires_at,
                actor_id=actor_id, note=reason,
            )  # fmt: skip
        else:
            posted = postings.adjust(
                account_id=account_id, amount=amount, key=key, actor_id=actor_id, note=reason
            )
    except postings.InsufficientCredits as error:
        raise StaffRefused(
            f"Only {credits.show(error.available)} credits are free on this account; "
            f"{credits.show(error.required)} were to be taken. Take less, or wait until what is "
            "held for running replies is free again."
        ) from error
    except postings.KeyReused as error:
        raise StaffRefused(
            "This form was sent before with other figures. Open it again and look at the "
            "account's entries first."
        ) from error
    entry = posted.entry
    if posted.is_new:
        record(
            actor_id=actor_id,
            action="give credits" if amount > 0 else "take credits",
            target=_target(account_id),
            before={"balance": entry.balance_before},
            after={"balance": entry.balance_after, "entry": entry.pk, "amount": entry.amount},
            reason=reason,
            ip=ip,
        )
    return Change(entry, posted.is_new)


def given_today(actor_id: int) -> int:
    """What the member of staff has given since midnight by the site's time zone."""
    midnight = timezone.localtime().replace(hour=0, minute=0, second=0, microsecond=0)
    given = LedgerEntry.objects.filter(
        actor_id=actor_id,
        kind__in=[LedgerEntry.Kind.GRANT, LedgerEntry.Kind.ADJUST_UP],
        created_at__gte=midnight,
    ).aggregate(sum=Sum("amount"))
    return given["sum"] or 0


def _insist_on_daily_limit(actor_id: int, amount: int) -> None:
    limit = settings.STAFF_DAILY_CREDITS
    if not limit or amount < 0:
        return
    given = given_today(actor_id)
    if given + amount > limit:
        raise StaffRefused(
            f"You may give {credits.show(limit)} credits a day, and have given "
            f"{credits.show(given)} today. Ask a colleague, or go on tomorrow."
        )


def set_status(
    *, actor_id: int, account_id: int, status: Account.Status, reason: str, ip: str | None
) -> bool:
    """Freeze an account or let it be used again; False when it was so already."""
    return money_transaction(partial(_set_status, actor_id, account_id, status, reason.strip(), ip))


def _set_status(
    actor_id: int, account_id: int, status: Account.Status, reason: str, ip: str | None
) -> bool:
    account = Account.objects.select_for_update(no_key=True).get(pk=account_id)
    if account.status == status:
        return False
    postings.set_status(account_id=account_id, status=status)
    record(
        actor_id=actor_id,
        action="freeze account" if status == Account.Status.FROZEN else "unfreeze account",
        target=_target(account_id),
        before={"status": account.status},
        after={"status": status},
        reason=reason,
        ip=ip,
    )
    return True


def set_plan(
    *, actor_id: int, account_id: int, plan_id: int | None, reason: str, ip: str | None
) -> bool:
    """Put an account on a plan, or on the default one with None; False when it was there already."""
    return money_transaction(partial(_set_plan, actor_id, account_id, plan_id, reason.strip(), ip))


def _set_plan(
    actor_id: int, account_id: int, plan_id: int | None, reason: str, ip: str | None
) -> bool:
    account = Account.objects.select_for_update(no_key=True).get(pk=account_id)
    if account.plan_id == plan_id:
        return False
    before = account.plan.slug if account.plan else None
    after = Plan.objects.get(pk=plan_id).slug if plan_id is not None else None
    Account.objects.filter(pk=account_id).update(plan_id=plan_id, updated_at=timezone.now())
    record(
        actor_id=actor_id,
        action="change plan",
        target=_target(account_id),
        before={"plan": before},
        after={"plan": after},
        reason=reason,
        ip=ip,
    )
    return True


def reset_messages(*, actor_id: int, account_id: int, reason: str, ip: str | None) -> None:
    """Let the month's messages count from now on."""
    money_transaction(partial(_reset_messages, actor_id, account_id, reason.strip(), ip))


def _reset_messages(actor_id: int, account_id: int, reason: str, ip: str | None) -> None:
    account = Account.objects.select_for_update(no_key=True).get(pk=account_id)
    now = timezone.now()
    Account.objects.filter(pk=account_id).update(messages_from=now, updated_at=now)
    record(
        actor_id=actor_id,
        action="reset messages",
        target=_target(account_id),
        before={"messages_from": str(account.messages_from or "")},
        after={"messages_from": str(now)},
        reason=reason,
        ip=ip,
    )


def record(
    *,
    actor_id: int,
    action: str,
    target: str,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    reason: str = "",
    ip: str | None = None,
) -> None:
    """Write down a deed, in the caller's transaction if there is one."""
    AuditRecord.objects.create(
        actor_id=actor_id,
        action=action,
        target=target[:200],
        before=before or {},
        after=after or {},
        reason=reason[:300],
        ip=ip,
    )


def _target(account_id: int) -> str:
    return str(Account.objects.select_related("user").get(pk=account_id))
