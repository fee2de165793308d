"""Actions of staff on accounts, each with its audit record in the same transaction."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from django.conf import settings
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth import get_user_model
from django.db.models import Model, Sum
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing import credits
from billing.ledger import plans, postings
from billing.models import Account, AuditRecord, LedgerEntry, Plan
from chatproject.lib.db import money_transaction

NOT_FREE = (
    "Only {available} credits are free on this account; {required} were to be taken. Take less, or "
    "wait until the credits held for running replies are released."
)
SENT_BEFORE = gettext_lazy(
    "This form was sent before with other figures. Open it again and check the account's entries first."
)

P = ParamSpec("P")
T = TypeVar("T")


class StaffRefused(Exception):
    """An action was refused and nothing done; `message` is a sentence for the member of staff."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


class Unconfirmed(StaffRefused):
    """A gift is so large that it must be confirmed, by its amount; `balance_after` would be the result."""

    def __init__(self, amount: int, balance_after: int) -> None:
        self.amount = amount
        self.balance_after = balance_after
        super().__init__(
            _("Confirm that %(amount)s credits are to be given.") % {"amount": credits.show(amount)}
        )


def in_one_transaction(action: Callable[P, T]) -> Callable[P, T]:
    """Run an audited action and the writing of its audit record in one money transaction."""

    @wraps(action)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return money_transaction(action, *args, **kwargs)

    return run


@in_one_transaction
def give_or_take(
    *,
    actor_id: int,
    account_id: int,
    amount: int,
    reason: str,
    nonce: str,
    ip: str | None,
    expires_at: datetime | None = None,
    confirmed: int | None = None,
) -> postings.Posted:
    """Grant micro-credits, or take them if `amount` is negative, once per nonce.

    `expires_at` is for grants. `confirmed` is the amount that the member of staff has confirmed; raises
    Unconfirmed when it is needed and another one. Raises StaffRefused without an amount or a reason, if the account has
    less free credits than are to be taken, if the daily limit of the member of staff would be
    exceeded, and for a nonce that belongs to another action.
    """
    reason = reason.strip()
    if amount == 0 or not reason:
        raise StaffRefused(_("Name an amount other than zero, and a reason."))
    key = f"grant:{nonce}"
    # Grants of one member of staff are serialized, so that two at once cannot exceed the daily
    # limit. The user's row comes before the account in the order of locks.
    get_user_model()._default_manager.select_for_update(no_key=True).get(pk=actor_id)
    if not LedgerEntry.objects.filter(idempotency_key=key).exists():
        enforce_daily_limit(actor_id, amount)
        if must_confirm(amount) and confirmed != amount:
            account = Account.objects.get(pk=account_id)
            raise Unconfirmed(amount, account.balance + max(0, amount - account.debt))
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
        available, required = credits.show(error.available), credits.show(error.required)
        raise StaffRefused(NOT_FREE.format(available=available, required=required)) from error
    except postings.KeyReused as error:
        raise StaffRefused(str(SENT_BEFORE)) from error
    entry = posted.entry
    if posted.is_new:
        record(
            actor_id=actor_id,
            action="give credits" if amount > 0 else "take credits",
            target=str(entry.account),
            before={"balance": entry.balance_before},
            after={
                "balance": entry.balance_after,
                "entry": entry.pk,
                "amount": entry.amount,
                **({"confirmed": True} if must_confirm(amount) else {}),
            },
            reason=reason,
            ip=ip,
            row=entry.account,
            change=f"{credits.show(abs(entry.amount))} (balance "
            f"{credits.show(entry.balance_before)} → {credits.show(entry.balance_after)})",
        )
    return posted


def must_confirm(amount: int) -> bool:
    """Return whether a gift of micro-credits must be confirmed, by STAFF_CONFIRM_CREDITS."""
    return 0 < settings.STAFF_CONFIRM_CREDITS < amount


