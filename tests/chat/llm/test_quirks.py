"""The vocabulary of what a model's server refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.llm.quirks import (
    DEVELOPER,
    FIRST_USER_MESSAGE,
    NONE,
    SYSTEM,
    Quirks,
    entry,
    is_known,
    is_valid,
    parse_line,
)

AT = "2026-11-30T03:12:00+00:00"


@pytest.mark.parametrize(
    ("line", "quirks"),
    [
        ("cap: max_completion_tokens", Quirks(cap="max_completion_tokens")),
        ("cap: max_tokens", Quirks(cap="max_tokens")),
        ("instructions: first user message", Quirks(instructions=FIRST_USER_MESSAGE)),
        ("instructions: developer message", Quirks(instructions=DEVELOPER)),
        ("instructions: system message", Quirks(instructions=SYSTEM)),
        ("longest reply: 4096", Quirks(longest_reply=4096)),
        ("continuation: left out", Quirks(continues=False)),
        ("  temperature :left out ", Quirks(left_out=frozenset({"temperature"}))),
        ("stream_options: left out", Quirks(left_out=frozenset({"stream_options"}))),
    ],
)
def test_line_of_vocabulary_is_read(line, quirks):
    subject, value = parse_line(line)

    assert Quirks.of({subject: entry(value, AT)}) == quirks


@pytest.mark.parametrize(
    "line",
    [
        *("", "temperature", "temperature: 0.5", "temperature: left out, please", ": left out"),
        *("model: left out", "messages: left out", "max_tokens: left out", "cap: left out"),
        *("cap: tokens", "instructions: none", "longest reply: many", "longest reply: 15"),
        *(
            "longest reply: 10000000000",
            "longest reply: ٤٠٩٦",
            "longest reply: -5",
            "a b: left out",
        ),
        *("continuation: prefill", "Temperatur\u0435: left out", "x" * 70 + ": left out"),
    ],
)
def test_line_outside_vocabulary_is_refused(line):
    with pytest.raises(ValueError, match="is not a quirk") as raised:
        parse_line(line)

    assert "stand" not in str(raised.value)
    assert len(str(raised.value)) < 600


def test_entries_are_combined():
    stored = {
        "cap": entry("max_completion_tokens", AT),
        "longest reply": entry("1000", AT),
        "top_p": entry("left out", AT),
        "temperature": entry("left out", AT),
    }

    quirks = Quirks.of(stored)

    assert quirks.cap == "max_completion_tokens"
    assert quirks.left_out == {"top_p", "temperature"}
    assert (quirks.lower(500), quirks.lower(5_000)) == (500, 1_000)
    assert Quirks().lower(5_000) == 5_000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(st.text(max_size=30) | st.sampled_from(["cap", "longest reply"]), json_values)
)
def test_unknown_entries_are_ignored(stored):
    assert (
        Quirks.of({subject: one for subject, one in stored.items() if not is_known(subject, one)})
        == NONE
    )


@pytest.mark.parametrize("value", [None, 4096, True, ["left out"], {"left out": 1}])
def test_values_are_texts(value):
    assert not is_valid("longest reply", value)
    assert not is_valid("temperature", value)
