"""The actions of users on their webhooks; the caller has opened them by chat.access."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext as _

from accounts.models import User
from chat.errors import ChatError
from chat.models import Webhook, WebhookDelivery
from chat.runs import webhook_events
from chat.webhooks import addresses, ending, signing
from chatproject.lib import encryption
from chatproject.lib.log_events import log_event

ROTATION = timedelta(days=1)  # for which messages are also signed with the secret before
LOG_PAGE = 25  # deliveries

Status = WebhookDelivery.Status


class TooManyWebhooks(Exception):
    """A user has WEBHOOKS_PER_USER webhooks."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings of a webhook; `url` was checked by `addresses.check`."""

    name: str
    url: str
    events: Collection[str]
    includes_text: bool = False
    active: bool = True


def create(user: User, terms: Terms) -> Webhook:
    """Create a webhook with a new secret. Raises TooManyWebhooks and addresses.Refused."""
    host = addresses.host_of(addresses.check(terms.url))
    with transaction.atomic():
        User.objects.select_for_update(no_key=True).get(pk=user.pk)
        if Webhook.objects.filter(owner=user).count() >= settings.WEBHOOKS_PER_USER:
            raise TooManyWebhooks
        made = Webhook.objects.create(
            owner=user,
            name=terms.name,
            url=terms.url,
            host=host,
            events=_known(terms.events),
            includes_text=terms.includes_text,
            active=terms.active,
            secret=encryption.encrypt(signing.new_secret()),
        )
    log_event("webhook_created", user_id=user.pk, webhook_id=made.pk)
    return made


def change(webhook: Webhook, terms: Terms) -> None:
    """Store new settings. One that is switched on begins anew; one that is switched off gives up its messages.

    Raises addresses.Refused, and ChatError.
    """
    host = addresses.host_of(addresses.check(terms.url))
    with transaction.atomic():
        locked = Webhook.objects.select_for_update(no_key=True).filter(pk=webhook.pk).first()
        if locked is None:
            raise ChatError("not_found")
        if terms.active and not locked.active:
            if locked.disabled == Webhook.Disabled.STAFF:
                raise ChatError("not_allowed", _("The operators of this site switched it off."))
            locked.disabled, locked.disabled_at, locked.failing_since = "", None, None
        if locked.active and not terms.active:
            ending.give_up(locked.pk)
        locked.name, locked.url, locked.host = terms.name, terms.url, host
        locked.events, locked.includes_text = _known(terms.events), terms.includes_text
        locked.active = terms.active
        locked.save()


def _known(events: Collection[str]) -> list[str]:
    return [event for event in Webhook.Event.values if event in events]


def delete(webhook: Webhook) -> None:
    """Delete a webhook with its log."""
    with transaction.atomic():
        # First, so that the end of a run stores no further row.
        Webhook.objects.select_for_update().filter(pk=webhook.pk).first()
        WebhookDelivery.objects.filter(webhook=webhook).delete()
        Webhook.objects.filter(pk=webhook.pk).delete()
    log_event("webhook_deleted", user_id=webhook.owner_id, webhook_id=webhook.pk)


def delete_all(*, user: User, **_signal: Any) -> None:
    """Delete all webhooks of a user; the receiver of `account_claimed`."""
    for webhook in Webhook.objects.filter(owner=user):
        delete(webhook)


def secret_of(webhook: Webhook) -> str:
    """Return the secret; an empty text if the site's encryption key was lost."""
    try:
        return encryption.decrypt(webhook.secret)
    except encryption.Undecryptable:
        return ""


def rotate(webhook: Webhook) -> None:
    """Create a new secret; for a day messages are signed with both."""
    Webhook.objects.filter(pk=webhook.pk).update(
        old_secret=F("secret"),
        old_secret_until=timezone.now() + ROTATION,
        secret=encryption.encrypt(signing.new_secret()),
    )
    log_event("webhook_secret_rotated", user_id=webhook.owner_id, webhook_id=webhook.pk)


def send_test(webhook: Webhook) -> WebhookDelivery:
    """Store a message `ping`, which is sent within seconds. Raises ChatError `not_allowed`."""
    _require_active(webhook)
    now = timezone.now()
    made = webhook_events.delivery(
        webhook.pk, WebhookDelivery.PING, {"webhook": str(webhook.pk)}, now
    )
    made.save(force_insert=True)
    return made


def resend(delivery: WebhookDelivery) -> None:
    """Send a message once more, with the same id; one that is still open is sent now. Raises ChatError."""
    _require_active(delivery.webhook)
    now = timezone.now()
    rows = WebhookDelivery.objects.filter(pk=delivery.pk)
    if rows.filter(status=Status.WAITING).update(due_at=now):
        return
    rows.filter(status__in=[Status.DELIVERED, Status.FAILED]).update(
        status=Status.WAITING, attempts=0, due_at=now, error=""
    )


def _require_active(webhook: Webhook) -> None:
    if not webhook.active:
        raise ChatError("not_allowed", _("This webhook is off. Switch it on first."))


@dataclass(frozen=True, slots=True)
class LogPage:
    """A page of the log, the newest first; `older` is the id for the next page, if there is one."""

    rows: list[WebhookDelivery]
    older: str


def log(webhook: Webhook, *, before: object = None, length: int = LOG_PAGE) -> LogPage:
    """Return the messages of a webhook before the one with an id, without their bodies."""
    rows = webhook.deliveries.defer("body", "response_body").order_by("-id")
    if before is not None:
        rows = rows.filter(pk__lt=before)
    found = list(rows[: length + 1])
    return LogPage(found[:length], found[length - 1].pk.hex if len(found) > length else "")
