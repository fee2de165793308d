"""The database statements of a message: a fixed number, and none per token."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from chat import protocol
from chat.conversations import prompt_builder
from chat.generation import generate
from chat.models import LanguageModel, Provider, Run
from chat.runs import finish
from tests.support.conversations import send

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

CONTROL = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE SAVEPOINT", "SET LOCAL")


def test_message_takes_at_most_26_statements(owner, conversation):
    with CaptureQueriesContext(connection) as captured:
        run = send(owner, conversation)
        work = generate.claim(run.pk, 1)
        assert work is not None
        prompt_builder.build(work)
        usage = protocol.Usage(prompt_tokens=20, completion_tokens=5)
        outcome = finish.Outcome(
            status=Run.Status.DONE, text="A reply", finish_reason="stop", usage=usage
        )
        finish.end(run_id=run.pk, attempt=1, status=Run.Status.RUNNING, seq=5, outcome=outcome)
    statements = [
        query["sql"] for query in captured if not query["sql"].upper().startswith(CONTROL)
    ]
    assert len(statements) <= 26, "\n".join(statements)


def test_message_reads_no_parts_of_its_reply(owner, conversation):
    with CaptureQueriesContext(connection) as captured:
        send(owner, conversation)
    assert [query["sql"] for query in captured if "chat_messagepart" in query["sql"]] == []


def test_providers_add_no_statement_to_a_message(owner, conversation):
    """Their rows are read by the statements that lock the conversation and claim the run."""

    def statements() -> list[str]:
        Run.objects.all().delete()
        with CaptureQueriesContext(connection) as captured:
            send(owner, conversation)
            generate.claim(Run.objects.get().pk, 1)
        found = [query["sql"].strip() for query in captured]
        return [sql for sql in found if not sql.upper().startswith(CONTROL)]

    statements()  # opens the account
    before = statements()
    model = conversation.assistant.model
    model.provider = Provider.objects.create(name="Environment")
    model.fallback = LanguageModel.objects.create(name="Spare", provider_model="spare")
    model.save()
    after = statements()
    assert len(after) == len(before)
    assert sum(sql.startswith("UPDATE chat_run") for sql in after) == 1
