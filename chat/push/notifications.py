"""The notification of a reply that has ended, to the devices of its user.

A chat that is visible on any device marks itself as read within moments (`conversation.read`). So a
notification waits for DELAY, and is sent only for a conversation that is still unread then.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from email.utils import parseaddr
from uuid import UUID

from django.conf import settings
from django.contrib.sessions.models import Session
from django.utils import timezone
from django.utils.translation import gettext as _

from chat.models import PushSubscription, Run
from chat.push import client
from chatproject.lib import db, languages, metrics

DELAY = 3.0  # seconds


@dataclass(frozen=True, slots=True)
class Notice:
    """The content of a notification; `title` is that of the chat, for devices that show it."""

    topic: str
    url: str
    text: str
    title: str


async def notify(run_id: UUID) -> None:
    """Notify the user's devices of the end of a run, unless its conversation was read meanwhile."""
    await asyncio.sleep(DELAY)
    notice, devices = await db.run(_read, run_id)
    if notice is None:
        return
    results = await asyncio.gather(*(_send(notice, device) for device in devices))
    for result in results:
        metrics.PUSH_MESSAGES.labels(result.value).inc()
    ended = [
        device.pk
        for device, result in zip(devices, results, strict=True)
        if result is client.Result.ENDED
    ]
    if ended:
        await db.run(_remove, ended)


def _read(run_id: UUID) -> tuple[Notice | None, list[PushSubscription]]:
    run = (
        Run.objects.select_related("conversation", "user")
        .exclude(status__in=Run.ACTIVE)
        .filter(pk=run_id, conversation__unread=True, conversation__deleted_at=None)
        .filter(user__is_active=True)
        .first()
    )
    if run is None or not settings.WEB_PUSH:
        return None, []
    devices = list(run.user.push_subscriptions.all())
    living = set(
        Session.objects.filter(
            session_key__in=[device.session_key for device in devices],
            expire_date__gt=timezone.now(),
        ).values_list("session_key", flat=True)
    )
    # Of a device whose user has signed out.
    _remove([device.pk for device in devices if device.session_key not in living])
    with languages.use(run.user.language):
        is_done = run.status == Run.Status.DONE
        text = _("Your reply is ready.") if is_done else _("A reply could not be finished.")
    notice = Notice(
        topic=run.conversation_id.hex,
        url=run.conversation.get_absolute_url(),
        text=text,
        title=run.conversation.name,
    )
    return notice, [device for device in devices if device.session_key in living]


def _remove(ids: list[int]) -> None:
    if ids:
        PushSubscription.objects.filter(pk__in=ids).delete()


async def _send(notice: Notice, device: PushSubscription) -> client.Result:
    content = {
        "title": notice.title if device.shows_title else settings.SITE_NAME,
        "body": notice.text,
        "url": notice.url,
        "tag": notice.topic,
    }
    subscription = client.Subscription(
        device.endpoint, device.p256dh, device.auth, device.server_key
    )
    contact = settings.SITE_URL or f"mailto:{parseaddr(settings.DEFAULT_FROM_EMAIL)[1]}"
    text = json.dumps(content, ensure_ascii=False).encode()
    return await client.send(subscription, text, topic=notice.topic, contact=contact)
