"""Fallbacks: the model that is asked for a run's reply when the run's own model fails before the first word.

The run's row names the fallback before it is asked, so that a later attempt continues its text with it, and
that the reply and the record of its usage name it. The user pays the quoted price, and never
more than was held.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import msgspec

from chat.llm.errors import ProviderError
from chat.models import LanguageModel, Provider, Run
from chat.models.catalogue import ModelKind
from chatproject.lib.db import prepared

# Where Run.model_snapshot has the names of the fallback that answers.
SNAPSHOT = "answered_by"

# A refusal of the message itself, which the fallback would have to refuse as well.
OF_THE_MESSAGE = ("content", "context")
# Of a call of the API: its fields, too. A caller could choose one that the model refuses, and would have the reply of
# a dearer fallback at the price of the model.
OF_THE_CALL = (*OF_THE_MESSAGE, "parameter", "request", "cap", "too_large")


def has_fallback(run: Run) -> bool:
    """Return whether a run's model names a fallback that may still be asked.

    It does not continue the text of another model, and has no fallback of its own.
    """
    return run.model.fallback_id is not None and run.answered_by_id is None and not run.prefix


def is_for(run: Run, error: ProviderError) -> bool:
    """Return whether a fallback may answer a run where a provider failed with this error."""
    return error.reason not in (OF_THE_MESSAGE if run.api is None else OF_THE_CALL)


STORE = """
UPDATE chat_run SET answered_by_id = %s, provider_id = %s, model_snapshot = model_snapshot || %s::jsonb
WHERE id = %s AND attempt = %s AND status = 'running'
"""


def begin(run: Run) -> Run | None:
    """Store in a running run that its fallback is asked; return the run with the fallback as its model.

    None if the fallback or its provider is disabled, or if the run is no longer running at this
    attempt. The fallback gets no longer prompt or reply than were quoted.
    """
    found = (
        LanguageModel.objects.select_related("provider")
        .filter(pk=run.model.fallback_id or 0, enabled=True, kind=ModelKind.CHAT)
        .first()
    )
    if found is None:
        return None
    provider = found.provider or Provider.objects.filter(base_url="").first() or Provider()
    if not provider.enabled:
        return None
    names = {"name": found.name, "provider_model": found.provider_model}
    stored = msgspec.json.encode({SNAPSHOT: names}).decode()
    if not prepared.change(STORE, [found.pk, provider.pk, stored, run.pk, run.attempt]):
        return None
    found.context_tokens = min(found.context_tokens, run.model.context_tokens)
    found.max_output_tokens = min(found.max_output_tokens, run.model.max_output_tokens)
    asked = copy(run)
    asked.model, asked.answered_by, asked.provider = found, found, provider
    return asked


def names_of(run: Run) -> dict[str, Any] | None:
    """Return `name` and `provider_model` of the fallback that answers a run; None without one."""
    names: dict[str, Any] | None = run.model_snapshot.get(SNAPSHOT)
    return names
