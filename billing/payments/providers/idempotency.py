"""Idempotency keys of requests that change something at a provider.

A request is stored with its key and its parameters before it is sent. While no answer arrives (a
timeout, a reset, a crash of ours), the same key is sent again with the same parameters, whatever has
changed since, so that the provider does its work once and repeats its answer. A definite error
closes the key: providers repeat errors too, for a day, so the next attempt needs a new key. Before
that attempt the adapter searches for the result of an earlier one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from django.db import IntegrityError, transaction
from django.db.models import Max
from django.utils import timezone

from billing.models import ProviderRequest

Answer = TypeVar("Answer")

# HTTP statuses of errors that close no key: another request with the key is being processed, or this
# one was not even begun.
INDEFINITE = frozenset({408, 409, 425, 429})


def send(
    provider: str,
    subject: str,
    params: Mapping[str, Any],
    call: Callable[[Mapping[str, Any], str], Answer],
    *,
    is_definite: Callable[[Exception], bool],
) -> Answer:
    """Call `call(params, key)` with the stored parameters and key of a subject's open request.

    `subject` names what is asked for, for example `refund:<id>`. `is_definite` decides whether an
    exception of the call is the provider's answer; it is raised again in any case.
    """
    request = _open(provider, subject, params)
    try:
        return call(json.loads(request.params), request.key)
    except Exception as error:
        if is_definite(error):
            ProviderRequest.objects.filter(pk=request.pk).update(closed_at=timezone.now())
        raise


def sent(provider: str, subject: str) -> dict[str, Any]:
    """Return the parameters of a subject's latest request; empty when none was stored."""
    of_subject = ProviderRequest.objects.filter(provider=provider, subject=subject)
    latest = of_subject.order_by("-number").first()
    return json.loads(latest.params) if latest else {}


def _open(provider: str, subject: str, params: Mapping[str, Any]) -> ProviderRequest:
    """Return the subject's open request, or store a new one."""
    text = json.dumps(params)
    of_subject = ProviderRequest.objects.filter(provider=provider, subject=subject)
    while True:
        found = of_subject.filter(closed_at=None).first()
        if found is not None:
            return found
        number = 1 + (of_subject.aggregate(max=Max("number"))["max"] or 0)
        try:
            # Committed before the request is sent: the caller has no transaction open.
            with transaction.atomic():
                return ProviderRequest.objects.create(
                    provider=provider, subject=subject, number=number, params=text
                )
        except IntegrityError:
            # A concurrent request for the same subject was faster.
            continue
