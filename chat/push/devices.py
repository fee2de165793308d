"""The devices of a user that receive notifications: added and removed in the settings."""

from __future__ import annotations

import re
from typing import Any

from django.db import transaction

from accounts.models import User
from chat.errors import ChatError
from chat.models import PushSubscription
from chat.push import endpoints, vapid
from chat.push.encryption import InvalidKeys, browser_keys

MOST = 10  # of one user; a further one replaces the oldest

BROWSERS = (
    ("Edge", r"Edg(?:A|iOS)?/"),
    ("Opera", r"OPR/"),
    ("Samsung Internet", r"SamsungBrowser/"),
    ("Firefox", r"(?:Firefox|FxiOS)/"),
    ("Chrome", r"(?:Chrome|CriOS)/"),
    ("Safari", r"Safari/"),
)
SYSTEMS = (
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("macOS", "Mac OS X|Macintosh"),
    ("ChromeOS", "CrOS"),
    ("Linux", "Linux"),
)


class UnusableDevice(ValueError):
    """The push service of a browser, or its keys, cannot be used."""


def add(
    user: User,
    *,
    session_key: str,
    endpoint: str,
    p256dh: str,
    auth: str,
    agent: str,
    old: str = "",
) -> PushSubscription:
    """Store a browser's subscription, in place of an earlier one with the same endpoint.

    `agent` is the browser's User-Agent. It also replaces the user's subscription with the endpoint `old`, and
    keeps that one's setting. Raises UnusableDevice.
    """
    try:
        endpoints.check(endpoint)
        browser_keys(p256dh, auth)
    except (endpoints.Refused, InvalidKeys) as error:
        raise UnusableDevice from error
    values = {
        "user": user,
        "session_key": session_key,
        "p256dh": p256dh,
        "auth": auth,
        "server_key": vapid.current().public,
        "device": device_name(agent),
        "shows_title": False,
    }
    with transaction.atomic():
        User.objects.select_for_update(no_key=True).get(pk=user.pk)
        replaced = user.push_subscriptions.filter(endpoint=old).first() if old else None
        if replaced is not None:
            values["shows_title"] = replaced.shows_title
            replaced.delete()
        added, _is_new = PushSubscription.objects.update_or_create(
            endpoint=endpoint, defaults=values
        )
        surplus = user.push_subscriptions.order_by("-pk").values("pk")[MOST:]
        PushSubscription.objects.filter(pk__in=list(surplus.values_list("pk", flat=True))).delete()
    return added


def remove(user: User, subscription_id: int) -> None:
    """Delete a subscription of the user. Raises ChatError `not_found`."""
    deleted, _by_table = user.push_subscriptions.filter(pk=subscription_id).delete()
    if not deleted:
        raise ChatError("not_found")


def show_title(user: User, subscription_id: int, *, shows: bool) -> None:
    """Store whether a device's notifications contain the title of the chat. Raises ChatError `not_found`."""
    if not user.push_subscriptions.filter(pk=subscription_id).update(shows_title=shows):
        raise ChatError("not_found")


def device_name(agent: str) -> str:
    """Return a short name of a device from its User-Agent, such as "Firefox, Android"."""
    found = [
        next((name for name, pattern in names if re.search(pattern, agent)), "")
        for names in (BROWSERS, SYSTEMS)
    ]
    return ", ".join(filter(None, found)) or "Browser"


def session_renewed(*, old: str, new: str, **_: Any) -> None:
    """Let the devices of a session go on under its new key."""
    PushSubscription.objects.filter(session_key=old).update(session_key=new)
