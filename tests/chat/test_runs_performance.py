"""What a message costs the database: a fixed number of statements, and none per token."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from chat import context, ending, generate, runs
from chat.models import Run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

CONTROL = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE SAVEPOINT")


def test_a_message_costs_at_most_18_statements_from_send_to_end(owner, conversation):
    with CaptureQueriesContext(
        connection,
    ) as captured:
        run = runs.start(
            user=owner, conversation_id=conversation.pk, text="Hello", client_id="a"
        ).run
        work = generate.claim(run.pk, 1)
        assert work is not None
        context.build(work)
        outcome = ending.Outcome(status=Run.Status.DONE, text="A reply", finish_reason="stop")
        ending.end(run_id=run.pk, attempt=1, status=Run.Status.RUNNING, seq=5, outcome=outcome)
    statements = [
        query["sql"] for query in captured if not query["sql"].upper().startswith(CONTROL)
    ]
    assert len(statements) <= 18, "\n".join(statements)
