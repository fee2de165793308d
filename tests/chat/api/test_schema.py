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

from accounts import api_keys
from accounts.models import User
from chat.models import Run
from tests.support.conversations import begin, send
from tests.support.people import assistant, owner
from tests.support.stack import Stack

__all__ = ["assistant", "owner"]

VARIABLES = {
    "LIMIT_API_REQUESTS": "100000/minute",
    "LIMIT_MESSAGES": "100000/minute",
    "LIMIT_SEARCHES": "100000/minute",
    "USER_QUEUE_LIMIT": "100000",
    "QUEUE_LIMIT": "100000",
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("valkey_url")
@pytest.mark.parametrize("examples", [3, pytest.param(60, marks=pytest.mark.long)])
def test_generated_requests_get_documented_answers(
    owner: User, assistant: Any, server_folder: Path, examples: int
):
    secret = api_keys.create(owner, api_keys.Terms(name="Test"))[1]
    headers = {"Authorization": f"Bearer {secret}"}
    run = send(owner, begin(owner, assistant, title="Lakes"), "What is a lake?")
    Run.objects.filter(pk=run.pk).update(status="done", ended_at=timezone.now())
    known = {"conversation_id": str(run.conversation_id), "run_id": str(run.pk)}
    with Stack(server_folder, provider_url="http://127.0.0.1:9", environment=VARIABLES) as stack:
        stack.start("web")
        schema = schemathesis.openapi.from_url(f"{stack.base}/api/v1/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) >= 14

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
            def play(case: Case, is_known: int) -> None:
                for name in case.path_parameters:
                    if is_known:
                        case.path_parameters[name] = known[name]
                case.call_and_validate(headers=headers)

            play()

        for operation in operations:
            for mode in GenerationMode:
                check(operation, mode)
        assert "Traceback" not in stack.log("web")
