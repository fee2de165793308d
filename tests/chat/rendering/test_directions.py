from __future__ import annotations

import re

import pytest

from chat.rendering.document import to_html

ARABIC = "مرحبا بالعالم"


@pytest.mark.parametrize("before", ["", "# ", "###### ", "- ", "1. ", "> ", "> - > "])
def test_every_block_has_a_direction(before):
    html = to_html(f"{before}{ARABIC}")
    inside = html[: html.index(ARABIC)]
    assert inside.count('dir="auto"') == 1
    # Blocks around it have no letters of their own: they take the direction of this one.
    outermost = re.findall(r"<(?!ul|ol)[^>]+>", inside)[0]
    assert 'dir="auto"' in outermost


def test_later_blocks_have_their_own_direction():
    html = to_html(f"- {ARABIC}\n\n  second\n- third\n\n> fourth\n>\n> {ARABIC}")
    for text in ("second", "third", "fourth"):
        assert re.search(rf'dir="auto">\s*(<p>)?{text}', html), (text, html)
    assert html.endswith(f'<p dir="auto">{ARABIC}</p>\n</blockquote>\n')


def test_table_has_one_direction():
    html = to_html(f"| {ARABIC} | b |\n|---|--:|\n| 1 | x |")
    assert re.findall(r'<(\w+)[^>]* dir="(\w+)"', html) == [("table", "auto")]


@pytest.mark.parametrize("text", ["```\nx\n```", "    x", "`x`"])
def test_code_runs_from_left_to_right(text):
    html = to_html(text)
    assert '<figure class="code" dir="ltr">' in html or '<code dir="ltr">x</code>' in html


def test_direction_follows_a_code_block():
    html = to_html(f"- ```\n  x\n  ```\n\n  {ARABIC}")
    assert f"<p>{ARABIC}</p>" in html
    assert html.startswith('<ul>\n<li dir="auto">')