def enforce_daily_limit(actor_id: int, amount: int) -> None:
    """Raise StaffRefused if a grant would exceed the member of staff's limit per day."""
    limit = settings.STAFF_DAILY_CREDITS
    if not limit or amount < 0:
        return
    given = given_today(actor_id)
    if given + amount > limit:
        raise StaffRefused(
            _(
                "You may give %(limit)s credits a day, and have given %(given)s today. Ask a colleague, or continue tomorrow."
            )
            % {"limit": credits.show(limit), "given": credits.show(given)}
        )


def given_today(actor_id: int) -> int:
    """Return the micro-credits granted by a member of staff since midnight by the site's time zone."""
    midnight = timezone.localtime().replace(hour=0, minute=0, second=0, microsecond=0)
    given = LedgerEntry.objects.filter(
        actor_id=actor_id,
        kind__in=[LedgerEntry.Kind.GRANT, LedgerEntry.Kind.ADJUST_UP],
        created_at__gte=midnight,
    ).aggregate(sum=Sum("amount"))
    return given["sum"] or 0


@in_one_transaction
def set_status(
    *, actor_id: int, account_id: int, status: Account.Status, reason: str, ip: str | None
) -> bool:
    """Freeze an account or activate it again; return whether that changed it."""
    account = Account.objects.select_for_update(no_key=True).get(pk=account_id)
    if account.status == status:
        return False
    postings.set_status(account_id=account_id, status=status)
    record(
        actor_id=actor_id,
        action="freeze account" if status == Account.Status.FROZEN else "unfreeze account",
        target=str(account),
        before={"status": account.status},
        after={"status": status},
        reason=reason,
        ip=ip,
        row=account,
        change=f"{account.status} → {status}",
    )
    return True


@in_one_transaction
def set_plan(
    *,
    actor_id: int,
    account_id: int,
    plan_id: int | None,
    reason: str,
    ip: str | None,
    until: datetime | None = None,
) -> bool:
    """Move an account to a plan until a time, or with None to the default one; return whether that changed it."""
    account = plans.locked(account_id)
    changed = plans.change(
        account_id=account_id,
        plan_id=plan_id,
        source=plans.Source.STAFF,
        until=until,
        actor_id=actor_id,
        reason=reason,
    )
    if not changed:
        return False
    before = account.plan.slug if account.plan else None
    after = Plan.objects.get(pk=plan_id).slug if plan_id is not None else None
    limit = {} if until is None else {"until": str(until)}
    end = "" if until is None else f" until {timezone.localtime(until):%Y-%m-%d %H:%M}"
    record(
        actor_id=actor_id,
        action="change plan",
        target=str(account),
        before={"plan": before},
        after={"plan": after, **limit},
        reason=reason,
        ip=ip,
        row=account,
        change=f"{before or 'default'} → {after or 'default'}{end}",
    )
    return True


@in_one_transaction
def reset_messages(*, actor_id: int, account_id: int, reason: str, ip: str | None) -> None:
    """Restart the count of the month's messages now."""
    account = Account.objects.select_for_update(no_key=True).get(pk=account_id)
    now = timezone.now()
    Account.objects.filter(pk=account_id).update(messages_from=now, updated_at=now)
    record(
        actor_id=actor_id,
        action="reset messages",
        target=str(account),
        before={"messages_from": str(account.messages_from or "")},
        after={"messages_from": str(now)},
        reason=reason,
        ip=ip,
        row=account,
        change=f"from now, {now:%Y-%m-%d %H:%M} UTC",
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
    row: Model | None = None,
    change: str = "",
) -> None:
    """Write the audit record of an action, in the caller's transaction if it has one.

    The admin's log also gets an entry of `row`, with `change` in words: give it for an action that the
    admin does not log.
    """
    reason = reason.strip()[:300]
    AuditRecord.objects.create(
        actor_id=actor_id,
        action=action,
        target=target[:200],
        before=before or {},
        after=after or {},
        reason=reason,
        ip=ip,
    )
    if row is not None:
        parts = [f"{action.capitalize()}{f': {change}' if change else ''}", reason]
        message = ". Reason: ".join(part for part in parts if part)
        LogEntry.objects.log_actions(
            actor_id, [row], CHANGE, change_message=message, single_object=True
        )
