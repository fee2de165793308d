"""Switching off a webhook: by its user, by staff, or since its deliveries fail."""

from __future__ import annotations

from uuid import UUID

from django.conf import settings
from django.core.mail import send_mail
from django.db import transaction
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_noop as _

from chat.models import Webhook, WebhookDelivery
from chatproject.lib import languages
from chatproject.lib.log_events import log_event

Status = WebhookDelivery.Status

SWITCHED_OFF = _("The webhook was switched off.")


def disable(webhook_id: UUID, reason: Webhook.Disabled) -> bool:
    """Switch off a webhook for a reason that is not its user's, and mail the user; return False if it was off."""
    with transaction.atomic():
        changed = Webhook.objects.filter(pk=webhook_id, active=True).update(
            active=False, disabled=reason, disabled_at=timezone.now()
        )
        if not changed:
            return False
        give_up(webhook_id)
        _mail(Webhook.objects.select_related("owner").get(pk=webhook_id))
    log_event("webhook_disabled", webhook_id=webhook_id, reason=str(reason))
    return True


def give_up(webhook_id: UUID) -> None:
    """End the open deliveries of a webhook; an attempt that is being made is not repeated."""
    open_ones = WebhookDelivery.objects.filter(webhook=webhook_id, status__in=WebhookDelivery.OPEN)
    open_ones.update(status=Status.FAILED, error=SWITCHED_OFF)


def _mail(webhook: Webhook) -> None:
    page = reverse("chat:webhook", args=[webhook.pk])
    with languages.use(webhook.owner.language):
        context = {
            "site_name": settings.SITE_NAME,
            "name": webhook.name,
            "host": webhook.host,
            "reason": webhook.get_disabled_display(),
            "link": f"{settings.SITE_URL}{page}" if settings.SITE_URL else "",
        }
        subject = render_to_string("chat/email/webhook_disabled_subject.txt", context).strip()
        body = render_to_string("chat/email/webhook_disabled_message.txt", context)
        send_mail(f"{settings.SITE_NAME}: {subject}", body, None, [webhook.owner.email])
