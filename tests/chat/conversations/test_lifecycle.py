"""The first title of a conversation."""

from __future__ import annotations

import pytest

from chat.conversations.lifecycle import TITLE_CHARACTERS, first_title


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("On  tides\nand ebbs", "On tides"),
        ("x" * 50, "x" * 50),
        ("word " * 20, "word " * 8 + "word word…"),
        ("潮の満ち引き" * 10, ("潮の満ち引き" * 10)[:49] + "…"),
        ("説明 " + "潮の満ち引き" * 10, ("説明 " + "潮の満ち引き" * 10)[:49] + "…"),
        ("https://example.org/" + "a" * 90, "https://example.org/" + "a" * 29 + "…"),
        ("\x1c", "…"),
    ],
)
def test_first_title_is_cut_at_a_word(text: str, title: str):
    assert first_title(text) == title
    assert len(title) <= TITLE_CHARACTERS
