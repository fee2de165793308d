from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import redis
from channels.layers import channel_layers
from django.utils import timezone

from accounts.models import User
from chat.conversations import lifecycle, listing
from chat.errors import ChatError
from chat.models import Assistant, Conversation, Run
from chat.runs import finish
from chat.streaming import groups, user_channel
from chatproject.lib.pubsub.layer import get_layer
from chatproject.local.servers import ValkeyServer
from tests.support.conversations import begin, send

NOW = datetime(2026, 3, 18, 12, 0, tzinfo=UTC)
TODAY = date(2026, 3, 18)


def make(owner: User, assistant: Assistant, count: int, **fields) -> list[Conversation]:
    """Create conversations of one owner, the newest first, a minute apart."""
    now = timezone.now()
    return Conversation.objects.bulk_create(
        Conversation(
            owner=owner,
            assistant=assistant,
            title=f"Chat {number}",
            updated_at=now - timedelta(minutes=number),
            **fields,
        )
        for number in range(count)
    )


def listed(days: list[listing.Day]) -> list[Conversation]:
    return [conversation for day in days for conversation in day.conversations]


# --- Days -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ago", "label", "is_recent"),
    [
        (timedelta(hours=-1), "Today", True),  # clocks differ
        (timedelta(0), "Today", True),
        (timedelta(hours=12), "Today", True),
        (timedelta(hours=12, seconds=1), "Yesterday", True),
        (timedelta(hours=36, seconds=1), "The last 7 days", False),
        (timedelta(days=6), "The last 7 days", False),
        (timedelta(days=7), "March 2026", False),
        (timedelta(days=30), "February 2026", False),
    ],
)
def test_days_have_usual_names(ago, label, is_recent):
    [day] = listing.by_day([Conversation(updated_at=NOW - ago)], today=TODAY)
    assert (day.label, day.is_recent) == (label, is_recent)


def test_days_follow_time_zone(settings):
    settings.TIME_ZONE = "Pacific/Auckland"
    late = datetime(2026, 3, 17, 11, 30, tzinfo=UTC)  # half past midnight there
    with timezone.override("Pacific/Auckland"):
        [day] = listing.by_day([Conversation(updated_at=late)], today=TODAY)
    assert day.label == "Today"


def test_by_day_groups_in_order():
    hours = [0, 3, 13, 14, 50]
    found = [Conversation(title=str(ago), updated_at=NOW - timedelta(hours=ago)) for ago in hours]
    assert [
        (day.label, [each.title for each in day.conversations])
        for day in listing.by_day(found, today=TODAY)
    ] == [("Today", ["0", "3"]), ("Yesterday", ["13", "14"]), ("The last 7 days", ["50"])]


# --- Lists ------------------------------------------------------------------------------------


def test_sidebar_has_newest_own_conversations(owner, stranger, assistant):
    make(stranger, assistant, 1)
    make(owner, assistant, 1, deleted_at=timezone.now())
    mine = make(owner, assistant, listing.SIDEBAR_LENGTH + 3)
    assert listed(listing.sidebar(owner).days) == mine[: listing.SIDEBAR_LENGTH]


def test_sidebar_marks_active_runs(valkey_url, owner, assistant):
    quiet, busy = make(owner, assistant, 2)
    run = send(owner, busy)
    marks = {each.pk: each.active for each in listed(listing.sidebar(owner).days)}  # type: ignore[attr-defined] # annotated
    assert marks == {quiet.pk: False, busy.pk: True}
    Run.objects.filter(pk=run.pk).update(status="done", ended_at=timezone.now())
    assert not any(each.active for each in listed(listing.sidebar(owner).days))  # type: ignore[attr-defined] # annotated


def test_list_pages_have_every_conversation_once(owner, assistant):
    moment = timezone.now()
    # All have the same time: the cursor must distinguish them.
    Conversation.objects.bulk_create(
        Conversation(owner=owner, assistant=assistant, updated_at=moment) for _ in range(120)
    )
    page = listing.page(owner, "")
    pages = [listed(page.days)]
    while page.next:
        page = listing.page(owner, page.next)
        pages.append(listed(page.days))
    assert [len(part) for part in pages] == [50, 50, 20]
    assert len({each.pk for part in pages for each in part}) == 120


def test_full_last_page_has_no_next(owner, assistant):
    make(owner, assistant, listing.PAGE_LENGTH)
    assert listing.page(owner).next == ""


