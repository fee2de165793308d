"""The statistics of a chat."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chat.documents.statistics import words
from chat.documents.statistics.chats import TOTALS, of_chat

START = datetime(2024, 3, 11, 8, 0, tzinfo=UTC)  # a Monday


def message(
    sender: str, minutes: float, text: str = "hello there", kind: str = "message", **extra
) -> dict[str, Any]:
    at = (START + timedelta(minutes=minutes)).isoformat()
    block = {"kind": kind, "sender": sender, "sent_at": at, "text": text}
    return block | ({"extra": extra} if extra else {})


def person(found: dict[str, Any], name: str) -> Any:
    [one] = [one for one in found["people"] if one["name"] == name]
    return one


def test_turns_of_a_conversation_are_counted():
    found = of_chat(
        [
            message("Anna", 0),  # starts
            message("Ben", 5),  # replies after 5 minutes
            message("Ben", 6),
            message("Anna", 26),  # replies after 20
            message("Anna", 36),  # double text after 10
            message("Ben", 36 + 4 * 60 + 1),  # too late for a reply
            message("Ben", 300 + 6 * 60),  # starts after six hours
            {"kind": "system", "sender": "", "sent_at": None, "text": "Ben left"},
            message("Anna", 300 + 6 * 60 + 1),
        ]
    )
    anna, ben = person(found, "Anna"), person(found, "Ben")
    assert (anna["starts"], ben["starts"]) == (1, 1)
    assert (anna["replies"], anna["reply_median"]) == (2, 60)
    assert (ben["replies"], ben["reply_median"]) == (1, 300)
    assert (anna["double_texts"], ben["double_texts"]) == (1, 0)
    assert found["totals"]["system"] == 1
    assert found["pause"]["seconds"] == (300 + 360 - 277) * 60
    assert found["hours"][0][8] == 5


def test_texts_are_counted_by_kind():
    found = of_chat(
        [
            message("Anna", 0, "Wirklich? Schau https://www.Example.org/a?b=c 😀👍🏽"),
            message("Anna", 1, "IMG.jpg (Datei angehängt)\nAm Meer", "media", caption="Am Meer"),
            message("Anna", 2, "Diese Nachricht wurde gelöscht", "deleted"),
            message("Anna", 3, "UMFRAGE:\nPizza?", "poll"),
            message("Anna", 4, "besser so", edited=True),
            message("Anna", 4, "und weiter", continued=True),
        ]
    )
    assert {name: found["totals"][name] for name in TOTALS} == {
        "messages": 5,
        "words": 8,
        "questions": 1,
        "media": 1,
        "deleted": 1,
        "edited": 1,
        "polls": 1,
        "links": 1,
        "emojis": 2,
        "characters": 75,
    }
    assert found["links"] == [["example.org", 1]]
    assert found["emojis"] == [["👍", 1], ["😀", 1]]
    assert person(found, "Anna")["longest"] == 2


def test_words_are_found_in_any_script():
    def listed(text: str) -> tuple[int, list[str]]:
        count, found = words.words(text)
        return count, list(found)

    assert listed("Don't tell the Größe’s") == (4, ["tell", "größe's"])
    assert listed("मीडिया के बिना") == (3, ["मीडिया", "बिना"])
    assert listed("مرحبًا بالعـــالم في") == (3, ["مرحبا", "بالعالم"])
    assert listed("我们去北京 ok") == (6, ["我们", "们去", "去北", "北京"])
    assert listed("สวัสดีครับ")[0] > 0
    assert words.emojis("I ❤️ 👩‍👩‍👧 🇩🇪🇪🇸 1️⃣ 3 © text") == ["❤", "👩‍👩‍👧", "🇩🇪", "🇪🇸", "1️⃣", "©"]


def test_longest_streak_and_pause_are_found():
    days = [0, 1, 3, 4, 5, 9]
    found = of_chat([message("Anna", day * 1440) for day in days])
    assert found["streak"] == {"days": 3, "from": "2024-03-14", "to": "2024-03-16"}
    assert found["pause"]["seconds"] == 4 * 86400
    assert (found["days"], found["active_days"]) == (10, 6)


def test_chat_without_messages_has_empty_statistics():
    found = of_chat([])
    assert found["totals"]["messages"] == 0
    assert found["people"] == []
    assert found["first"] is None
    assert found["streak"] is None


blocks = st.lists(
    st.builds(
        message,
        st.sampled_from(["Anna", "Ben", "Cem: the third", ""]),
        st.integers(0, 60 * 24 * 400),
        st.one_of(
            st.text(max_size=30),
            st.sampled_from(["was? www.example.org", "😀😀 ok", "北京 hello", "ok\nok"]),
        ),
        st.sampled_from(["message", "message", "media", "deleted", "poll"]),
    ),
    max_size=40,
)


@settings(max_examples=30, deadline=None)
@given(blocks, st.randoms())
def test_sums_agree_in_any_order(found_blocks, random):
    found = of_chat(found_blocks)
    assert json.loads(json.dumps(found)) == found
    totals = found["totals"]
    for name in TOTALS:
        assert sum(one[name] for one in found["people"]) == totals[name]
    count = len(found_blocks)
    assert totals["messages"] == count
    assert sum(found["per_day"].values()) == sum(found["per_month"].values()) == count
    assert (
        sum(map(sum, found["hours"])) == sum(sum(one["hours"]) for one in found["people"]) == count
    )
    assert sum(count for _emoji, count in found["emojis"]) == totals["emojis"]
    turns = sum(one["starts"] + one["replies"] + one["double_texts"] for one in found["people"])
    assert turns <= count
    other = list(found_blocks)
    random.shuffle(other)
    shuffled = of_chat(other)
    by_turn = ("starts", "double_texts", "replies", "reply_median")
    for one in (*found["people"], *shuffled["people"]):
        for name in by_turn:
            del one[name]
    for one in (found, shuffled):
        del one["pause"], one["first_message"]
    assert shuffled == found


def test_memory_of_lists_is_bounded(monkeypatch):
    from chat.documents.statistics import chats

    monkeypatch.setattr(chats, "MOST_WORDS", 50)
    monkeypatch.setattr(chats, "MOST_PEOPLE", 3)
    monkeypatch.setattr(chats, "MOST_DAYS", 5)
    statistics = chats.ChatStatistics()
    for index in range(200):
        text = f"frequent {'abcdefghij'[index % 10] * 3}{'klmnopqrst'[index // 10 % 10] * 3}"
        statistics.add(message(f"P{index % 9}", index * 1440, text))
    found = statistics.result()
    assert found["words"][0] == ["frequent", 200]
    assert found["totals"]["messages"] == 200
    assert found["per_day"] is None
    assert Counter(one["name"] for one in found["people"]) == Counter(["P0", "P1", "P2"])
