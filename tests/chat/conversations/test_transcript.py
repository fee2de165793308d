from __future__ import annotations

from uuid import uuid4

import pytest
from django.utils import timezone

from chat.conversations import transcript
from chat.models import Conversation, Message, Run
from chat.runs import start
from tests.support.conversations import add_turns, begin, send

pytestmark = pytest.mark.usefixtures("valkey_url")


def texts(excerpt: transcript.Excerpt) -> list[str]:
    return [message.text for message in excerpt.messages]


def test_empty_conversation_has_no_messages(conversation):
    assert transcript.excerpt(conversation) == transcript.Excerpt(
        messages=[], earlier=None, is_past=False, active_run=None
    )


def test_excerpt_is_end_of_path_oldest_first(owner, conversation):
    add_turns(owner, conversation, 2)
    excerpt = transcript.excerpt(conversation)
    assert texts(excerpt) == ["Question 0", "Answer 0", "Question 1", "Answer 1"]
    assert (excerpt.earlier, excerpt.is_past, excerpt.active_run) == (None, False, None)


def test_excerpts_join_without_gap_or_overlap(owner, conversation, monkeypatch):
    monkeypatch.setattr(transcript, "MESSAGES_SHOWN", 4)
    made = add_turns(owner, conversation, 5)
    excerpt = transcript.excerpt(conversation)
    seen = list(excerpt.messages)
    sizes = [len(seen)]
    while excerpt.earlier:
        excerpt = transcript.excerpt(conversation, str(excerpt.earlier))
        assert excerpt.is_past
        seen = [*excerpt.messages, *seen]
        sizes.append(len(excerpt.messages))
    assert seen == made
    assert sizes == [4, 4, 2]


def test_path_that_just_fits_has_nothing_earlier(owner, conversation, monkeypatch):
    monkeypatch.setattr(transcript, "MESSAGES_SHOWN", 4)
    add_turns(owner, conversation, 2)
    assert transcript.excerpt(conversation).earlier is None


def test_active_reply_is_last_message(owner, conversation):
    made = add_turns(owner, conversation, 1)
    run = start.regenerate(user=owner, message_id=made[1].pk, client_id="a").run
    excerpt = transcript.excerpt(conversation)
    assert [message.pk for message in excerpt.messages] == [made[0].pk, run.message_id]
    assert excerpt.active_run == run
    assert excerpt.messages[-1].run == run


def test_excerpt_is_read_from_current_rows(owner, conversation):
    add_turns(owner, conversation, 1)
    read_before = Conversation.objects.get(pk=conversation.pk)
    run = send(owner, conversation)
    assert transcript.excerpt(read_before).active_run == run
    made = add_turns(owner, conversation, 1)  # the path changes, and no run is active
    Run.objects.filter(pk=run.pk).update(status=Run.Status.DONE, ended_at=timezone.now())
    excerpt = transcript.excerpt(read_before)
    assert (excerpt.messages, excerpt.active_run) == (made, None)


def test_id_of_another_conversation_is_ignored(owner, assistant, conversation):
    add_turns(owner, conversation, 1)
    [sent, _] = add_turns(owner, begin(owner, assistant), 1)
    for before in (str(sent.pk), str(uuid4()), "x", ""):
        excerpt = transcript.excerpt(conversation, before)
        assert texts(excerpt) == ["Question 0", "Answer 0"]
        assert not excerpt.is_past
        assert transcript.own_message(conversation, before) is None


def test_own_message_is_one_the_user_wrote(owner, conversation):
    [sent, reply] = add_turns(owner, conversation, 1)
    assert transcript.own_message(conversation, str(sent.pk)) == sent
    assert transcript.own_message(conversation, str(reply.pk)) is None


def test_excerpt_is_one_query_with_runs_and_parts(owner, conversation, django_assert_num_queries):
    for turns in (2, 10):
        add_turns(owner, conversation, turns)
        with django_assert_num_queries(1):
            excerpt = transcript.excerpt(conversation)
        with django_assert_num_queries(0):
            for message in excerpt.messages:
                if message.role == Message.Role.ASSISTANT:
                    assert message.run.status == Run.Status.DONE
                    assert message.ordered_parts == []
    Run.objects.all().delete()
    with django_assert_num_queries(1):
        excerpt = transcript.excerpt(conversation)
        assert not any(hasattr(message, "run") for message in excerpt.messages)
    send(owner, conversation)
    with django_assert_num_queries(1):
        transcript.excerpt(conversation)
