"""Quotations of a prompt are removed from an error, however long the prompt is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chat.llm.quotes import SHARED, texts, without

few_letters = st.text("ab ", max_size=60)


def without_slowly(detail: str, text: str, length: int) -> str:
    """The definition, tried from each character."""
    length = min(length, len(text))
    if length < 4:
        return detail
    for at in range(len(detail) - length + 1):
        end = at + length
        if detail[at:end] in text:
            while end < len(detail) and detail[at : end + 1] in text:
                end += 1
            return f"{detail[:at]}[…]{without_slowly(detail[end:], text, length)}"
    return detail


@given(few_letters, few_letters, st.integers(4, 25))
def test_shared_sequences_are_removed(detail, text, length):
    assert without(detail, text, length) == without_slowly(detail, text, length)


def test_quotation_in_long_prompt_is_found():
    prompt = "".join(f"Sentence number {number} of a long prompt. " for number in range(20_000))
    quoted = prompt[400_000:400_100]

    assert without(f"Refused: '{quoted}' is odd", prompt) == "Refused: '[…]' is odd"
    assert without("Refused: 'Sentence number x' is odd", prompt, SHARED).count("[…]") == 0


def test_texts_of_nested_messages_are_found():
    message = {"role": "user", "content": [{"type": "text", "text": "One"}, {"text": ["Two", 3]}]}

    assert [*texts([message])] == ["One", "Two"]