@pytest.mark.parametrize(
    "cursor", ["x", "_", "2026-01-01_x", "2026-01-01T00:00:00_01890a5d-ac96-774b-bcce-b302099a8057"]
)
def test_invalid_cursor_is_not_found(owner, cursor):
    with pytest.raises(ChatError, match="not_found"):
        listing.page(owner, cursor)


def test_lists_take_one_query_at_any_length(owner, assistant, django_assert_num_queries):
    for count in (5, 10):
        make(owner, assistant, count)
        with django_assert_num_queries(1):
            listing.sidebar(owner)
        with django_assert_num_queries(1):
            listing.page(owner)
        with django_assert_num_queries(1):
            listing.archive(owner)


def test_pinned_chats_come_first_and_archived_not(valkey_url, owner, assistant):
    first, second, third, fourth = make(owner, assistant, 4)
    for chat in (second, fourth):
        lifecycle.change(user=owner, conversation_ids=[chat.pk], action="pin")
    lifecycle.change(user=owner, conversation_ids=[third.pk], action="archive")
    for days in (listing.sidebar(owner).days, listing.page(owner).days):
        assert [day.label for day in days] == ["Pinned", "Today"]
        assert [day.conversations for day in days] == [[fourth, second], [first]]
    assert listed(listing.archive(owner).days) == [third]

    lifecycle.change(user=owner, conversation_ids=[third.pk, fourth.pk], action="unarchive")
    lifecycle.change(user=owner, conversation_ids=[fourth.pk, second.pk], action="unpin")
    assert listed(listing.sidebar(owner).days) == [first, second, third, fourth]


def test_sidebar_pages_have_every_chat_once(valkey_url, owner, assistant):
    made = make(owner, assistant, 30)
    lifecycle.change(user=owner, conversation_ids=[made[20].pk], action="pin")
    found, before = [], ""
    for _ in range(3):
        page = listing.sidebar(owner, before, 10)
        found += listed(page.days)
        before = page.next
    assert before == ""
    assert found == [made[20], *made[:20], *made[21:]]


# --- Changing several -------------------------------------------------------------------------


def test_undo_restores_what_one_change_deleted(valkey_url, owner, stranger, assistant):
    kept, first, second = make(owner, assistant, 3)
    [strange] = make(stranger, assistant, 1)
    ids = [first.pk, second.pk, strange.pk]
    found, at = lifecycle.change(user=owner, conversation_ids=ids, action="delete")
    assert {each.pk for each in found} == {first.pk, second.pk}
    lifecycle.change(user=owner, conversation_ids=[kept.pk], action="delete")
    assert lifecycle.undo(user=stranger, action="delete", at=at) == 0
    assert lifecycle.undo(user=owner, action="delete", at=at) == 2
    assert listed(listing.sidebar(owner).days) == [first, second]
    assert listed(listing.sidebar(stranger).days) == [strange]
    assert lifecycle.undo(user=owner, action="delete", at=at) == 0


def test_changes_and_pins_are_bounded(valkey_url, owner, assistant, monkeypatch):
    monkeypatch.setattr(lifecycle, "MAX_PINNED", 2)
    ids = [each.pk for each in make(owner, assistant, 3)]
    with pytest.raises(ChatError, match="too_many: You can pin up to 2 chats"):
        lifecycle.change(user=owner, conversation_ids=ids, action="pin")
    lifecycle.change(user=owner, conversation_ids=ids[:2], action="pin")
    lifecycle.change(user=owner, conversation_ids=ids[:2], action="pin")  # again
    with pytest.raises(ChatError, match="too_many"):
        lifecycle.change(user=owner, conversation_ids=ids[2:], action="pin")
    with pytest.raises(ChatError, match="too_many: Select up to 200"):
        lifecycle.change(user=owner, conversation_ids=ids * 67, action="archive")


def test_finished_reply_is_unread_until_seen(valkey_url, published, owner, conversation):
    outcomes = (
        finish.Outcome(status=Run.Status.STOPPED, text="Ebb"),
        finish.Outcome(status=Run.Status.DONE, text="Ebb"),
    )
    for outcome in outcomes:
        run = send(owner, conversation)
        finish.end(run_id=run.pk, attempt=0, status=Run.Status.QUEUED, seq=1, outcome=outcome)
        conversation.refresh_from_db()
        assert conversation.unread == (outcome.status == Run.Status.DONE)
    read = partial(lifecycle.mark_read, user=owner, conversation_id=conversation.pk)
    assert "unread" not in published(read)
    conversation.refresh_from_db()
    assert not conversation.unread


