"""The context gauge: what a page shows of it agrees with the prompt that is sent next."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from chat import access
from chat.conversations import context, prompt_builder
from chat.conversations.transcript import excerpt
from chat.generation import generate
from chat.models import LanguageModel, Message
from tests.support.conversations import add_turns, send

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

LINE = "data-context-line"
QUIET = '<meter class="context-meter"'


@pytest.mark.parametrize("turns", [20, 70])  # on one page, and on two
def test_line_is_above_the_oldest_sent_message(owner, conversation, turns):
    messages = add_turns(owner, conversation, turns)
    chat = access.conversation(owner, conversation.pk)
    model = chat.chosen_model
    path = chat.get_absolute_url()
    page = Client()
    page.force_login(owner)
    whole = context.measure(chat, model)
    assert (whole.first, whole.is_quiet) == (None, True)
    assert whole.room == model.context_tokens - model.max_output_tokens
    html = page.get(path).content.decode()
    assert QUIET not in html
    assert html.count(LINE) == 1  # in the template for the script

    Message.objects.filter(role="assistant").update(text="word " * 120)
    LanguageModel.objects.filter(pk=model.pk).update(context_tokens=3_000, max_output_tokens=500)
    chat = access.conversation(owner, conversation.pk)
    found = context.measure(chat, chat.chosen_model)
    assert found.percent == 100
    part = excerpt(chat)
    with CaptureQueriesContext(connection) as captured:  # the same by the messages of the page
        assert context.measure(chat, chat.chosen_model, part.messages) == found
    assert len(captured) == 0
    html = page.get(path).content.decode()
    assert "Older messages left out" in html
    assert html.count(LINE) == 2
    begin = html.index(LINE)
    assert html.rindex("<li ", 0, begin) == html.index(
        f'<li class="message own" id="m-{found.first}"'
    )
    answer = page.get(f"{path}context/").json()
    assert (answer["first"], answer["tokens"], answer["room"]) == (
        str(found.first),
        found.tokens,
        found.room,
    )

    # The next prompt has the same messages, besides the new one.
    run = send(owner, conversation, "?")
    work = generate.claim(run.pk, 1)
    assert work is not None
    sent = [one["content"] for one in prompt_builder.build(work).messages if one["role"] == "user"]
    # The new message takes a little of the room.
    [index] = [at for at, one in enumerate(messages) if one.pk == found.first]
    assert sent[0] in (messages[index].text, messages[index + 2].text)


def test_context_is_of_its_owner_and_the_chosen_model(owner, stranger, conversation):
    add_turns(owner, conversation, 3)
    path = f"{conversation.get_absolute_url()}context/"
    page = Client()
    page.force_login(owner)
    small = LanguageModel.objects.create(
        name="Small", provider_model="stub-model", context_tokens=600, max_output_tokens=100
    )
    before = page.get(path).json()
    after = page.get(path, {"model": small.pk}).json()
    assert (before["room"], after["room"]) == (6_000, 500)
    assert before["tokens"] == after["tokens"]
    json = {"Accept": "application/json"}
    assert page.get(path, {"model": "9" * 30}, headers=json).status_code == 409
    visitor = Client()
    visitor.force_login(stranger)
    assert visitor.get(path, headers=json).status_code == 404


def test_pages_measure_the_context_by_constant_queries(owner, conversation):
    page = Client()
    page.force_login(owner)
    path = conversation.get_absolute_url()

    def statements() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert page.get(path).status_code == 200
        return len(captured)

    LanguageModel.objects.update(context_tokens=100_000)
    add_turns(owner, conversation, 60)
    few = statements()
    Message.objects.update(parent=None)
    conversation.refresh_from_db()
    add_turns(owner, conversation, 120)
    assert statements() == few
