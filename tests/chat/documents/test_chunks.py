"""Chunks of documents: bounded, in order, and with what their blocks leave unsaid."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chat.documents.retrieval import chunks as chunking
from chat.documents.retrieval import graphemes
from chat.documents.retrieval.chunks import Draft

START = datetime(2024, 3, 12, 9, tzinfo=UTC)
FAMILY = "👨‍👩‍👧‍👦"


def block(position: int, text: str, **fields: Any) -> Any:
    empty: dict[str, Any] = {"kind": "paragraph", "sender": "", "sent_at": None, "page": None}
    return SimpleNamespace(position=position, text=text, **(empty | {"headings": []} | fields))


def message(position: int, minutes: int, text: str, sender: str = "Anna") -> Any:
    sent_at = START + timedelta(minutes=minutes)
    return block(position, text, kind="message", sender=sender, sent_at=sent_at)


def chunks_of(blocks: list[Any], *, tokens: int = 100, is_chat: bool = False) -> list[Draft]:
    return list(chunking.chunks(blocks, is_chat=is_chat, tokens=tokens))


def test_headings_begin_chunks_and_stay_with_their_text():
    long = "The tide comes twice a day. " * 4
    blocks = [
        block(0, "Sea", kind="heading", headings=["Sea"]),
        block(1, long, headings=["Sea"]),
        block(2, "Moon", kind="heading", headings=["Sea", "Moon"]),
        block(3, long, headings=["Sea", "Moon"]),
    ]
    sea, moon = chunks_of(blocks)
    assert (sea.first, sea.last, sea.label) == (0, 1, "Sea")
    assert (moon.first, moon.last) == (2, 3)
    assert moon.text.splitlines()[:2] == ["Sea", "Moon"]


def test_pause_ends_chunk_of_chat():
    talk = [message(n, n, "Shall we meet at the lake on Sunday?") for n in range(4)]
    later = [message(4, 60, "Something else"), message(5, 61, "Yes?", sender="Ben")]
    first, second = chunks_of([*talk, *later], is_chat=True)
    assert (first.last, second.last, second.label) == (3, 5, "Anna, Ben")
    assert first.text.startswith("[2024-03-12]\nAnna: Shall we")


def test_last_messages_are_repeated_in_next_chunk():
    blocks = [message(n, n, f"Message number {n} of some") for n in range(30)]
    found = chunks_of(blocks, is_chat=True)
    assert len(found) > 2
    assert found[-1].last == 29
    assert all(two.first == one.last for one, two in pairwise(found))


def test_system_lines_and_empty_blocks_are_left_out():
    blocks = [block(0, "Anna joined", kind="system"), block(1, "  "), block(2, "Words")]
    (found,) = chunks_of(blocks)
    assert (found.first, found.last, found.text) == (2, 2, "Words")


def test_one_line_of_many_megabytes_is_bounded():
    found = chunks_of([block(0, "word " * 1_000_000)], tokens=400)
    assert 4_000 < len(found) < 5_000
    assert max(len(one.text) for one in found) <= 1_200
    assert (found[0].start, found[-1].end) == (0, 5_000_000)


def test_number_of_chunks_is_bounded(monkeypatch):
    monkeypatch.setattr(chunking, "MOST_CHUNKS", 3)
    assert len(chunks_of([block(0, "word " * 10_000)])) == 3


TEXTS = st.lists(
    st.sampled_from(
        ["a", "é", "e\u0301", "क्षि", FAMILY, "🇩🇪", "👍🏽", "한", "ㅎ", ". ", "\r\n", "中", " "]
    ),
    min_size=1,
    max_size=150,
).map("".join)


@given(TEXTS, st.integers(min_value=30, max_value=90))
def test_cut_pieces_are_whole_text_of_graphemes(text: str, most: int):
    begin, pieces = 0, []
    while begin < len(text):
        end = graphemes.cut(text, begin, most)
        assert end > begin
        pieces.append(text[begin:end])
        begin = end
    assert "".join(pieces) == text
    for piece in pieces:
        assert len(piece.encode()) <= most
        assert not unicodedata.category(piece[0]).startswith("M") or piece is pieces[0]
        assert piece[0] != "\u200d"
        assert piece[-1] != "\u200d" or piece is pieces[-1]
        assert not piece.startswith("🏽")


@given(
    st.lists(
        st.tuples(st.text(max_size=400), st.sampled_from(["message", "paragraph", "heading"])),
        max_size=25,
    ),
    st.booleans(),
)
def test_chunks_cover_each_block_with_text(blocks: list[tuple[str, str]], is_chat: bool):
    rows = [block(n, text, kind=kind, sender="S") for n, (text, kind) in enumerate(blocks)]
    found = chunks_of(rows, is_chat=is_chat)
    covered = {n for one in found for n in range(one.first, one.last + 1)}
    assert {n for n, (text, _kind) in enumerate(blocks) if text.strip()} <= covered
    assert [one.first for one in found] == sorted(one.first for one in found)
    limit = 100 * chunking.BYTES_PER_TOKEN
    assert all(len(one.text.encode("utf-8", "replace")) <= 1.3 * limit for one in found)
