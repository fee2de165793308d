"""A reply that is rendered block by block while it streams in."""

from __future__ import annotations

import re
import time
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chat.rendering.document import Document, is_light, to_html
from chat.rendering.markdown import Context, render_block
from chat.rendering.splitter import Block

LINES = st.sampled_from(
    (
        "*a*", "**b** c", "`x`", "```", "```py", "~~~", "| a | b |", "|---|---|", "| 1 | 2 |", "# H", "## I", "> q", "- i",
        "- j", "* k", "1. o", "2. p", "  - n", "    c", "  t", "word", "[a]", "[a]: https://x.org", "see [b][a]", "$$", "\\[",
        "\\]", "$$x$$", "---", "***", "===", "- ", "", "", "", "   ", "- [x] t", "[^1]", "[^1]: note", "[^b]: x[^1]", "a[^b]", "é👍", "\t- t", "\r",
    )
)  # fmt: skip
MARKDOWN = st.lists(LINES, max_size=14).map("\n".join) | st.text(
    "ab*_`#>-+1.)|:[]()$\\~ \t\n\u0661é👍", max_size=80
)


def stream(pieces: list[str]) -> tuple[Document, list[str]]:
    """Render a text that comes in pieces; return its blocks as a client has them in the end."""
    document, blocks = Document(), list[str]()
    for piece in pieces:
        document.render(document.split(piece))
    document.render(document.split_rest())
    document.settle()
    for first, html in document.take_changes():
        blocks[first : first + len(html)] = html
    return document, blocks


def joined(blocks: list[str]) -> str:
    """The HTML of a page that has received these blocks: items and rows are in the list or table before."""
    html = ""
    for block in blocks:
        if block.startswith(("<li", "<tr")):
            end = re.search(r"(?:</(?:ul|ol)>|</tbody></table></div>)\n$", html)
            assert end is not None
            html = html[: end.start()] + block + end[0]
        else:
            html += block
    return html


@given(MARKDOWN, st.lists(st.integers(0, 200), max_size=12))
def test_every_split_gives_the_same_html(text, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    document, blocks = stream([text[begin:end] for begin, end in pairwise(edges)])
    assert document.html() == joined(blocks) == to_html(text)
    assert document.length == len(text)
    assert document.split_length == len(text.encode("utf-16-le")) // 2
    assert stream(list(text))[0].html() == to_html(text)


def letters(html: str) -> Counter[str]:
    """Those that are shown; not words, which a formula divides."""
    return Counter(re.findall(r"\w", re.sub(r"<[^>]*>", " ", html)))


@given(MARKDOWN)
@example("- [x] t\n$$\n[^1]: note\n$$")
def test_splitting_loses_no_letter(text):
    """All that a parser of the whole text shows is shown."""
    whole = render_block(Block(text), Context())
    assert letters(whole.html + whole.end) <= letters(to_html(text))


ORDINARY = """\
# Plan

Some *text* with `code`,
of two lines:
- one
- two
  - deep

  still two

3. three
4. four

> a quote
> of two lines

| a | b |
|---|--:|
| 1 | `x|y` |
| 2 | 3 |
after the table

```py
def f():

    return 1
```
text at once
## Next
    not code

    code

    code

\\[
x = 1

y
\\]

$$a$$ and *more*
***
- [ ] open
- [x] done

[docs]: https://docs.example.org
See [docs].
"""


def test_blocks_are_those_of_the_whole_text():
    whole = render_block(Block(ORDINARY), Context())
    loosened = re.compile(
        r"</?p(?: dir=\"auto\")?>\n?|\n"
    )  # items are loose from the first such one on
    assert loosened.sub("", to_html(ORDINARY)) == loosened.sub("", whole.html + whole.end)


def test_blocks_end_as_soon_as_that_is_certain():
    document = Document()

    def ended(piece: str) -> list[str]:
        return [block.text for block in document.split(piece)]

    assert ended("one\ntwo\n") == []
    assert ended("\n") == ["one\ntwo\n"]
    assert ended("# H\n") == ["# H\n"]
    assert ended("- a\n  b\n- ") == []
    assert ended("c") == ["- a\n  b\n"]
    assert ended("\n\n") == []
    assert ended("T") == ["- c\n\n"]
    assert ended("ext\n```\na\n\n```") == ["Text\n"]
    assert ended("\n") == ["```\na\n\n```\n"]
    assert ended("|a|b|\n|-|-|\n") == ["|a|b|\n|-|-|\n"]
    assert ended("|1|2|\n") == ["|1|2|\n"]
    assert ended("\n\\[\nx\n\n- y\n") == []
    assert ended("\\]\n") == ["\\[\nx\n\n- y\n\\]\n"]


def test_split_length_counts_as_browsers_do():
    document = Document()
    document.render(document.split("👍 é\n\nrest"))
    assert document.split_length == len("👍 é\n\n".encode("utf-16-le")) // 2 == 6


@pytest.mark.parametrize("definition", ["[x]: https://a.org", "[x]: https://a.org 'T'"])
def test_later_definition_replaces_blocks_that_use_it(definition):
    document = Document()
    text = f"First\n\nsee [x] and [y]\n\nthen [z]\n\n{definition}\n\nend"
    document.render(document.split(text))
    before = document.take_changes()
    assert "see [x] and [y]" in before[0].blocks[1]
    document.render(document.split_rest())
    document.settle()
    changes = document.take_changes()
    assert [change.first for change in changes] == [4, 1, 3]
    assert 'href="https://a.org"' in changes[1].blocks[0]
    assert changes[2].blocks == [""]
    assert document.html() == to_html(text)


def test_definition_disappears_when_a_link_uses_it():
    document = Document()
    document.render(document.split("[x]: https://a.org\n\n# H\n"))
    assert "[x]:" in document.take_changes()[0].blocks[0]
    document.render(document.split("see [x]\n\n"))
    document.render(document.split_rest())
    document.settle()
    assert document.take_changes()[-1] == (0, [""])
    assert document.html().startswith("<h3")


def test_hostile_block_is_not_light():
    document = Document()
    assert is_light(document.split("Some *text* of a [model](https://a.org).\n\n" * 20))
    assert not is_light(document.split("[" * 1_000 + "\n\n"))
    assert not is_light(document.split("a " * 5_000 + "\n\n"))
    assert not is_light(document.split("```py\nx\n```\n"))


@pytest.mark.parametrize("line", ["- a", "| a | b |", "> a", "$$", "\\[ x", "a", "```", "[^1]: a"])
def test_splitting_takes_linear_time(line):
    def seconds(count: int) -> float:
        document = Document()
        text = f"|a|b|\n|-|-|\n{line}\n" if line.startswith("|") else f"{line}\n"
        began = time.thread_time()
        for _ in range(count):
            document.split(text)
        document.split_rest()
        return time.thread_time() - began

    assert seconds(8_000) < 40 * seconds(800) + 1
