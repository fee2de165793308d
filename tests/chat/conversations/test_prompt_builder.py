"""The prompt of a run, built from the tree of messages."""

from __future__ import annotations

import pytest

from accounts.models import User
from chat.conversations import prompt_builder
from chat.llm.tokens import count_tokens
from chat.models import Conversation, LanguageModel, Run
from chat.runs import start
from tests.support.conversations import client_id, send
from tests.support.runs import mark_done

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def add_turn(owner: User, conversation: Conversation, question: str, reply: str) -> Run:
    """Send a message and end its run with a reply."""
    run = mark_done(send(owner, conversation, question), reply)
    conversation.refresh_from_db()
    return run


def build(run: Run, **options) -> prompt_builder.Prompt:
    return prompt_builder.build(
        Run.objects.select_related("assistant", "model", "message").get(pk=run.pk), **options
    )


def contents(run: Run, **options) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in build(run, **options).messages]


def test_prompt_is_path_to_message(owner, conversation):
    add_turn(owner, conversation, "One", "Two")
    run = send(owner, conversation, "Three")
    assert contents(run) == [
        ("system", "Be brief."),
        ("user", "One"),
        ("assistant", "Two"),
        ("user", "Three"),
    ]


def test_other_branches_are_left_out(owner, conversation):
    asked = add_turn(owner, conversation, "Old", "Old reply").message.parent
    run = start.edit(user=owner, message_id=asked.pk, text="New", client_id=client_id()).run
    assert contents(run) == [("system", "Be brief."), ("user", "New")]


def test_regenerated_reply_does_not_see_first(owner, conversation):
    first = add_turn(owner, conversation, "Ask", "First reply")
    run = start.regenerate(user=owner, message_id=first.message_id, client_id=client_id()).run
    assert contents(run) == [("system", "Be brief."), ("user", "Ask")]


def test_messages_around_empty_reply_are_joined(owner, conversation):
    add_turn(owner, conversation, "One", "")
    run = send(owner, conversation, "Two")
    assert contents(run) == [("system", "Be brief."), ("user", "One\n\nTwo")]


@pytest.fixture
def small_window(assistant) -> None:
    """Let the model have room for a few messages only."""
    LanguageModel.objects.update(context_tokens=600, max_output_tokens=200)
    assistant.model.refresh_from_db()


@pytest.mark.usefixtures("small_window")
def test_small_window_keeps_newest_messages(owner, conversation):
    for number in range(10):
        add_turn(owner, conversation, f"Question {number} " + "x" * 100, "Reply " + "y" * 100)
    run = send(owner, conversation, "Last")
    prompt = build(run)
    texts = [message["content"] for message in prompt.messages]
    assert texts[0] == "Be brief."
    assert texts[-1] == "Last"
    assert "Question 9" in texts[-3]
    assert not any("Question 0" in text for text in texts)
    assert prompt.tokens + prompt.max_tokens <= 600
    assert len(contents(run, within=prompt.size // 2)) < len(texts)


@pytest.mark.usefixtures("small_window")
def test_shortened_prompt_begins_with_user(owner, conversation):
    for number in range(3):
        add_turn(owner, conversation, f"Question {number}", "Reply " * 20)
    run = send(owner, conversation, "Last")
    whole = build(run)
    sizes = {}
    for within in range(1, whole.size + 1):
        prompt = build(run, within=within)
        sizes[prompt.size] = prompt
        assert [message["role"] for message in prompt.messages[:2]] == ["system", "user"]
        assert prompt.messages[-1]["content"] == "Last"
        assert prompt.is_single is (len(prompt.messages) == 2)
    assert len(sizes) == 4
    assert sizes[whole.size] == whole
    assert build(run, within=whole.size - 1).size < whole.size


def test_learned_limit_shortens_the_reply(owner, conversation):
    run = send(owner, conversation)
    LanguageModel.objects.update(quirks={"longest reply": {"value": "1000", "learned": ""}})
    assert build(run).max_tokens == 1000


@pytest.mark.usefixtures("small_window")
def test_new_message_is_kept_whatever_its_length(owner, conversation):
    prompt = build(send(owner, conversation, "z" * 5_000))
    assert prompt.messages[-1]["content"] == "z" * 5_000
    assert prompt.max_tokens == prompt_builder.SMALLEST_REPLY


@pytest.mark.parametrize(("text", "least"), [("", 1), ("word " * 100, 100), ("日本語" * 10, 30)])
def test_token_counts_are_upper_bounds(text, least):
    assert count_tokens(text) >= least


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("<think>plan</think>Answer", "Answer"),
        ("plan\n</think>\n\nAnswer", "Answer"),
        ("Write `<think>a</think>` first", "Write `<think>a</think>` first"),
    ],
)
def test_thoughts_of_older_replies_are_not_sent(owner, conversation, text, sent):
    """Replies that were stored before thoughts in tags were separated from the text."""
    add_turn(owner, conversation, text, text)
    run = send(owner, conversation, "And then?")
    assert contents(run)[1:] == [("user", text), ("assistant", sent), ("user", "And then?")]
