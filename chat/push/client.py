"""Sending of push messages (RFC 8030), within time limits and without redirects."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

import aiohttp
from django.conf import settings

from chat.guarded.resolver import GuardedResolver
from chat.push import endpoints, vapid
from chat.push.encryption import InvalidKeys, encrypt

logger = logging.getLogger(__name__)

SECONDS = 10.0  # of one request
PAUSES = (2.0, 10.0)  # seconds before another attempt
TTL_SECONDS = 12 * 60 * 60  # so long the push service keeps a message for a device that is off
ENDED = {404, 410}  # the subscription has ended


class Result(Enum):
    """The end of one message: accepted, the subscription has ended, or it was not accepted."""

    SENT = "sent"
    ENDED = "ended"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Subscription:
    """A browser at its push service: address, its keys in base64url, and this site's public key."""

    endpoint: str
    p256dh: str
    auth: str
    server_key: str


async def send(subscription: Subscription, text: bytes, *, topic: str, contact: str) -> Result:
    """Send a message; it replaces an earlier one of the same topic that was not delivered yet.

    A busy or unreachable service is asked again after PAUSES.
    """
    key = vapid.find(subscription.server_key)
    if key is None:
        return Result.ENDED
    try:
        endpoints.check(subscription.endpoint)
        body = encrypt(text, p256dh=subscription.p256dh, auth=subscription.auth)
    except (endpoints.Refused, InvalidKeys):
        return Result.ENDED
    headers = {
        "Authorization": vapid.authorization(subscription.endpoint, key, contact),
        "Content-Encoding": "aes128gcm",
        "Content-Type": "application/octet-stream",
        "TTL": str(TTL_SECONDS),
        "Topic": topic,
        "Urgency": "normal",
    }
    service = urlsplit(subscription.endpoint).hostname
    connector = aiohttp.TCPConnector(
        resolver=GuardedResolver(hosts=settings.PUSH_HOSTS), use_dns_cache=False, limit=1
    )
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        for pause in (*PAUSES, None):
            try:
                async with session.post(
                    subscription.endpoint, data=body, headers=headers, allow_redirects=False
                ) as response:
                    status = response.status
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                logger.info("the push service %s is unreachable: %r", service, error)
                status = 0
            if 200 <= status < 300:
                return Result.SENT
            if status in ENDED:
                return Result.ENDED
            if (status and status != 429 and status < 500) or pause is None:
                break
            await asyncio.sleep(pause)
    logger.warning("the push service %s did not accept a message: %s", service, status)
    return Result.FAILED
