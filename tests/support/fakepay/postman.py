"""Webhooks: signed as the providers' libraries sign, delivered well or badly."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import random
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError

import stripe

from tests.support.fakepay.shared import Json, new_id

# Takes the provider's name, the body and the headers; returns the HTTP status.
Receiver = Callable[[str, bytes, dict[str, str]], int]

STRIPE_SECRET = "whsec_fakepay"
RAZORPAY_SECRET = "chosen-for-fakepay"


@dataclass
class Switches:
    """Faults of delivery. Lies are signed; a tampered body is changed after signing."""

    copies: int = 1
    shuffle: bool = False
    drop: bool = False
    lose_first_answer: bool = False  # the first delivery counts as failed, whatever the answer
    retries: int = 3  # of a delivery that was not answered with 2xx
    wrong_signature: bool = False
    old_timestamp: bool = False
    tamper: bool = False
    lie_amount: int | None = None
    lie_livemode: bool = False
    lie_user: str = ""


@dataclass(frozen=True)
class Delivery:
    """One webhook as it was sent, and the status of its answer."""

    provider: str
    event_type: str
    body: bytes
    headers: dict[str, str]
    status: int


class Postman:
    """Collects events; `flush` delivers them in the caller's thread, after `start` a thread does."""

    def __init__(self) -> None:
        self.switches = Switches()
        self.urls: dict[str, str] = {}  # by provider
        self.deliveries: list[Delivery] = []
        self._waiting: list[tuple[str, Json]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_stopping = False

    def post(self, provider: str, event: Json) -> None:
        """Take a copy of an event for delivery."""
        with self._changed:
            self._waiting.append((provider, copy.deepcopy(event)))
            self._changed.notify_all()

    @property
    def waiting(self) -> list[str]:
        """The types of the events that were not yet delivered."""
        with self._changed:
            return [event.get("type") or event["event"] for _, event in self._waiting]

    def flush(self, receiver: Receiver | None = None) -> list[int]:
        """Deliver all waiting events to the receiver, or without one to the URLs of the providers.

        Returns the status of each answer.
        """
        with self._changed:
            batch, self._waiting = self._waiting, []
        if self.switches.drop:
            return []
        batch = [item for item in batch for _ in range(self.switches.copies)]
        if self.switches.shuffle:
            random.shuffle(batch)
        return [self._deliver(provider, event, receiver) for provider, event in batch]

    def start(self) -> None:
        """Deliver events as they come, from a thread of its own."""
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread of `start`."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._thread = None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_stopping)
                if self._is_stopping:
                    return
            self.flush()

    def _deliver(self, provider: str, event: Json, receiver: Receiver | None) -> int:
        send = receiver or self._send
        status = 0
        for attempt in range(1 + self.switches.retries):
            body, headers = self.sign(provider, event)
            status = send(provider, body, headers)
            kind = event.get("type") or event["event"]
            self.deliveries.append(Delivery(provider, kind, body, headers, status))
            if 200 <= status < 300 and not (attempt == 0 and self.switches.lose_first_answer):
                break
        return status

    def sign(self, provider: str, event: Json) -> tuple[bytes, dict[str, str]]:
        """Return the body and headers of a delivery, with the faults of the switches."""
        event = copy.deepcopy(event)
        if self.switches.lie_livemode and "livemode" in event:
            event["livemode"] = not event["livemode"]
        _rewrite(event, self.switches)
        body = json.dumps(event, separators=(",", ":")).encode()
        if provider == "stripe":
            headers = {"Stripe-Signature": self._stripe_signature(body)}
        else:
            secret = "wrong" if self.switches.wrong_signature else RAZORPAY_SECRET
            headers = {
                "X-Razorpay-Signature": sign_for_razorpay(body, secret),
                # The same in retries: receivers recognise them by it.
                "X-Razorpay-Event-Id": hashlib.sha256(body).hexdigest()[:14],
            }
        if self.switches.tamper:
            body = body.replace(b'"amount', b'"amouns', 1)
        return body, headers | {"Content-Type": "application/json"}

    def _stripe_signature(self, body: bytes) -> str:
        secret = "whsec_wrong" if self.switches.wrong_signature else STRIPE_SECRET
        age = 301 if self.switches.old_timestamp else 0
        stamp = int(time.time()) - age
        return str(stripe.WebhookSignature.generate_signature_header(body.decode(), secret, stamp))

    def _send(self, provider: str, body: bytes, headers: dict[str, str]) -> int:
        if provider not in self.urls:
            return 200  # no subscription
        request = urllib.request.Request(self.urls[provider], data=body, headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as answer:
                return int(answer.status)
        except HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0


def sign_for_razorpay(body: bytes, secret: str) -> str:
    """Return the hex HMAC-SHA256 of a body, as `razorpay.Utility.verify_signature` computes it."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def stripe_event(kind: str, subject: Json) -> Json:
    """Return a snapshot event of Stripe about an object."""
    return {
        "id": new_id("evt"),
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": int(time.time()),
        "livemode": subject.get("livemode", False),
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": kind,
        "data": {"object": subject},
    }


def razorpay_event(kind: str, **entities: Json) -> Json:
    """Return an event of Razorpay about one or more entities."""
    return {
        "entity": "event",
        "account_id": "acc_fakepay",
        "event": kind,
        "contains": list(entities),
        "payload": {name: {"entity": entity} for name, entity in entities.items()},
        "created_at": int(time.time()),
    }


def _rewrite(value: Any, switches: Switches) -> None:
    if isinstance(value, list):
        for item in value:
            _rewrite(item, switches)
    elif isinstance(value, dict):
        for name, item in value.items():
            if switches.lie_user and name == "user_id":
                value[name] = switches.lie_user
            elif switches.lie_amount is not None and name.startswith("amount") and item:
                value[name] = switches.lie_amount
            else:
                _rewrite(item, switches)
