"""Generated requests to every operation of the REST API: no server error, and answers as the document says.

Schemathesis makes requests that follow the OpenAPI document, and others that break it in one place. Most ids are
those of objects that exist, since random ones are never found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from django.utils import timezone
from hypothesis import HealthCheck, Phase, given, strategies
from hypothesis import settings as settings_of
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from accounts import api_keys
from accounts.models import Scope, User
from chat.models import Run
from chat.webhooks import editing
from tests.support.conversations import begin, send
from tests.support.documents import uploaded
from tests.support.people import assistant, owner
from tests.support.stack import Stack

__all__ = ["assistant", "owner"]

FEW = 2  # examples

VARIABLES = {
    "LIMIT_API_REQUESTS": "100000/minute",
    "LIMIT_MESSAGES": "100000/minute",
    "LIMIT_SEARCHES": "100000/minute",
    "LIMIT_DOCUMENTS": "100000/minute",
    "USER_QUEUE_LIMIT": "100000",
    "QUEUE_LIMIT": "100000",
    "LIMIT_WEBHOOKS": "100000/minute",
    "WEBHOOKS_PER_USER": "100000",
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("valkey_url")
@pytest.mark.parametrize("examples", [FEW, pytest.param(12, marks=pytest.mark.long)])
def test_generated_requests_get_documented_answers(
    owner: User, assistant: Any, server_folder: Path, examples: int
):
    secret = api_keys.create(owner, api_keys.Terms(name="Test", scopes=Scope.values))[1]
    headers = {"Authorization": f"Bearer {secret}"}
    run = send(owner, begin(owner, assistant, title="Lakes"), "What is a lake?")
    Run.objects.filter(pk=run.pk).update(status="done", ended_at=timezone.now())
    terms = editing.Terms(name="Hook", url="https://example.org/hook", events=["run.done"])
    webhook = editing.create(owner, terms)
    known = {
        "conversation_id": str(run.conversation_id),
        "run_id": str(run.pk),
        "webhook_id": str(webhook.pk),
        "document_id": str(uploaded(owner, "price,day\n3,2024-05-01\n", "a.csv").pk),
        "name": "a",
        "delivery_id": str(editing.send_test(webhook).pk),
    }
    with Stack(server_folder, provider_url="http://127.0.0.1:9", environment=VARIABLES) as stack:
        stack.start("web")
        schema = schemathesis.openapi.from_url(f"{stack.base}/api/v1/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) >= 24

        def check(operation: Any, mode: GenerationMode) -> None:
            @settings_of(
                max_examples=examples,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(mode), is_known=strategies.integers(0, 3))
            def play(case: Case[Any], is_known: int) -> None:
                assert case.meta is not None
                wrong = {
                    place
                    for place, part in case.meta.components.items()
                    if part.mode == GenerationMode.NEGATIVE
                }
                if is_known and ParameterLocation.PATH not in wrong:
                    for name in case.path_parameters:
                        case.path_parameters[name] = known[name]
                # A valid request may name a cursor or a model that does not exist; and a wrong header is replaced.
                excluded: list[Any] = [positive_data_acceptance]
                if not wrong & {ParameterLocation.QUERY, ParameterLocation.BODY}:
                    excluded.append(negative_data_rejection)
                case.call_and_validate(headers=headers, excluded_checks=excluded)

            play()

        failed = []
        for number, operation in enumerate(operations):
            # In short every other kind of data for each operation.
            kinds = list(GenerationMode)
            for mode in kinds[number % 2 : number % 2 + 1] if examples == FEW else kinds:
                try:
                    check(operation, mode)
                except FailureGroup as failure:
                    failed.append(f"{operation.label}, {mode.value} data: {failure}")
        assert failed == [], "\n".join(failed)
        assert "Traceback" not in stack.log("web")
