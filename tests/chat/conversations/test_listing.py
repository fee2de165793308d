from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

import pytest
import redis
from channels.layers import channel_layers
from django.utils import timezone

from accounts.models import User
from chat.conversations import lifecycle, listing
from chat.errors import ChatError
from chat.models import Assistant, Conversation, Run
from chat.streaming import groups, user_channel
from chatproject.lib.pubsub.layer import get_layer
from chatproject.local.servers import ValkeyServer
from tests.support.conversations import begin, send

NOW = datetime(2026, 3, 18, 12, 0, tzinfo=UTC)
TODAY = date(2026, 3, 18)


def make(owner: User, assistant: Assistant, count: int, **fields) -> list[Conversation]:
    """Conversations of one owner, the newest first, a minute apart."""
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
def test_days_are_named_as_one_speaks_of_them(ago: timedelta, label: str, is_recent: bool):
    [day] = listing.by_day([Conversation(updated_at=NOW - ago)], today=TODAY)
    assert (day.label, day.is_recent) == (label, is_recent)


def test_days_are_those_of_the_time_zone(settings):
    settings.TIME_ZONE = "Pacific/Auckland"
    late = datetime(2026, 3, 17, 11, 30, tzinfo=UTC)  # half past midnight there
    with timezone.override("Pacific/Auckland"):
        [day] = listing.by_day([Conversation(updated_at=late)], today=TODAY)
    assert day.label == "Today"


def test_by_day_keeps_the_order_and_makes_one_group_of_each_day():
    hours = [0, 3, 13, 14, 50]
    found = [Conversation(title=str(ago), updated_at=NOW - timedelta(hours=ago)) for ago in hours]
    assert [
        (day.label, [each.title for each in day.conversations])
        for day in listing.by_day(found, today=TODAY)
    ] == [("Today", ["0", "3"]), ("Yesterday", ["13", "14"]), ("The last 7 days", ["50"])]


# --- Lists ------------------------------------------------------------------------------------


def test_the_sidebar_has_the_newest_of_ones_own_that_are_kept(
    owner: User, stranger: User, assistant: Assistant
):
    make(stranger, assistant, 1)
    make(owner, assistant, 1, deleted_at=timezone.now())
    mine = make(owner, assistant, listing.SIDEBAR_LENGTH + 3)
    assert listed(listing.sidebar(owner)) == mine[: listing.SIDEBAR_LENGTH]


def test_the_sidebar_marks_where_a_reply_is_being_written(
    valkey_url: str, owner: User, assistant: Assistant
):
    quiet, busy = make(owner, assistant, 2)
    run = send(owner, busy)
    marks = {each.pk: each.active for each in listed(listing.sidebar(owner))}  # type: ignore[attr-defined] # annotated
    assert marks == {quiet.pk: False, busy.pk: True}
    Run.objects.filter(pk=run.pk).update(status="done", ended_at=timezone.now())
    assert not any(each.active for each in listed(listing.sidebar(owner)))  # type: ignore[attr-defined] # annotated


def test_the_pages_of_the_list_have_every_conversation_once(owner: User, assistant: Assistant):
    moment = timezone.now()
    # Many of the same moment: the cursor must tell them apart.
    Conversation.objects.bulk_create(
        Conversation(owner=owner, assistant=assistant, updated_at=moment) for _ in range(120)
    )
    seen: list[Conversation] = []
    before, sizes = "", []
    while True:
        page = listing.page(owner, before)
        seen += listed(page.days)
        sizes.append(len(listed(page.days)))
        before = page.next
        if not before:
            break
    assert sizes == [50, 50, 20]
    assert len({each.pk for each in seen}) == 120


def test_the_last_page_is_the_last_also_when_it_is_full(owner: User, assistant: Assistant):
    make(owner, assistant, listing.PAGE_LENGTH)
    assert listing.page(owner).next == ""


@pytest.mark.parametrize(
    "cursor", ["x", "_", "2026-01-01_x", "2026-01-01T00:00:00_01890a5d-ac96-774b-bcce-b302099a8057"]
)
def test_a_cursor_that_is_none_is_not_there(owner: User, cursor: str):
    with pytest.raises(ChatError, match="not_found"):
        listing.page(owner, cursor)


def test_lists_ask_one_query_however_long_they_are(
    owner: User, assistant: Assistant, django_assert_num_queries
):
    for count in (5, 10):
        make(owner, assistant, count)
        with django_assert_num_queries(1):
            listing.sidebar(owner)
        with django_assert_num_queries(1):
            listing.page(owner)


