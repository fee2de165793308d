"""Branches: siblings, the newest leaf, choosing a branch, and replies that fail to replace another."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from uuid import UUID, uuid4

import pytest

from chat.conversations import branches, transcript
from chat.errors import ChatError
from chat.models import Conversation, Message, MessagePart, Run, new_id
from chat.runs import finish, start
from chat.runs.stop import stop_run
from tests.support.conversations import add_turns, begin, client_id, send
from tests.support.runs import fresh, mark_running
from tests.support.threads import race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def regenerate(owner, message: Message) -> Run:
    return start.regenerate(user=owner, message_id=message.pk, client_id=client_id()).run


def end(run: Run, status: str, text: str = "") -> None:
    """End a queued run like a worker."""
    mark_running(run)
    outcome = finish.Outcome(status=Run.Status(status), text=text)
    if status == "failed":
        outcome = finish.failed("provider_error", text=text)
    assert finish.end(run_id=run.pk, attempt=1, status=Run.Status.RUNNING, seq=9, outcome=outcome)


def leaf(conversation: Conversation) -> UUID | None:
    return Conversation.objects.get(pk=conversation.pk).leaf_id


def places(conversation: Conversation) -> list[tuple[int, int] | None]:
    """The place and number of siblings of each shown message; None for one without siblings."""
    current = Conversation.objects.get(pk=conversation.pk)
    return [
        (one.siblings.position, one.siblings.count) if one.siblings else None
        for one in transcript.excerpt(current).messages
    ]


def test_excerpt_has_place_among_siblings(owner, conversation, django_assert_num_queries):
    made = add_turns(owner, conversation, 2)
    assert places(conversation) == [None] * 4
    end(regenerate(owner, made[3]), "done", "Another")
    edited = start.edit(user=owner, message_id=made[0].pk, text="Else", client_id="e").run
    end(edited, "done", "Other")
    assert places(conversation) == [(2, 2), None]
    branches.select(user=owner, message_id=made[0].pk)
    assert places(conversation) == [(1, 2), None, None, (2, 2)]
    current = Conversation.objects.get(pk=conversation.pk)
    with django_assert_num_queries(1):
        excerpt = transcript.excerpt(current)
    siblings = excerpt.messages[3].siblings
    assert siblings is not None
    assert (siblings.previous, siblings.next) == (made[3].pk, None)


def test_selected_branch_ends_with_newest_leaf(owner, conversation):
    made = add_turns(owner, conversation, 1)
    first = send(owner, conversation, "First way")
    end(first, "done", "One")
    edited = start.edit(
        user=owner, message_id=first.message.parent.pk, text="Second way", client_id="e"
    ).run
    end(edited, "done", "Two")
    assert leaf(conversation) == edited.message_id
    selected = branches.select(user=owner, message_id=first.message.parent.pk)
    assert (selected.leaf, leaf(conversation)) == (first.message_id, first.message_id)
    assert branches.select(user=owner, message_id=made[0].pk).leaf == edited.message_id
    assert Message.objects.count() == 6


def test_failed_replacement_is_no_leaf_of_branch(owner, conversation):
    [sent, reply] = add_turns(owner, conversation, 1)
    failed = regenerate(owner, reply)
    end(failed, "failed")
    assert branches.newest_leaf(sent.pk) == reply.pk
    assert branches.newest_leaf(failed.message_id) == failed.message_id
    branches.select(user=owner, message_id=failed.message_id)
    follow_up = send(owner, conversation, "And yet")
    assert branches.newest_leaf(sent.pk) == follow_up.message_id


@pytest.mark.parametrize(
    ("status", "text", "moves"),
    [
        ("done", "New", True),
        ("stopped", "New", True),
        ("stopped", "", False),
        ("done", "", False),
        ("failed", "", False),
        ("failed", "Half", False),
    ],
)
@pytest.mark.parametrize("turn", [0, 1], ids=["middle", "end"])
def test_leaf_moves_only_to_finished_replacement(owner, conversation, turn, status, text, moves):
    made = add_turns(owner, conversation, 2)
    replaced = made[2 * turn + 1]
    run = regenerate(owner, replaced)
    shown = transcript.excerpt(conversation).messages
    assert [one.pk for one in shown] == [*[one.pk for one in made[: 2 * turn + 1]], run.message_id]
    end(run, status, text)
    assert leaf(conversation) == (run.message_id if moves else made[3].pk)
    excerpt = transcript.excerpt(Conversation.objects.get(pk=conversation.pk))
    failed = [one.failed_sibling and one.failed_sibling.pk for one in excerpt.messages]
    if moves:
        assert not any(failed)
    else:
        assert failed.index(run.message_id) == 2 * turn + 1
        assert len([*filter(None, failed)]) == 1
        send(owner, conversation, "Never mind")
        current = Conversation.objects.get(pk=conversation.pk)
        assert not any(one.failed_sibling for one in transcript.excerpt(current).messages)


def test_stopped_replacement_leaves_old_reply(owner, conversation):
    [_, reply] = add_turns(owner, conversation, 1)
    run = regenerate(owner, reply)
    stop_run(user=owner, run_id=run.pk)
    assert fresh(run.pk).status == "stopped"
    assert leaf(conversation) == reply.pk


def test_branch_chosen_during_run_stays_shown(owner, conversation):
    made = add_turns(owner, conversation, 2)
    run = regenerate(owner, made[3])
    branches.select(user=owner, message_id=made[3].pk)
    excerpt = transcript.excerpt(Conversation.objects.get(pk=conversation.pk))
    assert excerpt.messages[-1] == made[3]
    assert (excerpt.active_run, excerpt.runs) == (None, [run.pk])
    with pytest.raises(ChatError, match="run_active:"):
        send(owner, conversation)
    end(run, "done", "New")
    assert leaf(conversation) == made[3].pk
    assert places(conversation)[-1] == (1, 2)
    assert fresh(run.pk).message.text == "New"


def test_branch_of_stranger_is_not_found(owner, stranger, conversation):
    [_, reply] = add_turns(owner, conversation, 1)
    for user, message_id in ((stranger, reply.pk), (owner, uuid4())):
        with pytest.raises(ChatError, match="not_found:"):
            branches.select(user=user, message_id=message_id)


def test_link_to_message_shows_its_branch(owner, assistant, conversation, monkeypatch):
    monkeypatch.setattr(transcript, "MESSAGES_SHOWN", 4)
    made = add_turns(owner, conversation, 5)
    edited = start.edit(user=owner, message_id=made[2].pk, text="Else", client_id="e").run
    end(edited, "done", "Other")
    current = Conversation.objects.get(pk=conversation.pk)
    # In the shown part, in an earlier one, in another branch.
    shown = transcript.excerpt(current, message=str(edited.message_id))
    assert (shown.is_past, shown.branch) == (False, None)
    linked = transcript.excerpt(current, message=str(made[4].pk))
    assert [made.index(one) for one in linked.messages] == [3, 4, 5, 6]
    assert (linked.is_past, linked.branch) == (True, made[4].pk)
    branches.select(user=owner, message_id=made[4].pk)
    current.refresh_from_db()
    linked = transcript.excerpt(current, message=str(made[1].pk))
    assert linked.messages == made[0:4]
    assert (linked.is_past, linked.branch) == (True, None)
    assert leaf(conversation) == made[9].pk  # reading changes nothing
    [foreign, _] = add_turns(owner, begin(owner, assistant), 1)
    for unknown in (str(foreign.pk), "x"):
        assert transcript.excerpt(current, message=unknown).messages == made[6:]


def test_queries_of_branch_do_not_grow(owner, assistant, django_assert_num_queries):
    for turns in (2, 4):
        conversation = begin(owner, assistant)
        made = add_turns(owner, conversation, turns)
        with django_assert_num_queries(6):
            branches.select(user=owner, message_id=made[0].pk)


def test_fork_copies_path_without_runs(owner, stranger, conversation):
    made = add_turns(owner, conversation, 3)
    Conversation.objects.filter(pk=conversation.pk).update(title="T" * 100)
    MessagePart.objects.create(message=made[3], position=0, kind="reasoning", data={"text": "Hm"})
    end(regenerate(owner, made[3]), "done", "Elsewhere")
    copy = branches.fork(user=owner, message_id=made[4].pk, client_id="f")
    shown = transcript.excerpt(copy).messages
    fields = "role", "text", "html", "status"
    assert [[getattr(one, name) for name in fields] for one in shown] == [
        [getattr(one, name) for name in fields] for one in made[:5]
    ]
    origin = {"model": "Stub", "finish_reason": ""}
    assert [part.data for part in shown[3].ordered_parts] == [{"text": "Hm"}, origin]
    assert shown[3].origin_model == "Stub"
    again = branches.fork(user=owner, message_id=shown[3].pk, client_id="again")
    assert again.leaf is not None
    assert [part.data for part in again.leaf.ordered_parts] == [{"text": "Hm"}, origin]
    assert not {one.pk for one in shown} & {one.pk for one in made}
    assert copy.title == "T" * 93 + " (copy)"
    assert (copy.owner, copy.leaf_id, copy.titled_by) == (owner, shown[-1].pk, "person")
    assert not copy.runs.exists()
    assert branches.fork(user=owner, message_id=made[4].pk, client_id="f") == copy
    assert copy.messages.count() == 5
    run = send(owner, copy, "Go on")
    assert run.message.parent is not None
    assert run.message.parent.parent_id == shown[-1].pk
    with pytest.raises(ChatError, match="run_active:"):
        branches.fork(user=owner, message_id=run.message_id, client_id="g")
    with pytest.raises(ChatError, match="not_found:"):
        branches.fork(user=stranger, message_id=made[4].pk, client_id="f")


def test_message_at_end_of_fork_is_answered(owner, stranger, conversation):
    made = add_turns(owner, conversation, 2)
    copy = branches.fork(user=owner, message_id=made[2].pk, client_id="f")
    assert copy.leaf is not None
    assert (copy.leaf.role, copy.leaf.text) == ("user", made[2].text)
    with pytest.raises(ChatError, match="not_found:"):
        regenerate(stranger, copy.leaf)
    run = regenerate(owner, copy.leaf)
    end(run, "done", "The reply")
    assert leaf(copy) == run.message_id
    assert places(copy) == [None] * 4


def test_fork_is_bounded(owner, conversation, django_assert_num_queries):
    made = add_turns(owner, conversation, 3)
    for message in (made[1], made[5]):
        with django_assert_num_queries(7):
            branches.fork(user=owner, message_id=message.pk, client_id=client_id())
    rest = [
        Message(id=new_id(), conversation=conversation, role="assistant", text="More")
        for _ in range(branches.COPY_MAX_MESSAGES - 5)
    ]
    for parent, message in pairwise([made[5], *rest]):
        message.parent = parent
    Message.objects.bulk_create(rest)
    with pytest.raises(ChatError, match="limit_reached:"):
        branches.fork(user=owner, message_id=rest[-1].pk, client_id=client_id())
    longest = branches.fork(user=owner, message_id=rest[-2].pk, client_id=client_id())
    assert longest.messages.count() == branches.COPY_MAX_MESSAGES


def test_ten_concurrent_forks_make_one_copy(owner, conversation):
    [_, reply] = add_turns(owner, conversation, 1)
    copies = race([partial(branches.fork, user=owner, message_id=reply.pk, client_id="f")] * 10)
    assert len({copy.pk for copy in copies}) == 1
    assert Conversation.objects.count() == 2