# --- The default assistant --------------------------------------------------------------------


def test_default_assistant_is_first_enabled(assistant):
    Assistant.objects.create(slug="second", name="Second", model=assistant.model, position=1)
    assert lifecycle.default_assistant() == assistant
    Assistant.objects.filter(pk=assistant.pk).update(enabled=False)
    assert lifecycle.default_assistant().name == "Second"
    assistant.model.enabled = False
    assistant.model.save()
    assert lifecycle.default_assistant() is None


# --- Renaming and deleting --------------------------------------------------------------------


def test_rename_keeps_order_of_list(valkey_url, owner, conversation):
    before = conversation.updated_at
    lifecycle.rename(user=owner, conversation_id=conversation.pk, title="Boats")
    conversation.refresh_from_db()
    assert (conversation.title, conversation.updated_at) == ("Boats", before)


def test_deleted_conversation_stays_in_database_alone(valkey_url, owner, conversation):
    lifecycle.change(user=owner, conversation_ids=[conversation.pk], action="delete")
    assert listing.sidebar(owner).days == []
    with pytest.raises(ChatError, match="not_found"):
        lifecycle.change(user=owner, conversation_ids=[conversation.pk], action="delete")
    assert Conversation.objects.get(pk=conversation.pk).deleted_at is not None


def test_other_users_cannot_rename_or_delete(stranger, conversation):
    with pytest.raises(ChatError, match="not_found"):
        lifecycle.rename(user=stranger, conversation_id=conversation.pk, title="Mine")
    with pytest.raises(ChatError, match="not_found"):
        lifecycle.change(user=stranger, conversation_ids=[conversation.pk], action="delete")
    conversation.refresh_from_db()
    assert (conversation.title, conversation.deleted_at) == ("", None)


# --- Announcing -------------------------------------------------------------------------------


@pytest.fixture
def published(valkey_client: redis.Redis, owner: User) -> Callable[..., dict[str, Any]]:
    """Calls a function and returns the event that it publishes for the pages of `owner`."""

    def call(action: Callable[..., object], **fields: Any) -> dict[str, Any]:
        with valkey_client.pubsub(ignore_subscribe_messages=True) as listener:
            listener.subscribe(get_layer().raw_channel(groups.user_group(owner.pk)))
            listener.get_message(timeout=10)
            action(**fields)
            event: dict[str, Any] = json.loads(listener.get_message(timeout=10)["data"])
            return event

    return call


def test_changes_are_published_to_owners_pages(published, owner, assistant):
    conversation = begin(owner, assistant, title="Tides")
    event = {
        "type": "conversation.updated",
        "conversation": str(conversation.pk),
        "title": "Tides",
        "url": f"/c/{conversation.pk}/",
        "updated_at": conversation.updated_at.isoformat(),
    }
    announce = partial(user_channel.announce_conversation, conversation)
    assert published(announce) == event
    assert published(announce, active=True) == {**event, "active": True}
    mine = {"user": owner, "conversation_id": conversation.pk}
    assert published(lifecycle.rename, **mine, title="Ebb") == {**event, "title": "Ebb"}
    deleted = {**event, "title": "Ebb", "deleted": True}
    change = partial(
        lifecycle.change, user=owner, conversation_ids=[conversation.pk], action="delete"
    )
    assert published(change) == deleted
    # A reply may end in a deleted conversation.
    conversation.refresh_from_db()
    assert published(announce) == deleted


def test_rename_announces_active_run(published, owner, conversation):
    send(owner, conversation)
    event = published(lifecycle.rename, user=owner, conversation_id=conversation.pk, title="Ebb")
    assert event["active"] is True


@contextmanager
def layer_on(server: ValkeyServer, settings) -> Iterator[None]:
    """Use the channel layer of another Valkey."""
    settings.CHANNEL_LAYERS = {
        "default": {
            **settings.CHANNEL_LAYERS["default"],
            "CONFIG": {"hosts": [server.url], "prefix": "parley"},
        }
    }
    before, channel_layers.backends = channel_layers.backends, {}
    try:
        yield
    finally:
        channel_layers.backends = before


def test_rename_works_without_redis(owner, conversation, own_valkey, settings, caplog):
    own_valkey.stop()
    with layer_on(own_valkey, settings):
        lifecycle.rename(user=owner, conversation_id=conversation.pk, title="Boats")
    conversation.refresh_from_db()
    assert conversation.title == "Boats"
    assert "Dropped 1 published messages" in caplog.text
