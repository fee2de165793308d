"""What the model is told, from the tree of messages."""

from __future__ import annotations

import pytest

from chat.conversations import prompt_builder
from chat.llm.tokens import count_tokens
from chat.models import Message, Run
from chat.runs import start
from tests.chat.runs.test_start import ended
from tests.support.conversations import client_id, send

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def answer(run: Run, text: str) -> Run:
    """End a run with a text."""
    ended(run)
    Message.objects.filter(pk=run.message_id).update(text=text)
    run.conversation.refresh_from_db()
    return run


def build(run: Run, **options) -> prompt_builder.Prompt:
    return prompt_builder.build(
        Run.objects.select_related("assistant", "model", "message").get(pk=run.pk), **options
    )


def told(run: Run, **options) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in build(run, **options).messages]


def test_the_model_is_told_the_path_to_the_message_it_answers(owner, conversation):
    answer(send(owner, conversation, "One"), "Two")
    conversation.refresh_from_db()
    run = send(owner, conversation, "Three")
    assert told(run) == [
        ("system", "Be brief."),
        ("user", "One"),
        ("assistant", "Two"),
        ("user", "Three"),
    ]


def test_other_branches_are_left_out(owner, conversation):
    first = answer(send(owner, conversation, "Old"), "Old reply")
    asked = first.message.parent
    run = start.edit(user=owner, message_id=asked.pk, text="New", client_id=client_id()).run
    assert told(run) == [("system", "Be brief."), ("user", "New")]


def test_a_reply_made_again_does_not_see_the_first_one(owner, conversation):
    first = answer(send(owner, conversation, "Ask"), "First reply")
    run = start.regenerate(user=owner, message_id=first.message_id, client_id=client_id()).run
    assert told(run) == [("system", "Be brief."), ("user", "Ask")]


def test_empty_replies_are_left_out_and_roles_alternate(owner, conversation):
    answer(send(owner, conversation, "One"), "")
    conversation.refresh_from_db()
    run = send(owner, conversation, "Two")
    assert told(run) == [("system", "Be brief."), ("user", "One\n\nTwo")]


def test_the_newest_messages_are_kept_when_the_window_is_small(owner, conversation, assistant):
    assistant.model.context_tokens, assistant.model.max_output_tokens = 600, 200
    assistant.model.save()
    for number in range(10):
        answer(send(owner, conversation, f"Question {number} " + "x" * 100), "Reply " + "y" * 100)
        conversation.refresh_from_db()
    run = send(owner, conversation, "Last")
    prompt = build(run)
    contents = [message["content"] for message in prompt.messages]
    assert contents[0] == "Be brief."
    assert contents[-1] == "Last"
    assert "Question 9" in contents[-3]
    assert not any("Question 0" in content for content in contents)
    assert prompt.tokens + prompt.max_tokens <= 600
    assert len(told(run, shrink=0.3)) < len(contents)


def test_the_message_that_is_answered_is_told_even_if_it_is_too_long(
    owner, conversation, assistant
):
    assistant.model.context_tokens, assistant.model.max_output_tokens = 600, 200
    assistant.model.save()
    run = send(owner, conversation, "z" * 5_000)
    prompt = build(run)
    assert prompt.messages[-1]["content"] == "z" * 5_000
    assert prompt.max_tokens == prompt_builder.SMALLEST_REPLY


@pytest.mark.parametrize(("text", "least"), [("", 1), ("word " * 100, 100), ("日本語" * 10, 30)])
def test_tokens_are_counted_rather_too_high(text, least):
    assert count_tokens(text) >= least
