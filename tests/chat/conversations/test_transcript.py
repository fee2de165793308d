from __future__ import annotations

from uuid import uuid4

import pytest
from django.utils import timezone

from accounts.models import User
from chat.conversations import transcript
from chat.models import Assistant, Conversation, Message, Run
from chat.runs import start
from tests.support.conversations import begin, send, talk

pytestmark = pytest.mark.usefixtures("valkey_url")


def texts(part: transcript.Excerpt) -> list[str]:
    return [message.text for message in part.messages]


def test_an_empty_conversation_has_no_messages(conversation: Conversation):
    assert transcript.excerpt(conversation) == transcript.Excerpt(
        messages=[], earlier=None, is_past=False, active_run=None
    )


def test_a_part_is_the_end_of_the_path_oldest_first(owner: User, conversation: Conversation):
    talk(owner, conversation, 2)
    part = transcript.excerpt(conversation)
    assert texts(part) == ["Question 0", "Answer 0", "Question 1", "Answer 1"]
    assert (part.earlier, part.is_past, part.active_run) == (None, False, None)


def test_parts_meet_without_a_gap_or_an_overlap(
    owner: User, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transcript, "MESSAGES_SHOWN", 4)
    made = talk(owner, conversation, 5)
    part = transcript.excerpt(conversation)
    seen = list(part.messages)
    sizes = [len(seen)]
    while part.earlier:
        part = transcript.excerpt(conversation, str(part.earlier))
        assert part.is_past
        seen = [*part.messages, *seen]
        sizes.append(len(part.messages))
    assert seen == made
    assert sizes == [4, 4, 2]


def test_a_path_that_just_fits_has_nothing_earlier(
    owner: User, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transcript, "MESSAGES_SHOWN", 4)
    talk(owner, conversation, 2)
    assert transcript.excerpt(conversation).earlier is None


def test_a_reply_that_is_being_made_is_the_end(owner: User, conversation: Conversation):
    made = talk(owner, conversation, 1)
    run = start.regenerate(user=owner, message_id=made[1].pk, client_id="a").run
    part = transcript.excerpt(conversation)
    assert [message.pk for message in part.messages] == [made[0].pk, run.message_id]
    assert part.active_run == run
    assert part.messages[-1].run == run


def test_a_part_is_of_the_moment_it_is_read_in(owner: User, conversation: Conversation):
    talk(owner, conversation, 1)
    read_before = Conversation.objects.get(pk=conversation.pk)
    run = send(owner, conversation)
    assert transcript.excerpt(read_before).active_run == run
    made = talk(owner, conversation, 1)  # in the meantime it is another path, and nothing runs
    Run.objects.filter(pk=run.pk).update(status=Run.Status.DONE, ended_at=timezone.now())
    part = transcript.excerpt(read_before)
    assert (part.messages, part.active_run) == (made, None)


def test_an_id_of_another_conversation_counts_as_none(
    owner: User, assistant: Assistant, conversation: Conversation
):
    talk(owner, conversation, 1)
    [sent, _] = talk(owner, begin(owner, assistant), 1)
    for before in (str(sent.pk), str(uuid4()), "x", ""):
        part = transcript.excerpt(conversation, before)
        assert texts(part) == ["Question 0", "Answer 0"]
        assert not part.is_past
        assert transcript.own_message(conversation, before) is None


def test_ones_own_messages_are_those_that_one_wrote(owner: User, conversation: Conversation):
    [sent, reply] = talk(owner, conversation, 1)
    assert transcript.own_message(conversation, str(sent.pk)) == sent
    assert transcript.own_message(conversation, str(reply.pk)) is None


def test_a_part_is_one_query_whatever_its_length_and_replies_have_all_at_hand(
    owner: User, conversation: Conversation, django_assert_num_queries
):
    for turns in (2, 10):
        talk(owner, conversation, turns)
        with django_assert_num_queries(1):
            part = transcript.excerpt(conversation)
        with django_assert_num_queries(0):
            for message in part.messages:
                if message.role == Message.Role.ASSISTANT:
                    assert message.run.status == Run.Status.DONE
                    assert message.ordered_parts == []
    Run.objects.all().delete()
    with django_assert_num_queries(1):
        part = transcript.excerpt(conversation)
        assert not any(hasattr(message, "run") for message in part.messages)
    send(owner, conversation)
    with django_assert_num_queries(1):
        transcript.excerpt(conversation)
