"""Lists of words: folding, and bounded time."""

from __future__ import annotations

import time

import pytest

from chat.moderation.words import compiled, tokens


@pytest.mark.parametrize(
    ("lines", "text", "is_found"),
    [
        ("badger", "A BADGER!", True),
        ("badger", "badgers", False),
        ("badger*", "badgers", True),
        ("badger*", "a honeybadger", False),
        ("Straße", "STRASSE", True),
        ("café", "cafe\u0301s and CAFE", True),
        ("badger", "b\u200ba\u00add\u2060ger", True),
        ("badger", "".join(chr(ord(one) + 0xFEE0) for one in "badger"), True),
        ("badger", "".join(chr(ord(one) + 0x1D3B9) for one in "badger"), True),
        ("İstanbul", "istanbul", True),
        ("honey badger", "honey,\n  Badger", True),
        ("honey badger", "honey brown badger", False),
        ("honey badg*", "honey badgers", True),
        ("狸猫", "这是狸猫。", True),
        ("แบดเจอร์", "ตัวแบดเจอร์นะ", True),
        ("غرير", "هذا غُرَيْر", True),
        ("(a+)+$", "aaaa a", True),  # no regular expression: the word "a"
        (".*", "anything", False),
        ("\n  \n", "anything", False),
    ],
)
def test_folded_words_are_found(lines, text, is_found):
    assert compiled(lines).matches(tokens(text)) is is_found


@pytest.mark.parametrize("text", ["a" * 20_000, "a " * 10_000, "\u0301" * 20_000, "熱" * 20_000])
def test_long_list_and_text_take_bounded_time(text):
    lines = "\n".join(f"{'a' * 40}{n} b{n}*\n熱{n}\nword{n}" for n in range(333))
    began = time.process_time()
    assert not compiled(lines).matches(tokens(text))
    assert time.process_time() - began < 2
