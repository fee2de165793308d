"""Several providers at once: each run asks that of its model, as the row is at its claim."""

from __future__ import annotations

import asyncio

import pytest
from django.db import connection

from chat.errors import ChatError
from chat.generation import generate
from chat.models import Assistant, LanguageModel, Provider, Run
from chatproject.lib import db
from tests.support.conversations import begin, send
from tests.support.fake_llm import reply_text
from tests.support.runs import fresh, send_many

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker_loop")]


@pytest.fixture
def second(assistant, other) -> Assistant:
    """An assistant whose model has the same names, at another provider."""
    provider = Provider(name="Second", base_url=other.url)
    provider.key = "sk-second"
    provider.save()
    model = LanguageModel.objects.create(
        name="Stub", provider_model="stub-model", provider=provider
    )
    return Assistant.objects.create(slug="second", name="Second", model=model, position=1)


async def test_two_providers_answer_at_once(owner, assistant, second, provider, other):
    runs: list[Run] = []
    for one in (assistant, second) * 3:
        runs += await db.run(send_many, owner, one, 1, "[[tokens=4 rate=0]]")
    await asyncio.gather(*(generate.run(run.pk, 1) for run in runs))
    ended = [await db.run(fresh, run.pk) for run in runs]
    assert {(run.status, run.message.text) for run in ended} == {
        ("done", reply_text(4, "[[tokens=4 rate=0]]"))
    }
    assert (len(provider.requests), len(other.requests)) == (3, 3)
    assert {headers["Authorization"] for headers in other.headers} == {"Bearer sk-second"}
    assert {run.provider_id for run in ended} == {None, second.model.provider_id}


async def test_changed_row_holds_for_the_next_run(owner, second, provider, other):
    held = "[[tokens=4 rate=0 hold=2 key=held]]"
    (first,) = await db.run(send_many, owner, second, 1, held)
    generating = asyncio.create_task(generate.run(first.pk, 1))
    await asyncio.to_thread(other.wait, held=1)

    def move() -> None:
        row = Provider.objects.get()
        row.base_url, row.key = provider.url, "sk-rotated"
        row.save()

    await db.run(move)
    (next_one,) = await db.run(send_many, owner, second, 1, "[[tokens=4 rate=0]]")
    await generate.run(next_one.pk, 1)
    assert provider.headers[0]["Authorization"] == "Bearer sk-rotated"
    await asyncio.to_thread(other.release, "held")
    await asyncio.wait_for(generating, 10)
    run = await db.run(fresh, first.pk)
    assert (run.status, run.message.text) == ("done", reply_text(4, held))
    assert len(other.requests) == 1


async def test_deleted_provider_finishes_its_reply(owner, assistant, second, other):
    """Staff switch a provider off, give its model to another and delete it while it streams."""
    text = "[[tokens=4 rate=0 hold=2 key=held]]"
    (run,) = await db.run(send_many, owner, second, 1, text)
    generating = asyncio.create_task(generate.run(run.pk, 1))
    await asyncio.to_thread(other.wait, held=1)

    def delete() -> None:
        Provider.objects.update(enabled=False)
        LanguageModel.objects.filter(provider__name="Second").update(provider=None, name="Moved")
        Provider.objects.get().delete()

    await db.run(delete)
    await asyncio.to_thread(other.release, "held")
    await asyncio.wait_for(generating, 10)
    ended = await db.run(fresh, run.pk)
    assert (ended.status, ended.message.text) == ("done", reply_text(4, text))
    assert (ended.provider_id, ended.cost > 0) == (None, True)


async def test_model_without_provider_is_the_environments(owner, assistant, provider):
    """As the previous release inserts it, during a rolling upgrade."""
    environment = await db.run(lambda: Provider.objects.create(name="Environment"))

    def insert() -> Assistant:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO chat_languagemodel (name, provider_model, context_tokens,"
                " max_output_tokens, enabled, created_at)"
                " VALUES ('Old', 'stub-model', 8000, 1000, true, now()) RETURNING id"
            )
            (pk,) = cursor.fetchone()
        return Assistant.objects.create(slug="old", name="Old", model_id=pk)

    (run,) = await db.run(send_many, owner, await db.run(insert), 1)
    await generate.run(run.pk, 1)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.provider_id) == ("done", environment.pk)
    assert len(provider.requests) == 1


def test_chat_with_disabled_provider_refuses_messages(owner, second):
    conversation = begin(owner, second)
    Provider.objects.update(enabled=False)
    with pytest.raises(ChatError) as refused:
        send(owner, conversation)
    assert refused.value.code == "model_unavailable"
    assert f"The model {second.model} is not available" in refused.value.message
    assert not Run.objects.exists()


async def test_worker_starts_with_an_unusable_environment(settings, caplog):
    """Its other providers may be usable."""
    settings.OPENAI_BASE_URL = "http://127.0.0.1:port/v1"
    await generate.open_shared()
    assert "the port of the base URL is invalid" in caplog.text