# --- The default assistant --------------------------------------------------------------------


def test_a_new_chat_talks_to_the_first_assistant_that_is_enabled(assistant: Assistant):
    Assistant.objects.create(slug="second", name="Second", model=assistant.model, position=1)
    assert lifecycle.default_assistant() == assistant
    Assistant.objects.filter(pk=assistant.pk).update(enabled=False)
    second = lifecycle.default_assistant()
    assert second is not None
    assert second.name == "Second"
    assistant.model.enabled = False
    assistant.model.save()
    assert lifecycle.default_assistant() is None


# --- Renaming and deleting --------------------------------------------------------------------


def test_renaming_keeps_the_place_in_the_list(valkey_url: str, owner: User, conversation):
    before = conversation.updated_at
    lifecycle.rename(user=owner, conversation_id=conversation.pk, title="Boats")
    conversation.refresh_from_db()
    assert (conversation.title, conversation.updated_at) == ("Boats", before)


def test_a_deleted_conversation_is_there_for_nobody_but_the_database(
    valkey_url: str, owner: User, conversation
):
    lifecycle.delete(user=owner, conversation_id=conversation.pk)
    assert listing.sidebar(owner) == []
    with pytest.raises(ChatError, match="not_found"):
        lifecycle.delete(user=owner, conversation_id=conversation.pk)
    assert Conversation.objects.get(pk=conversation.pk).deleted_at is not None


def test_strangers_can_neither_rename_nor_delete(stranger: User, conversation):
    with pytest.raises(ChatError, match="not_found"):
        lifecycle.rename(user=stranger, conversation_id=conversation.pk, title="Mine")
    with pytest.raises(ChatError, match="not_found"):
        lifecycle.delete(user=stranger, conversation_id=conversation.pk)
    conversation.refresh_from_db()
    assert (conversation.title, conversation.deleted_at) == ("", None)


# --- Announcing -------------------------------------------------------------------------------


def heard(client: redis.Redis, owner: User, action) -> dict[str, object]:
    """What is published for a user's pages while `action` runs."""
    listener = client.pubsub()
    index, (_, channel, _) = get_layer().raw_command(groups.user_group(owner.pk), b"")
    assert index == 0
    listener.subscribe(channel)
    assert listener.get_message(timeout=10)["type"] == "subscribe"
    action()
    message = listener.get_message(timeout=10)
    listener.close()
    found: dict[str, object] = json.loads(message["data"])
    return found


def test_the_owners_pages_hear_of_what_changes(
    valkey_client: redis.Redis, owner: User, assistant: Assistant
):
    conversation = begin(owner, assistant, title="Tides")
    told = {
        "type": "conversation.updated",
        "conversation": str(conversation.pk),
        "title": "Tides",
        "url": f"/c/{conversation.pk}/",
        "updated_at": conversation.updated_at.isoformat(),
    }
    assert (
        heard(valkey_client, owner, lambda: user_channel.announce_conversation(conversation))
        == told
    )
    assert heard(
        valkey_client, owner, lambda: user_channel.announce_conversation(conversation, active=True)
    ) == {**told, "active": True}
    assert heard(
        valkey_client,
        owner,
        lambda: lifecycle.rename(user=owner, conversation_id=conversation.pk, title="Ebb"),
    ) == {**told, "title": "Ebb"}
    assert heard(
        valkey_client,
        owner,
        lambda: lifecycle.delete(user=owner, conversation_id=conversation.pk),
    ) == {**told, "title": "Ebb", "deleted": True}


def test_a_rename_says_that_a_reply_is_still_being_written(
    valkey_client: redis.Redis, owner: User, conversation
):
    send(owner, conversation)
    event = heard(
        valkey_client,
        owner,
        lambda: lifecycle.rename(user=owner, conversation_id=conversation.pk, title="Ebb"),
    )
    assert event["active"] is True


@contextmanager
def layer_on(server: ValkeyServer, settings) -> Iterator[None]:
    """The channel layer on another Valkey."""
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


def test_renaming_works_while_redis_is_away(
    owner: User, conversation, own_valkey: ValkeyServer, settings, caplog
):
    own_valkey.stop()
    with layer_on(own_valkey, settings):
        lifecycle.rename(user=owner, conversation_id=conversation.pk, title="Boats")
    conversation.refresh_from_db()
    assert conversation.title == "Boats"
    assert "Dropped 1 published messages" in caplog.text
