"""The socket: frames and refusals of the protocol, and following a run from any event on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

import msgspec
import pytest

from chat import errors, protocol
from chat.conversations import sharing
from chat.generation import generate
from chat.models import Conversation, ConversationShare, LanguageModel, Message, Run
from chat.rendering.document import to_html
from chat.rendering.message import message_html
from chat.runs import start
from chat.runs.stop import stop_run
from chat.streaming import groups
from chat.streaming import log as run_log
from chat.web import consumer, outgoing, run_follower
from chatproject.lib import db
from chatproject.lib.db import limits
from chatproject.lib.pubsub.layer import publish
from tests.support.conversations import add_turns, begin, send
from tests.support.fake_llm import reply_text
from tests.support.fake_llm.replies import SAMPLE
from tests.support.locks import unreadable
from tests.support.runs import add_to_log, delta, generate_until_hold, mark_done, send_running
from tests.support.sockets import Closed, open_tab

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("socket_loop", "worker_loop"),
]

SEND = {"type": "chat.send", "client_id": "a", "text": "[[tokens=5 rate=0]]"}


async def test_message_gets_run_and_whole_reply(owner, conversation):
    text = "[[tokens=30 rate=300]]"
    async with open_tab(owner) as tab:
        await tab.send(**{**SEND, "text": text}, conversation=str(conversation.pk))
        queued = await tab.until("run.queued")
        assert queued["client_id"] == "a"
        assert queued["conversation"] == str(conversation.pk)
        assert queued["position"] == 1
        assert "[[tokens=30" in queued["sent"]["html"]
        await generate.run(UUID(queued["run"]), 1)
        end = await tab.end()
    assert end["type"] == "run.done"
    assert end["text"] == tab.text() == reply_text(30, text)
    assert end["html"] == await db.run(rendered, end["reply"])
    assert tab.seqs() == list(range(1, len(tab.seqs()) + 1))
    assert end["usage"]["completion_tokens"] == 30


async def test_message_without_conversation_begins_one(owner, assistant):
    async with open_tab(owner) as tab:
        await tab.send(**SEND)
        queued = await tab.until("run.queued")
    conversation = await db.run(Conversation.objects.get)
    assert queued["conversation"] == str(conversation.pk)


async def test_only_own_tabs_receive_run(owner, stranger, conversation):
    async with open_tab(owner) as tab, open_tab(owner) as other, open_tab(stranger) as elsewhere:
        await tab.send(**SEND, conversation=str(conversation.pk))
        queued = await other.until("run.queued")
        assert queued == await tab.until("run.queued")
        await other.send(type="resume", run=queued["run"], after=0)
        await generate.run(UUID(queued["run"]), 1)
        assert (await other.end())["text"] == (await tab.end())["text"]
        assert other.text() == tab.text()
        assert await elsewhere.is_silent()
        assert [event["type"] for event in elsewhere.received] == ["pong"]
        assert [event["type"] for event in tab.received].count("run.queued") == 1


async def test_repeated_frame_has_one_effect(owner, conversation):
    frame = {**SEND, "conversation": str(conversation.pk)}
    async with open_tab(owner) as tab:
        await tab.send(**frame)
        first = await tab.until("run.queued")
        await tab.send(**frame)
        again = await tab.until("run.queued")
        assert first["run"] == again["run"]
        await generate.run(UUID(first["run"]), 1)
        await tab.end()
    assert await db.run(Message.objects.count) == 2


# --- Following --------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1])
async def test_late_tab_receives_events_after_its_cursor(owner, conversation, provider, after):
    """Event 1 is `run.started`, so both cursors are before the text."""
    text = "[[tokens=40 rate=0 hold=20 key=late]]"
    run = await db.run(send, owner, conversation, text)
    generating = await generate_until_hold(run, provider)
    async with open_tab(owner) as tab:
        await tab.send(type="resume", run=str(run.pk), after=after)
        await tab.until("text.delta")
        await asyncio.to_thread(provider.release, "late")
        end = await tab.end()
    await generating
    assert tab.text() == end["text"] == reply_text(40, text)
    assert tab.seqs() == list(range(after + 1, end["seq"] + 1))


SAMPLED = f"[[tokens={len(SAMPLE)} rate=0 reasoning=5 sample=true]]"


async def test_end_is_short_for_a_client_that_asks(owner, conversation):
    async with open_tab(owner, query="?ends=short") as tab, open_tab(owner) as other:
        await tab.send(**{**SEND, "text": SAMPLED}, conversation=str(conversation.pk))
        queued = await tab.until("run.queued")
        await other.send(type="resume", run=queued["run"], after=0)
        await generate.run(UUID(queued["run"]), 1)
        short, end = await tab.end(), await other.end()
    assert tab.text() == end["text"] == "".join(SAMPLE)
    assert "text" not in short
    html = end["html"]
    (reasoning, reasoning_end), (prose, prose_end) = end["streamed"]
    assert short["html"] == html[:reasoning] + html[reasoning_end:prose] + html[prose_end:]
    assert html[prose:prose_end] == to_html("".join(SAMPLE))
    assert len(tab.blocks()) > 20
    for block in tab.blocks():
        assert block in html[prose:prose_end] or block.endswith(("</ul>\n", "</ol>\n", "</div>\n"))


@pytest.mark.parametrize("after", [0, 3, 10_000])
async def test_client_with_a_gap_gets_all_it_lacks(owner, conversation, valkey_client, after):
    """While the log exists, its events and a short end; then, or for an unknown cursor, the whole end."""
    run = await db.run(send, owner, conversation, SAMPLED)
    await generate.run(run.pk, 1)
    async with open_tab(owner, query="?ends=short") as tab:
        await tab.send(type="resume", run=str(run.pk), after=after)
        end = await tab.end()
    assert ("text" in end) == (after == 10_000)
    if after < 10_000:
        assert tab.seqs() == list(range(after + 1, end["seq"] + 1))
    valkey_client.flushall()
    async with open_tab(owner, query="?ends=short") as tab:
        await tab.send(type="resume", run=str(run.pk), after=after)
        assert (await tab.end())["text"] == "".join(SAMPLE)


async def test_ended_run_is_read_from_its_row(owner, conversation, valkey_client):
    run = await db.run(send, owner, conversation, "[[tokens=5 rate=0]]")
    await generate.run(run.pk, 1)
    valkey_client.flushall()
    async with open_tab(owner) as tab:
        await tab.send(type="resume", run=str(run.pk), after=2)
        end = await tab.receive()
    assert end["type"] == "run.done"
    assert end["text"] == reply_text(5, "[[tokens=5 rate=0]]")


async def test_just_ended_run_is_followed_from_beginning(owner, conversation):
    text = "[[tokens=40 rate=200]]"
    run = await db.run(send, owner, conversation, text)
    await generate.run(run.pk, 1)
    async with open_tab(owner) as tab:
        await tab.send(type="resume", run=str(run.pk), after=0)
        end = await tab.end()
    assert tab.text() == end["text"] == reply_text(40, text)
    assert tab.seqs() == list(range(1, end["seq"] + 1))


async def test_events_published_while_joining_arrive_once(
    owner, conversation, provider, monkeypatch
):
    """The race of every late tab, made on purpose: all is published while the log is read."""
    text = "[[tokens=40 rate=0 hold=20 key=gap]]"
    run = await db.run(send, owner, conversation, text)
    generating = await generate_until_hold(run, provider)
    read = run_log.read_after

    async def read_late(*args):
        found = await read(*args)
        if not generating.done():
            await asyncio.to_thread(provider.release, "gap")
            await generating
        return found

    monkeypatch.setattr(run_log, "read_after", read_late)
    async with open_tab(owner) as tab:
        await tab.send(type="resume", run=str(run.pk), after=0)
        end = await tab.end()
    assert tab.text() == end["text"] == reply_text(40, text)
    assert tab.seqs() == list(range(1, len(tab.seqs()) + 1))


async def test_gap_is_filled_from_log(owner, conversation, valkey_client):
    run = await db.run(send_running, owner, conversation)
    parts = [delta(run, seq, f"{seq} ") for seq in range(1, 6)]
    async with open_tab(owner) as tab:
        await tab.send(type="resume", run=str(run.pk), after=0)
        await tab.until("next.updated")
        assert await tab.is_silent()
        add_to_log(valkey_client, *parts)
        # Of five events the group brings one twice, one late, and the others never.
        for index in (0, 0, 4, 1):
            await db.run(publish, groups.run_group(run.pk), parts[index].encode())
        while len(tab.seqs()) < 5:
            await tab.receive()
        assert await tab.is_silent()
    assert tab.text() == "1 2 3 4 5 "


async def test_events_of_lower_attempt_are_ignored(owner, conversation, valkey_client):
    run = await db.run(send_running, owner, conversation, 2)
    group = groups.run_group(run.pk)
    add_to_log(valkey_client, delta(run, 1, "old"))
    first = protocol.first_seq(2)
    new = protocol.RunStarted(run=run.pk, attempt=2, seq=first).encode()
    async with open_tab(owner) as tab:
        await tab.send(type="resume", run=str(run.pk), after=0)
        await tab.until("text.delta")
        await db.run(publish, group, new)
        await tab.until("run.started")
        late = delta(run, 2, "late").encode()
        await db.run(publish, group, late)
        assert await tab.is_silent()
        more = delta(run, first + 1, "new", 2).encode()
        await db.run(publish, group, more)
        await tab.until("text.delta")
    assert tab.text() == "oldnew"


class FullFrames:
    """The frames of a socket whose client reads slowly: nothing is written directly."""

    is_full = True

    def __init__(self) -> None:
        self.texts: list[bytes] = []

    def write(self, texts: Sequence[bytes]) -> None:
        self.texts += texts

    async def drain(self) -> None:
        pass


async def unused_send(message: object) -> None:
    raise AssertionError("the frames are used instead")


async def test_tokens_do_not_wait_for_unreadable_row(
    owner, conversation, valkey_client, monkeypatch
):
    monkeypatch.setattr(consumer, "RECHECK", 0.1)
    run = await db.run(send_running, owner, conversation)
    async with open_tab(owner) as tab:
        await tab.send(type="resume", run=str(run.pk), after=0)
        await tab.until("next.updated")
        assert await tab.is_silent()
        monkeypatch.setattr(limits, "STATEMENT", 0.3)
        lock = unreadable(Run)
        await asyncio.to_thread(lock.__enter__)
        try:
            await asyncio.to_thread(add_to_log, valkey_client, delta(run, 1, "Hello"))
            assert (await tab.until("text.delta"))["text"] == "Hello"
        finally:
            await asyncio.to_thread(lock.__exit__, None, None, None)
        await db.run(mark_done, run)
        assert (await tab.end())["text"] == "A reply"


async def test_slow_client_has_bounded_buffer_and_no_gaps(
    owner, conversation, valkey_client, monkeypatch
):
    """The runs of one socket share its budget of buffered bytes."""
    monkeypatch.setattr(outgoing, "QUEUE_BYTES", 500)
    frames = FullFrames()
    socket = outgoing.Outgoing(unused_send, frames)  # not open: the test serves the followers
    followed: dict[UUID, run_follower.Follower] = {}
    made = []
    for _ in range(3):
        run = await db.run(send_running, owner, await db.run(begin, owner, conversation.assistant))
        follower = run_follower.Follower(run.pk, 0, followed=followed, outgoing=socket)
        follower.join()
        await follower.serve()
        made.append((run, follower))
    for seq in range(1, 101):
        for run, follower in made:
            event = delta(run, seq, f"{seq} ")
            add_to_log(valkey_client, event)
            follower._receive(event.encode())
        waiting = sum(len(part) for _, follower in made for part in follower._queue)
        assert socket._queued_bytes == waiting < 500 + 2 * len(event.encode())
    assert followed == {run.pk: follower for run, follower in made}
    for run, follower in made:
        frames.texts.clear()
        await follower.serve()
        await follower.leave()
        headers = [protocol.header(data) for data in frames.texts]
        assert [(header.run, header.seq) for header in headers] == [
            (run.pk, seq) for seq in range(1, 101)
        ]
    assert (socket._queued_bytes, followed) == (0, {})


async def test_positions_are_sent_until_attempt_begins(owner, conversation, valkey_client):
    run = await db.run(send_running, owner, conversation)
    group = groups.run_group(run.pk)

    def waits_for(attempt: int) -> bytes:
        return protocol.RunWaiting(run=run.pk, attempt=attempt, position=2, eta=1.5).encode()

    async with open_tab(owner) as tab:
        await tab.send(type="resume", run=str(run.pk))
        await tab.until("next.updated")
        assert await tab.is_silent()
        await db.run(publish, group, waits_for(1))
        assert (await tab.until("run.waiting"))["eta"] == 1.5
        started = protocol.RunStarted(run=run.pk, attempt=1, seq=1)
        add_to_log(valkey_client, started)
        await db.run(publish, group, started.encode())
        await tab.until("run.started")
        await db.run(publish, group, waits_for(1))
        assert await tab.is_silent()
        await db.run(publish, group, waits_for(2))
        assert (await tab.until("run.waiting"))["attempt"] == 2


async def test_restart_replaces_text(owner, conversation, valkey_client):
    run = await db.run(send_running, owner, conversation, 2)
    first = protocol.first_seq(2)
    add_to_log(
        valkey_client,
        delta(run, 1, "old"),
        protocol.RunRestarted(run=run.pk, attempt=2, seq=first, text="ol"),
        delta(run, first + 1, "d", 2),
    )
    async with open_tab(owner) as tab:
        await tab.send(type="resume", run=str(run.pk), after=1)
        assert (await tab.until("run.restarted"))["text"] == "ol"
        assert (await tab.until("text.delta"))["text"] == "d"
        # A cursor in an attempt that the log no longer has: the later one is sent from its beginning.
        valkey_client.xtrim(run_log.log_key(run.pk), minid=f"{first}-0")
        await tab.send(type="resume", run=str(run.pk), after=5)
        assert (await tab.until("run.restarted"))["seq"] == first


@pytest.mark.parametrize(
    "after", [3, 1_000, protocol.first_seq(2), protocol.first_seq(7) + 5, 2**53]
)
@pytest.mark.parametrize("is_live", [True, False])
async def test_cursor_beyond_events_still_receives_end(
    owner, conversation, provider, after, is_live
):
    """Of a run with two events so far, and of one that ends while its log is being read."""
    text = "[[tokens=40 rate=0 hold=20 key=beyond]]"
    run = await db.run(send, owner, conversation, text)
    generating = await generate_until_hold(run, provider)
    last = run_log.read_reply(run.pk, 1).seq
    async with open_tab(owner) as tab:
        if not is_live:
            await asyncio.to_thread(provider.release, "beyond")
            await generating
        await tab.send(
            type="resume", run=str(run.pk), after=last + after if after < 3_000 else after
        )
        if is_live:
            assert await tab.is_silent()
            await asyncio.to_thread(provider.release, "beyond")
            await generating
        end = await tab.end()
        await tab.send(type="ping")
        await tab.until("pong")
    assert end["type"] == "run.done"
    assert end["text"] == reply_text(40, text)
    assert [event["type"] for event in tab.received].count("run.done") == 1


async def test_own_messages_are_followed_beyond_limit(owner, assistant, monkeypatch):
    """A message is never refused after it was stored, however many runs its socket follows."""
    monkeypatch.setattr("chat.web.consumer.MAX_FOLLOWED", 2)
    async with open_tab(owner) as tab:
        for number in range(4):
            await tab.send(**{**SEND, "client_id": f"c{number}"})
            queued = await tab.until("run.queued", "error")
            assert queued.get("client_id") == f"c{number}"
        other = await db.run(send, owner, await db.run(begin, owner, assistant))
        await tab.send(type="resume", run=str(other.pk))
        assert (await tab.until("error"))["code"] == "busy"
        await generate.run(UUID(queued["run"]), 1)
        assert (await tab.end())["run"] == queued["run"]


async def test_resume_of_queued_run_returns_position(owner, conversation):
    run = await db.run(send, owner, conversation, "[[tokens=3 rate=0]]")
    async with open_tab(owner) as tab:
        await tab.send(type="resume", run=str(run.pk))
        queued = await tab.receive()
        assert (queued["type"], queued["position"]) == ("run.queued", 1)
        await generate.run(run.pk, 1)
        assert (await tab.end())["type"] == "run.done"


async def test_resume_of_other_users_run_is_refused(stranger, owner, conversation):
    run = await db.run(send, owner, conversation)
    async with open_tab(stranger) as tab:
        await tab.send(type="resume", run=str(run.pk))
        error = await tab.receive()
        assert (error["code"], error["ref"]) == ("not_found", str(run.pk))
        await generate.run(run.pk, 1)
        assert await tab.is_silent()


@pytest.mark.parametrize("end", ["removed", "owner locked"])
async def test_reader_follows_reply_until_share_ends(
    owner, stranger, conversation, provider, settings, monkeypatch, end
):
    settings.SHARE_WITH_USERS = True
    monkeypatch.setattr(consumer, "RECHECK", 600.0)  # at once, not at the next check
    share = await db.run(
        ConversationShare.objects.create,
        conversation=conversation,
        owner=owner,
        email=stranger.email,
        user=stranger,
    )
    run = await db.run(send, owner, conversation, "[[tokens=9 rate=0 hold=3 key=shared]]")
    generating = await generate_until_hold(run, provider)
    async with open_tab(stranger) as tab:
        await tab.send(type="resume", run=str(run.pk))
        assert (await tab.until("text.delta"))["text"]
        await tab.send(type="run.stop", run=str(run.pk))
        assert (await tab.until("error"))["code"] == "not_allowed"
        if end == "removed":
            await db.run(sharing.unshare, user=owner, share_id=share.pk)
        else:
            owner.is_active = False
            await db.run(owner.save, update_fields=["is_active"])
        ended = await tab.until("share.ended")
        assert ended["conversation"] == str(conversation.pk)
        known = {*protocol.READER_FIELDS, "ready", "error", "share.ended"}
        assert {one["type"] for one in tab.received} <= known
        owner.is_active = True
        await db.run(owner.save, update_fields=["is_active"])
        await db.run(stop_run, user=owner, run_id=run.pk)
        await generating
        assert await tab.is_silent()
        if end == "removed":
            await tab.send(type="resume", run=str(run.pk))
            assert (await tab.until("error"))["code"] == "not_found"


async def test_lost_end_of_share_is_noticed(
    owner, stranger, conversation, provider, settings, monkeypatch
):
    """The row is read again after some seconds, whatever Redis lost."""
    settings.SHARE_WITH_USERS = True
    monkeypatch.setattr(consumer, "RECHECK", 0.05)
    share = await db.run(
        ConversationShare.objects.create,
        conversation=conversation,
        owner=owner,
        email=stranger.email,
        user=stranger,
    )
    run = await db.run(send, owner, conversation, "[[tokens=9 rate=0 hold=3 key=lost]]")
    generating = await generate_until_hold(run, provider)
    async with open_tab(stranger) as tab:
        await tab.send(type="resume", run=str(run.pk))
        await tab.until("text.delta")
        await db.run(share.delete)
        await tab.until("share.ended")
        await db.run(stop_run, user=owner, run_id=run.pk)
        await generating
        assert await tab.is_silent()


# --- Stop, regenerate, edit -------------------------------------------------------------------


async def test_run_is_stopped_from_another_tab(owner, conversation, provider):
    run = await db.run(send, owner, conversation, "[[tokens=9 rate=0 hold=3 key=stop]]")
    generating = await generate_until_hold(run, provider)
    async with open_tab(owner) as tab, open_tab(owner) as other:
        await tab.send(type="resume", run=str(run.pk))
        await other.send(type="run.stop", run=str(run.pk))
        assert (await tab.end())["type"] == "run.stopped"
    await generating


async def test_regenerate_and_edit_start_runs(owner, conversation):
    run = await db.run(send, owner, conversation, "[[tokens=3 rate=0]]")
    await generate.run(run.pk, 1)
    async with open_tab(owner) as tab:
        await tab.send(type="run.regenerate", client_id="again", message=str(run.message_id))
        queued = await tab.until("run.queued")
        await generate.run(UUID(queued["run"]), 1)
        await tab.end()
        asked = str(run.message.parent_id)
        await tab.send(type="message.edit", client_id="edit", message=asked, text="New")
        assert "New" in (await tab.until("run.queued"))["sent"]["html"]


# --- Bad input --------------------------------------------------------------------------------


async def test_compared_replies_reach_all_tabs(owner, assistant, conversation):
    def second() -> LanguageModel:
        copy = LanguageModel.objects.get(pk=assistant.model_id)
        copy.pk, copy.name = None, "Second"
        copy.save(force_insert=True)
        return copy

    models = [assistant.model_id, (await db.run(second)).pk]
    async with open_tab(owner) as tab, open_tab(owner) as other:
        text = "[[tokens=4 rate=0]]"
        fields = {"client_id": "a", "text": text, "conversation": str(conversation.pk)}
        await tab.send(type="chat.compare", models=models, **fields)
        queued = [await tab.until("run.queued") for _ in models]
        assert [(one["client_id"], one["compared"]) for one in queued] == [("a", 2), ("a~1", 2)]
        assert [await other.until("run.queued") for _ in models] == queued
        for one in queued:
            await generate.run(UUID(one["run"]), 1)
        ended = [await tab.end() for _ in models]
        assert {one["run"] for one in ended} == {one["run"] for one in queued}
        assert {one["text"] for one in ended} == {reply_text(4, text)}
        await tab.send(type="chat.compare", models=models, **fields)  # a repetition
        repeated = [await tab.until("run.queued") for _ in models]
        assert [one["run"] for one in repeated] == [one["run"] for one in queued]
        await tab.send(
            type="chat.compare", models=[models[0], 99_999], **fields | {"client_id": "b"}
        )
        error = await tab.until("error")
        assert (error["code"], error["ref"]) == ("model_unavailable", "b")


async def test_chosen_branch_reaches_all_tabs(owner, stranger, conversation):
    made = await db.run(add_turns, owner, conversation, 1)
    async with open_tab(owner) as tab, open_tab(owner) as other, open_tab(stranger) as strange:
        run = await db.run(regenerate_done, owner, made[1])
        await tab.send(type="branch.select", message=str(made[1].pk))
        selected = await tab.until("branch.selected")
        assert selected == {
            "type": "branch.selected",
            "conversation": str(conversation.pk),
            "message": str(made[1].pk),
            "leaf": str(made[1].pk),
        }
        assert await other.until("branch.selected") == selected
        await strange.send(type="branch.select", message=str(run.message_id))
        error = await strange.until("error")
        assert (error["code"], error["ref"]) == ("not_found", str(run.message_id))
        assert await strange.is_silent()
    assert (await db.run(Conversation.objects.get, pk=conversation.pk)).leaf_id == made[1].pk


def regenerate_done(owner, reply: Message) -> Run:
    return mark_done(start.regenerate(user=owner, message_id=reply.pk, client_id="again").run)


@pytest.mark.parametrize(
    ("frame", "code", "ref"),
    [
        ({**SEND, "text": ""}, "empty_text", "a"),
        ({**SEND, "text": " \n "}, "empty_text", "a"),
        ({**SEND, "text": "x" * 20_001}, "text_too_long", "a"),
        ({**SEND, "conversation": str(uuid4())}, "not_found", "a"),
        ({**SEND, "colour": "red"}, "unknown_field", "a"),
        ({**SEND, "text": 5}, "bad_json", "a"),
        ({**SEND, "client_id": "no spaces"}, "bad_json", "no spaces"),
        ({"type": "chat.send", "text": "x"}, "bad_json", None),
        ({"type": "chat.whistle", "client_id": "a"}, "unknown_type", "a"),
        ({"text": "x"}, "unknown_type", None),
        ([], "unknown_type", None),
        ({"type": "run.stop", "run": str(uuid4())}, "not_found", ...),
        ({"type": "run.stop", "run": "x"}, "bad_json", "x"),
        ({"type": "resume", "run": str(uuid4())}, "not_found", ...),
        ({"type": "resume", "run": str(uuid4()), "after": -1}, "bad_json", ...),
        ({"type": "run.regenerate", "client_id": "a", "message": str(uuid4())}, "not_found", "a"),
        ({"type": "message.edit", "client_id": "a", "message": str(uuid4()), "text": "x"}, "not_found", "a"),
        ({"type": "ping", "more": 1}, "unknown_field", None),
    ],
)  # fmt: skip
async def test_bad_frame_gets_error_on_open_socket(owner, assistant, frame, code, ref):
    async with open_tab(owner) as tab:
        await tab.send_text(msgspec.json.encode(frame).decode())
        error = await tab.receive()
        assert error["type"] == "error"
        assert error["code"] == code
        sentence = errors.ERRORS[code] % {"limit": "20,000"}
        assert error["message"].startswith(sentence)
        assert error.get("ref") == (frame["run"] if ref is ... else ref)
        assert await tab.is_silent()
    assert not await db.run(Message.objects.exists)
    assert not await db.run(Conversation.objects.exists)


async def test_message_during_active_run_is_refused(owner, conversation):
    await db.run(send, owner, conversation)
    async with open_tab(owner) as tab:
        await tab.send(**SEND, conversation=str(conversation.pk))
        assert (await tab.until("error"))["code"] == "run_active"


@pytest.mark.parametrize("text", ["{", "", "hello"])
async def test_frame_without_json_closes_socket(owner, text):
    async with open_tab(owner) as tab:
        await tab.send_text(text)
        assert (await tab.receive())["code"] == "bad_json"
        assert await tab.close_code() == 1003


async def test_binary_frame_closes_socket(owner):
    async with open_tab(owner) as tab:
        await tab.send_bytes(b"\x00")
        assert await tab.close_code() == 1003


async def test_huge_frame_closes_socket(owner, conversation):
    async with open_tab(owner) as tab:
        await tab.send(**{**SEND, "text": "x" * 1_000_000})
        assert await tab.close_code() == 1009
    assert not await db.run(Message.objects.exists)


async def test_socket_without_session_is_closed():
    async with open_tab(None) as tab:
        assert (await tab.receive())["code"] == "not_signed_in"
        assert await tab.close_code() == 4401


@pytest.mark.parametrize("origin", [b"https://elsewhere.example", b"null", b""])
async def test_page_of_another_site_gets_no_socket(owner, origin):
    with pytest.raises(Closed):
        async with open_tab(owner, origin=origin):
            pass


def rendered(message_id: str) -> str:
    return str(message_html(Message.objects.select_related("run").get(pk=message_id)))
