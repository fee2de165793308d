"""Highlighted code: the same characters, in time that has a bound."""

from __future__ import annotations

import re
import time
from html import unescape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pygments.lexer import RegexLexer
from pygments.lexers import get_lexer_by_name

from chat.rendering.document import to_html
from chat.rendering.highlighting import ALLOWED, LEXERS, MAX_CODE, NAMES, highlighted

CODE = st.text("ab_ \n\t\"'`/*#<>(){}[]=$@%\\&;:.,-+|0é👍", max_size=120)


@settings(deadline=None)  # the first use of a lexer loads it
@given(st.sampled_from(sorted(LEXERS)), CODE)
def test_code_keeps_its_characters(language, code):
    html = highlighted(code, language)
    assert html is not None
    assert set(re.findall(r'<span class="(\w+)">', html)) <= ALLOWED
    assert unescape(re.sub(r'<span class="\w">|</span>', "", html)) == code


def test_tokens_get_their_classes():
    html = to_html("```Python\n@x\ndef f(a):  # why\n    return 's' + 1\n```")
    assert dict(map(reversed, re.findall(r'<span class="(\w)">([^<]*)</span>', html))) == {
        "@x": "f", "def": "k", "f": "f", "# why": "c", "return": "k", "'s'": "s", "1": "n",
    }  # fmt: skip
    changed = to_html("```diff\n-old\n+new\n```")
    assert '<span class="d">-old' in changed
    assert '<span class="i">+new' in changed


@pytest.mark.parametrize(
    ("code", "language"),
    [
        ("x = 1", "brainfuck"), ("x = 1", ""), ("x = 1\n" * 2_000, "python"), ("x" * 501, "python"), ("\n" * 30, "c"),
        ("x" + "\n\n  " * 20, "c"),
        ("word " * 60, "java"),
    ],
)  # fmt: skip
def test_other_code_is_plain(code, language):
    assert highlighted(code, language) is None
    assert "<span" not in to_html(f"```{language}\n{code}\n```")


def test_text_of_much_code_is_plain_in_the_end():
    html = to_html("```python\nx = 1\n```\n" * 10_000)
    assert 6_000 <= html.count('<span class="n">1</span>') < 7_000


def test_every_language_has_a_lexer():
    for name in NAMES:
        assert get_lexer_by_name(name) is not None
    assert all(language == language.lower() for language in LEXERS)


SHAPES = (
    "(", "[", "{", "<", "'", '"', "/", "/*", "#", "\\", "$(", "${", "`", "@", "a ", "a.", "a=", "a(", "1", "-", "<a ", "<!--", "<?",
    "&", "=~", "%", "{{", "|", "::", "=>", "[[", "R\"(", "a<", "template<", "class a", "def a\n", "x=y\n", "a:\n", " - a\n", "\t",
    "a\n", "<<EOF\n", "a,", "@\"", "b'", "a" + "\n  " * 18,
)  # fmt: skip


MOST_TIMES = 30


@pytest.fixture(scope="module")
def usual() -> float:
    """The CPU seconds of usual code of the full length, as the measure of this machine."""
    return min(cpu_seconds("a = 1\n" * (MAX_CODE // 6), "python") for _ in range(5))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_time_of_a_lexer_has_a_bound(name, usual):
    """Of one block, which is a fifth of the code that one reply may have highlighted."""
    for shape in SHAPES:
        text = shape * (MAX_CODE // len(shape))
        if "\n" not in shape:
            text = re.sub(r"(.{490})", "\\1\n", text)[:MAX_CODE]
        assert any(cpu_seconds(text, name) < MOST_TIMES * usual for _ in range(3)), shape


def cpu_seconds(text: str, name: str) -> float:
    began = time.thread_time()
    highlighted(text, name)
    return time.thread_time() - began


def test_fault_of_a_lexer_costs_no_text(monkeypatch, caplog):
    def broken(self, text, stack=("root",)):
        raise IndexError(text)

    monkeypatch.setattr(RegexLexer, "get_tokens_unprocessed", broken)
    html = to_html("Before\n\n```python\nsecret = 1\n```\n\n**After**")
    assert "secret = 1" in unescape(html)
    assert "<strong>After</strong>" in html
    assert "IndexError" in caplog.text
    assert "secret" not in caplog.text
