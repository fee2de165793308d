"""Thoughts in tags are separated from the text, however the text is split."""

from __future__ import annotations

import pytest

from chat.llm.decoder import ReasoningDelta, TextDelta
from chat.llm.thoughts import FIRST_CHARACTERS, TextIsReasoning, ThoughtScanner, split_thoughts

FIRST = set(FIRST_CHARACTERS)


def scan(*texts: str, before: str = "") -> tuple[str, str]:
    """Return the text and the thoughts of a reply that comes in pieces; `before` is continued."""
    text, thoughts = before, ""
    scanner = ThoughtScanner(is_continued=bool(before))
    for piece in [*texts, None]:  # None: the end
        if piece is not None and (
            scanner.has_ended or (scanner.is_plain and not FIRST & set(piece))
        ):
            text += piece  # as generation.reply does
            continue
        for found in scanner.release() if piece is None else scanner.feed(piece, text.__str__):
            match found:
                case TextDelta():
                    assert found.text
                    text += found.text
                case ReasoningDelta():
                    assert found.text
                    thoughts += found.text
                case TextIsReasoning():
                    text, thoughts = "", thoughts + text
    return text, thoughts.strip()


@pytest.mark.parametrize(
    ("reply", "text", "thoughts"),
    [
        ("<think>\nplan **x**\n</think>\n\nAnswer", "Answer", "plan **x**"),
        ("\n <think>plan</think>Answer", "Answer", "plan"),
        ("<thinking>plan</thinking>\nAnswer", "Answer", "plan"),
        ("<thought>plan</thought>Answer", "Answer", "plan"),
        ("<Think>plan</THINK>Answer", "Answer", "plan"),
        ("[THINK]plan[/THINK]Answer", "Answer", "plan"),
        ("◁think▷plan◁/think▷Answer", "Answer", "plan"),
        ("<|begin_of_thought|>plan<|end_of_thought|>Answer", "Answer", "plan"),
        (
            "<|channel|>analysis<|message|>plan"
            "<|end|><|start|>assistant<|channel|>final<|message|>Answer",
            "Answer",
            "plan",
        ),
        ("<think>\n\n</think>\n\nAnswer", "Answer", ""),
        ("<think>a < b, </thin and x</think>Answer", "Answer", "a < b, </thin and x"),
        ("<think>İ</think>Answer", "Answer", "İ"),
        ("<think>one</think>\n<think>two</think>\n\nAnswer", "Answer", "one\n\ntwo"),
        ("<think>cut in the mid", "", "cut in the mid"),
        ("<think>cut in the tag</thi", "", "cut in the tag</thi"),
        # attributes, spaces and marks of other models
        ("<think >plan</think >Answer", "Answer", "plan"),
        ('<think time="3" mode="x">plan</think>\nAnswer', "Answer", "plan"),
        ("<thinking\n>plan</thinking\n>Answer", "Answer", "plan"),
        ("<thinkers>a</thinkers>", "<thinkers>a</thinkers>", ""),
        (
            "<|START_THINKING|>plan<|END_THINKING|>\n<|START_RESPONSE|>Answer<|END_RESPONSE|>",
            "Answer",
            "plan",
        ),
        ("<|START_RESPONSE|>\nAnswer\n<|END_RESPONSE|>\n", "Answer\n", ""),
        ("<|channel>thought\nplan\n<channel|>Answer", "Answer", "plan"),
        ("<|channel>\nplan<channel|>\nAnswer", "Answer", "plan"),
        (
            "<|channel|>analysis<|message|>plan<|end|><|start|>assistant"
            "<|channel|>final<|message|>Answer<|return|>",
            "Answer",
            "plan",
        ),
        ("<|channel|>final<|message|>Answer <|return|> it<|return|>", "Answer <|return|> it", ""),
        (
            "<|begin_of_thought|>plan<|end_of_thought|>\n\n"
            "<|begin_of_solution|>Answer<|end_of_solution|>",
            "Answer",
            "plan",
        ),
        ("<think>plan</think>\n<answer>\nAnswer </b></answer>", "Answer </b>", "plan"),
        ("<answer>a</answer>", "<answer>a</answer>", ""),
        # nested, and closed twice
        ("<think>a<think>b</think>c</think>Answer", "Answer", "a<think>bc"),
        ("<think><think>plan</think></think>Answer", "Answer", "<think>plan"),
        ("<think>plan</think></think>\n\nAnswer", "Answer", "plan"),
        ("<think>use <think> now</think>Answer", "Answer", "use <think> now"),
        ("<think>a</think>So:\n</think>\nb", "So:\n</think>\nb", "a"),
        # without the opening tag
        ("plan\n</think >\n\nAnswer", "Answer", "plan"),
        ("plan\n[/THINK]Answer", "Answer", "plan"),
        ("plan◁/think▷Answer", "Answer", "plan"),
        ("plan<|END_THINKING|><|START_RESPONSE|>Answer<|END_RESPONSE|>", "Answer", "plan"),
        ("1.  **Scan**\n    ...\n<channel|>Answer", "Answer", "1.  **Scan**\n    ..."),
        (
            "plan<|end|><|start|>assistant<|channel|>final<|message|>Answer",
            "Answer",
            "plan",
        ),
        ("plan\n</think>\n\nAnswer", "Answer", "plan"),
        ("plan</think>Answer", "Answer", "plan"),
        ("plan. </think>\nAnswer", "Answer", "plan."),
        ("plan </think>Answer", "Answer", "plan"),
        ("one\n\ntwo\n</thinking>\nAnswer", "Answer", "one\n\ntwo"),
        ("</think>\n\nAnswer", "Answer", ""),
        ("plan\n</think>", "", "plan"),
        ("plan </think>", "", "plan"),
        ("```\ncode\n```\nplan\n</think>\nAnswer", "Answer", "```\ncode\n```\nplan"),
        # mentioned
        ("```xml\n<think>a</think>\n```", "```xml\n<think>a</think>\n```", ""),
        ("```\na\n</think>\nb\n```", "```\na\n</think>\nb\n```", ""),
        ("~~~\na</think>\n~~~", "~~~\na</think>\n~~~", ""),
        ("Close it by `</think>`.", "Close it by `</think>`.", ""),
        ("Write `a</think>b` here", "Write `a</think>b` here", ""),
        ('Write "</think>" here', 'Write "</think>" here', ""),
        ("Write </think> here", "Write </think> here", ""),
        ("Write </think>, then go on", "Write </think>, then go on", ""),
        ("Use <think>a</think>b", "Use <think>a</think>b", ""),
        ("So:\n<think>\na\n</think>\nb", "So:\n<think>\na\n</think>\nb", ""),
        ("<think>a</think>Use <think>b</think>", "Use <think>b</think>", "a"),
        # no tags at all
        ("\n\n Hello <b>x</b> </thin", "\n\n Hello <b>x</b> </thin", ""),
        ("<thin", "<thin", ""),
        ("<p>a</p>", "<p>a</p>", ""),
        ("[a](b) <", "[a](b) <", ""),
        (" \n", " \n", ""),
        ("", "", ""),
    ],
)
def test_thoughts_are_separated_at_every_split(reply, text, thoughts):
    assert split_thoughts(reply) == (text, thoughts)
    for at in range(len(reply) + 1):
        assert scan(reply[:at], reply[at:]) == (text, thoughts), at
    assert scan(*reply) == (text, thoughts)


def test_continued_reply_has_no_beginning():
    assert scan("<think>a</think>b", before="Use ") == ("Use <think>a</think>b", "")


def test_closing_tag_reclassifies_text_that_was_continued():
    assert scan("n\n</think>\nAnswer", before="pla") == ("Answer", "plan")


def test_text_is_returned_as_it_comes():
    scanner = ThoughtScanner(is_continued=False)
    assert scanner.feed("He", str) == [TextDelta("He")]
    assert scanner.is_plain
    assert scanner.feed("a <b", str) == [TextDelta("a <b")]
    assert scanner.feed("c </", str) == [TextDelta("c ")]
    assert not scanner.is_plain
    assert scanner.feed("x", str) == [TextDelta("</x")]
