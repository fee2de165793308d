"""The model providers: their addresses, their keys, and the models that the catalogue names."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Q

from chat.llm import address
from chat.models import LanguageModel, Provider
from chatproject.lib.encryption import Undecryptable
from chatproject.ops.doctor.checkup import Check, examine
from chatproject.ops.doctor.finding import Finding, ok, problem, warning

PART = "provider"
SECONDS = 8.0

ADVICE = {
    "address": "Correct {address}.",
    "key": "Correct {key}.",
    "quota": "Pay at the provider, or use another key.",
    "busy": "Try again later.",
}
UNREACHABLE = "Start the server, allow the connection in the firewall, or correct {address}."


def check() -> Iterator[Finding]:
    """Ask all enabled providers at the same time. They make no reply, and charge nothing."""
    # Before `create_catalogue` has run there is only the environment's.
    providers = list(Provider.objects.filter(enabled=True)) or [Provider(name="OPENAI_BASE_URL")]
    yield from examine(
        [Check(PART, partial(_ask, provider), seconds=SECONDS + 1) for provider in providers]
    )


def _ask(provider: Provider) -> Iterator[Finding]:
    place = "OPENAI_BASE_URL" if provider.is_environment else "the base URL in the admin"
    key = "OPENAI_API_KEY" if provider.is_environment else "the key in the admin"
    try:
        found = address.diagnose(
            provider.address,
            key=provider.key,
            proxy=provider.proxy,
            headers=provider.headers,
            seconds=SECONDS,
        )
    except Undecryptable:
        yield problem(
            PART,
            f"{provider.name}: its key was encrypted with another key",
            "Restore ENCRYPTION_KEYS (or SECRET_KEY), or enter the key anew in the admin.",
        )
        return
    except ImproperlyConfigured as error:
        yield problem(PART, f"{provider.name}: {error}", f"Correct {provider.key_variable}.")
        return
    if not found.is_fine:
        advice = ADVICE.get(found.cause, UNREACHABLE).format(address=place, key=key)
        yield problem(PART, f"{provider.name}: {found.sentence}", advice)
        return
    yield ok(PART, f"{provider.name}: {found.sentence}")
    ours = Q(provider=provider.pk)
    if provider.is_environment:
        ours |= Q(provider=None)
    names = LanguageModel.objects.filter(ours, enabled=True)
    unknown = [
        name
        for name in names.values_list("provider_model", flat=True)
        if found.models and name not in found.models
    ]
    if unknown:
        yield warning(
            PART,
            f"{provider.name} does not list {', '.join(unknown[:3])}",
            "Correct the name in the admin (Chat, Language models), or disable the model.",
        )
