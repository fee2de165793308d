"""The search over titles and messages: words, parts of words, languages, bounds, and its index."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test import Client

from accounts.models import User
from chat.conversations import lifecycle, search_index, search_words
from chat.conversations import search as search_module
from chat.conversations.search import Found, search
from chat.models import Assistant, Conversation, Message, SearchEntry
from chat.recovery import search_sweep
from chat.runs import queue
from tests.support.conversations import begin, send

pytestmark = pytest.mark.usefixtures("valkey_url")


@pytest.fixture
def write(owner: User, assistant: Assistant):
    """Begins a conversation of `owner` with a message, and indexes it."""

    def begin_with(text: str, title: str = "Untitled", **fields) -> Conversation:
        chat = begin(fields.pop("user", owner), assistant, title=title, **fields)
        Message.objects.create(conversation=chat, role="user", text=text)
        search_index.index_batch()
        return chat

    return begin_with


def titles(found: Found) -> list[str]:
    return ["".join(text for text, _ in hit.title) for hit in found.hits]


def marked(found: Found) -> list[str]:
    return [text for hit in found.hits for text, is_match in hit.snippet if is_match]


@pytest.mark.parametrize(
    ("text", "query", "mark"),
    [
        ("The tides were rising quickly", "tide", "tides"),
        (
            "The tides were rising quickly",
            "rise ti",
            "tides",
        ),  # a stem, and the beginning of a word
        ("Die Häuser sind nicht für den Hafen", "haus", "Häuser"),
        ("Les marées sont dans le port et les bateaux", "marée", "marées"),
        ("潮の満ち引きは月によって起こる", "満ち引き", "満ち引き"),
        ("潮の満ち引きは月によって起こる", "月", "月"),
        ("北京的天气很好", "天气", "天气"),
        ("สวัสดีครับ วันนี้อากาศดี", "อากาศ", None),
        ("ما هو المد في البحر على هذا الكوكب", "البحر", "البحر"),
        ("A telegraph", "egrap", "egrap"),  # a part of a word
        ("100 % sure_thing", "% sure_", "sure"),
        ("foo@example.org wrote", "example", "example"),
    ],
)
def test_message_is_found_and_marked(owner, write, text, query, mark):
    write("Something else entirely")
    chat = write(text)
    found = search(owner, query)
    assert [hit.conversation for hit in found.hits] == [chat.pk]
    if mark:
        assert mark in marked(found)
    message = chat.messages.get()
    assert found.hits[0].url == f"/c/{chat.pk}/?message={message.pk}#m-{message.pk}"


def test_title_comes_first_and_has_a_snippet(owner, write):
    write("Of ebb alone", title="Other")
    write("High and ebb", title="Ebb and flow")
    found = search(owner, "ebb")
    assert titles(found) == ["Ebb and flow", "Other"]
    assert found.hits[0].title == [("Ebb", True), (" and flow", False)]
    assert marked(found) == ["ebb", "ebb"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('"ebb and flow"', ["Order"]),
        ("„ebb and flow“ high", ["Order"]),
        ('"flow and ebb"', ["Reverse"]),
        ('"nothing of it"', []),
        ("ebb -high", ["Reverse", "The ebb alone"]),
        ("ebb -ALONE -high", ["Reverse"]),
        ("-ebb", ["The ebb alone", "Reverse", "Order"]),  # nothing else is wanted
        ('"ebb and', ["Reverse", "Order"]),  # while it is typed
        ("天气 -北京", ["Weather"]),
        ("🌊", ["Order 🌊"]),
    ],
)
def test_query_has_phrases_and_excluded_words(owner, write, query, expected):
    chats = {
        "Order": "Of high ebb and flow",
        "Reverse": "Of flow and ebb",
        "The ebb alone": "By itself",
        "Beijing": "北京的天气很好",
        "Weather": "天气很好",
    }
    for title, text in chats.items():
        write(text, title=title)
    if query == "🌊":
        write("Waves", title="Order 🌊")
    assert sorted(titles(search(owner, query))) == sorted(expected)


def test_search_has_own_chats_that_are_not_deleted(owner, stranger, write):
    write("tides", title="Strange", user=stranger)
    gone = write("tides", title="Deleted")
    kept = write("tides", title="Archived")
    lifecycle.change(user=owner, conversation_ids=[gone.pk], action="delete")
    lifecycle.change(user=owner, conversation_ids=[kept.pk], action="archive")
    found = search(owner, "tides")
    assert titles(found) == ["Archived"]
    assert found.hits[0].is_archived


@pytest.mark.parametrize(
    "query", ["the", "\"tides'", "tides & !", "a | b:*", "\\", "<->", "x\x00y", "%", "(" * 200]
)
def test_odd_query_is_answered(owner, write, query):
    write("The tides")
    found = search(owner, query)
    assert bool(found.hits) == (query in ("the", "\"tides'", "tides & !"))
    assert bool(found.note) == (query in ("\\", "<->", "%", "(" * 200))


def test_long_query_gets_a_sentence(owner, client: Client):
    client.force_login(owner)
    page = client.get("/search/", {"q": "x" * 10_000})
    assert page.status_code == 200
    assert "The search has more than 200 characters. Shorten it." in page.text
    assert "Nothing found." in client.get("/search/results/", {"q": "nowhere"}).text


def test_markup_of_a_message_is_escaped(owner, write, client: Client):
    write("tides <script>alert(1)</script>")
    client.force_login(owner)
    page = client.get("/search/results/", {"q": "tides"}).text
    assert "<mark>tides</mark> &lt;script&gt;" in page


def test_search_takes_as_many_statements_at_any_length(owner, write, django_assert_num_queries):
    for count in (4, 8):
        for number in range(count):
            write(f"tides {number}", title=f"Chat {number}")
        with django_assert_num_queries(5):
            search(owner, "tides")


@pytest.mark.django_db(transaction=True)
def test_slow_search_for_parts_returns_the_newest(owner, write, monkeypatch):
    """As in many long messages: the newest are found, the others only by whole words."""
    old = write("A telegraph")
    write("Filling " * 50)
    new = write("Another telegraph")
    monkeypatch.setattr(search_module, "TRIGRAMS", "chat_search_words")  # where pg_trgm is missing
    slow = search_module.BY_TRIGRAMS.replace("ORDER BY", "AND pg_sleep(30) IS NULL ORDER BY")
    monkeypatch.setattr(
        search_module, "BY_READING", search_module.BY_READING.replace("4000000", "100")
    )
    assert [hit.conversation for hit in search(owner, "egraph").hits] == [new.pk, old.pk]
    monkeypatch.setattr(search_module, "BY_TRIGRAMS", slow)
    monkeypatch.setattr(search_module, "PARTS_SECONDS", 0.05)
    found = search(owner, "egraph")
    assert [hit.conversation for hit in found.hits] == [new.pk]
    assert "Type whole words" in found.note


def test_search_without_trigrams_scans_newest_messages(owner, write, monkeypatch):
    monkeypatch.setattr(search_module, "TRIGRAMS", "no_such_index")
    chat = write("A telegraph")
    assert [hit.conversation for hit in search(owner, "egraph").hits] == [chat.pk]


# --- The index --------------------------------------------------------------------------------


def test_index_follows_runs_and_deletions(owner, conversation, monkeypatch):
    monkeypatch.setattr(search_index, "BATCH", 2)
    run = send(owner, conversation, "About tides")
    assert search_index.is_behind()
    while search_index.index_batch():
        pass
    assert not search_index.is_behind()  # the pending reply has no text yet
    Message.objects.filter(pk=run.message_id).update(status="done", text="Of ebb and flow")
    search_sweep.enqueue_missing(run.queued_at)
    search_sweep.enqueue_missing(run.queued_at)
    assert [job.func_name for job in queue.rq_queue("index").get_jobs()] == [queue.INDEX_JOB]
    assert not search_index.index_batch()
    assert len(search(owner, "flow").hits) == 1

    conversation.messages.update(parent=None)
    with (
        connection.cursor() as cursor
    ):  # as code of an older release deletes, which has no such table
        cursor.execute("UPDATE chat_conversation SET leaf_id = NULL")
        cursor.execute("DELETE FROM chat_run")
        cursor.execute("DELETE FROM chat_message")
    assert not SearchEntry.objects.exists()


def test_backfill_indexes_every_message_once(owner, assistant, monkeypatch):
    monkeypatch.setattr(search_index, "BATCH", 7)
    chat = begin(owner, assistant)
    made = [Message(conversation=chat, role="user", text=f"tide {number}") for number in range(30)]
    Message.objects.bulk_create(made)
    turns = 1
    while search_index.index_batch():
        turns += 1
    assert turns == 5
    assert SearchEntry.objects.count() == 30


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the tide and how does it work", "english"),
        ("Was ist das und wie geht es mit den Häfen", "german"),
        ("¿Qué es una marea y por qué los barcos", "spanish"),
        ("Что это и как он", "russian"),
        ("tides", "simple"),
        ("", "simple"),
    ],
)
def test_language_is_detected_by_frequent_words(text, language):
    assert search_words.language_of(search_words.normalize(text)) == language


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("## Tides\n\n- **Ebb** and *flow*\n- ~~none~~", "Tides Ebb and flow none"),
        ("```python\nebb = 2 * 3 * 4\n```\nDone", "ebb = 2 * 3 * 4 Done"),
        ("> See [the ebb](https://example.org/a_b) of `*.py`", "See the ebb of *.py"),
        ("| Ebb | Flow |\n|-----|:----|\n| 1 | 2 |", "Ebb Flow 1 2"),
        ("Of [a link](https://example.org/ebb)", "Of [a link](https://example.org/ebb)"),
    ],
)
def test_snippet_has_no_marks_of_markdown(owner, write, text, shown):
    write(text)
    [hit] = search(owner, "ebb").hits
    assert "".join(part for part, _is_match in hit.snippet) == shown


def test_snippet_of_long_text_is_cut_around_match(owner, write):
    write("word **bold** " * 200 + "the ebb " + "**bold** word " * 200)
    [hit] = search(owner, "ebb").hits
    shown = "".join(part for part, _is_match in hit.snippet)
    assert shown.startswith("… ")
    assert shown.endswith(" …")
    assert "word bold the ebb bold word" in shown
    assert "*" not in shown
