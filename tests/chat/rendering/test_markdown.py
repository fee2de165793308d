# ruff: noqa: RUF001  full-width characters are the subject of some tests

from __future__ import annotations

import json
import re
import time
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.rendering import document as markdown
from chat.rendering import mathml

DIRECTION = re.compile(r' dir="(auto|ltr)"')


def to_html(text: str) -> str:
    """The HTML of a reply without the directions of its blocks, which test_directions.py tests."""
    return DIRECTION.sub("", markdown.to_html(text))


def test_common_markdown_is_rendered():
    html = to_html("# One\n\n**two** *three* ~~four~~ `five`\nsix\n\n1. seven\n\n- eight\n\n> nine")
    assert html == (
        "<h3>One</h3>\n"
        "<p><strong>two</strong> <em>three</em> <s>four</s> <code>five</code><br>\nsix</p>\n"
        "<ol>\n<li>seven</li>\n</ol>\n<ul>\n<li>eight</li>\n</ul>\n"
        "<blockquote>\n<p>nine</p>\n</blockquote>\n"
    )


@pytest.mark.parametrize(
    ("levels", "shown"),
    [
        ([1, 2, 3, 4, 5, 6], ["h3", "h4", "h5", "h6", "h6", "h6"]),
        ([3, 3], ["h3", "h3"]),
        ([2, 4, 2], ["h3", "h4", "h3"]),
        ([6], ["h3"]),
    ],
)
def test_headings_begin_at_level_three(levels, shown):
    html = to_html("\n".join(f"{'#' * level} {level}" for level in levels))
    assert re.findall(r"<(h\d)>", html) == shown
    assert re.findall(r"</(h\d)>", html) == shown


def test_code_block_has_language_and_escaped_text():
    assert to_html("```python title\nif a < b & c:\n    '<b>'\n```") == (
        '<figure class="code"><figcaption>python title</figcaption><pre tabindex="0">'
        '<code class="language-python"><span class="k">if</span> a &lt; b &amp; c:\n'
        "    <span class=\"s\">'&lt;b&gt;'</span>\n"
        "</code></pre></figure>\n"
    )


@pytest.mark.parametrize("language", ['"onclick=', "a" * 31, "<b>", "ä", "words, not a language"])
def test_invalid_language_is_only_a_caption(language):
    assert to_html(f"```{language}\nx\n```") == (
        f'<figure class="code"><figcaption>{escape(language, quote=False)}</figcaption>'
        '<pre tabindex="0"><code>x\n</code></pre></figure>\n'
    )


def test_table_scrolls_and_has_no_style_attributes():
    html = to_html("|a|b|c|\n|:-|:-:|-:|\n|1|2|3|")
    assert html.startswith(
        '<div class="table" role="group" aria-label="Table" tabindex="0"><table>'
    )
    assert '<th class="left">a</th>\n<th class="center">b</th>\n<th class="right">c</th>' in html
    assert '<td class="right">3</td>' in html
    assert "style" not in html


def test_empty_heading_of_a_table_is_no_heading():
    html = to_html("| | b |\n|:-|---|\n|1|2|")
    assert '<tr>\n<td class="left"></td>\n<th>b</th>\n</tr>' in html


def rows(*lines: str) -> list[list[str]]:
    """The texts of the cells of a table's body, with the sources of formulas."""
    html = to_html("\n".join(["| a | b |", "|---|---|", *lines]))
    html = re.sub(r'<math alttext="([^"]*)".*?</math>', r"\1", html)
    return [re.findall("<td>(.*)</td>", row) for row in html.split("<tr>")[2:]]


def test_row_with_too_many_cells_is_whole():
    assert rows("|1|2|three|4|", "| 1 | 2 |", "|1|", "||2||") == [
        ["1", "2 | three | 4"],
        ["1", "2"],
        ["1", ""],
        ["", "2"],
    ]
    in_quote = to_html("> |a|\n> |-|\n> |1|**two**|\n")
    assert "<td>1 | <strong>two</strong></td>" in in_quote


def test_bars_in_formulas_and_code_end_no_cell():
    assert rows(
        "| $|x|_1$ | norm |",
        r"| \(P(A|B)\) | \[a_1|b_1\] |",
        "| `a|b` | ``c|d`` |",
        "| $$|x|$$ | $5 | $6 |",
        r"| \(a|b | c \( d | e",
    ) == [
        ["$|x|_1$", "norm"],
        [r"\(P(A|B)\)", r"\[a_1|b_1\]"],
        ["<code>a|b</code>", "<code>c|d</code>"],
        ["$$|x|$$", "$5 | $6"],
        ["(a", "b | c ( d | e"],
    ]


def test_links_open_new_tab_without_referrer():
    assert to_html("[a](https://example.org/?b=1&c=2)") == (
        '<p><a href="https://example.org/?b=1&amp;c=2" target="_blank"'
        ' rel="noopener noreferrer nofollow">a</a></p>\n'
    )


@pytest.mark.parametrize(
    "target",
    ["javascript:alert(1)", "data:text/html,x", "vbscript:x", "/accounts/logout/", "//x.org"],
)
def test_links_of_other_schemes_are_refused(target):
    assert to_html(f"[*a*]({target})") == f"<p>[<em>a</em>]({target})</p>\n"
    assert to_html(f"![a]({target})") == f"<p>![a]({target})</p>\n"
    assert "<a" not in to_html(f"[a][1]\n\n[1]: {target}")


def test_link_without_text_shows_its_address():
    assert links("[](https://a.org/x)") == [("https://a.org/x", "https://a.org/x")]
    assert to_html("[](x) { return 1; } [](tel:+1)") == "<p>[](x) { return 1; } [](tel:+1)</p>\n"


@pytest.mark.parametrize(
    "text",
    [
        "callbacks[name](event)",
        "table[key](first,second) = a[0](x_1)",
        "[docs](../a-b/ü.md) [sec](#part) [top](/)",
        '[docs](intro.md "Words of a title")',
        "[sort](std::sort<int>)",
        "map[key](lambda:0)",
        '[call](tel:+123 "Our number")',
        "![alt words](image.png)",
        "[](x)",
        "[x](<a b>)",
        "[x](" + "y" * 500 + ")",
    ],
)
def test_refused_link_stays_as_written(text):
    assert unescape(plain(to_html(text))) == text + "\n"


def test_image_becomes_link():
    html = to_html('![the *bay*](https://example.org/track.png "At low tide")')
    assert "<img" not in html
    assert 'title="At low tide"' in html
    assert 'href="https://example.org/track.png"' in html
    assert ">the bay</a>" in html


class Tags(HTMLParser):
    """The elements and attributes that a browser would find."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<a href='javascript:alert(1)'>x</a>",
        '[x](https://a.org "\\"onmouseover=alert(1)")',
        "<svg><style><img src=x onerror=alert(1)></style></svg>",
        "```\n</code></pre><script>alert(1)</script>\n```",
        "|<b onclick=a>|\n|-|\n|<iframe src=//x>|",
        '![x" onerror="alert(1)](https://a.org/x.png)',
        "<!--><script>alert(1)</script>-->",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
    ],
)
def test_html_in_reply_is_only_text(attack):
    found = Tags(to_html(attack))
    assert not found.tags & {"script", "img", "svg", "style", "iframe", "b"}
    assert not [name for name in found.attributes if name.startswith("on")]


PIECES = st.sampled_from(
    (
        "*", "**", "_", "`", "```", "\n", "\n\n", "|", "|-|\n", "#", "> ", "- ", "1. ", "[", "](",
        ")", "<", ">", "&", "![", "~~", "\\", "\t", " ", "a", "https://a.org", "<b>", "\x00",
        "\ud800", "é", "- [x] ", "<br>", "$", "\\(", "\\)", "www.a.org", "「", "[^1]: ", "  - ", "[a]: ", "[^1]",
        "<svg onload=a>", "![](https://a.org/b.png)", "](javascript:a)", "](data:text/html,a)", "```html\n", "\u202e",
    )
)  # fmt: skip
ALLOWED = (
    set(
        "a blockquote br code del div em figcaption figure h3 h4 h5 h6 hr li ol p pre s strong table"  # noqa: SIM905
        " tbody td th thead tr ul input span sup".split()
    )
    | mathml.ELEMENTS
)


@given(st.lists(PIECES, max_size=60).map("".join) | st.text(max_size=200))
def test_any_text_has_allowed_elements_only(text):
    html = to_html(text)
    found = Tags(html)
    assert found.tags <= ALLOWED
    assert found.attributes <= {
        *("href", "title", "target", "rel", "class", "tabindex", "role", "aria-label", "start"),
        *("type", "disabled", "checked", "alttext"),
        *mathml.ATTRIBUTES,
    }
    html.encode()  # it is stored and sent as UTF-8


CASES = json.loads((Path(__file__).parent / "data/markdown.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_text_of_models_is_kept_whole(case):
    html = to_html(case["text"])
    assert [part for part in case["html_contains"] if part not in html] == []
    assert [part for part in case["html_lacks"] if part in html] == []


def plain(html: str) -> str:
    """The page's text."""
    return re.sub(r"<[^>]*>", "", html)


@pytest.mark.parametrize("depth", [9, 14, 25, 80, 200, 5_000])
@pytest.mark.parametrize("marker", ["- ", "> ", "1. ", "> - ", "- > 1. "])
def test_deep_nesting_loses_no_word(marker, depth):
    html = to_html(marker * depth + "bottom\n\nafter")
    assert "bottom" in html
    assert "after" in html
    if depth <= 80 and len(marker) <= 4:
        assert not re.search(r"&gt;|- bottom|1\. bottom", html), "80 levels are set"


def test_list_lines_of_eighty_levels_are_kept():
    lines = [f"{'  ' * level}- level{level}." for level in range(80)]
    html = to_html("\n".join(lines))
    assert [level for level in range(80) if f"level{level}." not in html] == []
    assert html.count("<ul>") == 80
    lines = [f"{'> ' * level}level{level}.\n{'> ' * level}" for level in range(1, 80)]
    assert to_html("\n".join(lines)).count("<blockquote>") == 79


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("の**「太字」**です", "の<strong>「太字」</strong>です"),
        ("**스크립트(script)**라고", "<strong>스크립트(script)</strong>라고"),
        ("これは**（重要）**です", "これは<strong>（重要）</strong>です"),
        ("**该星号。**这是", "<strong>该星号。</strong>这是"),
        ("**Ｗｉｄｅ！**全角", "<strong>Ｗｉｄｅ！</strong>全角"),
        ("は~~「消」~~です", "は<s>「消」</s>です"),
        ("と***「強」***です", "と<em><strong>「強」</strong></em>です"),
        ("_「字」_ です", "<em>「字」</em> です"),
        ("は*「字」*と", "は<em>「字」</em>と"),
        ("は**“\ufe01字”\ufe01**と", "は<strong>“\ufe01字”\ufe01</strong>と"),
        ("**葛\U000e0100(字)**と", "<strong>葛\U000e0100(字)</strong>と"),
        ("snake_case_字", "snake_case_字"),
        ("**Warning:**text", "**Warning:**text"),
        ("**👍**text", "**👍**text"),
        ("a ** b ** c", "a ** b ** c"),
    ],
)
def test_emphasis_works_beside_cjk_text(text, html):
    assert to_html(text) == f"<p>{html}</p>\n"


@pytest.mark.parametrize("text", ["a<br>b", "# a<br>b", "- a<br/>b", "a <br onclick=x>"])
def test_line_break_tag_outside_tables_is_text(text):
    assert "&lt;br" in to_html(text)
    cell = to_html(f"|a|\n|-|\n|{text.split()[-1]}|")
    assert ("<br>" in cell) is ("onclick" not in text)


@pytest.mark.parametrize("tag", ["<br>", "<BR/>", "<br />", "<br  />", "<br/ >", "</br>"])
def test_line_break_tag_in_cell_breaks_line(tag):
    assert "<td>x<br>\ny</td>" in to_html(f"|a|\n|-|\n|x{tag}y|")
    assert "<code>&lt;" in to_html(f"|a|\n|-|\n|`{tag}`|")
    assert "<td>$HOME<br>\n$PATH</td>" in to_html(f"|a|\n|-|\n|$HOME{tag}$PATH|")


@pytest.mark.parametrize(
    "text",
    [
        "$5 or $10", "US$5–$10", "costs 5$ and 6$", "$HOME and $PATH", "$HOME/$USER", "a$x$b", "$total_price$",
        r"\(\bogus{x}\)", r"\(\frac{1}{\)", r"\(\def\a{\a\a}\a\)", r"\[\href{https://a.org}{x}\]", r"\(" + "{" * 900 + r"\)",
        r"$\newcommand{\b}{c} \b_1$",
    ],
)  # fmt: skip
def test_formula_and_money_stay_as_written(text):
    assert to_html(text) == f"<p>{text}</p>\n"


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        (r"\(E=mc^2\)", "msup"), (r"$a_1*b + c*d_2$", "msub"), ("$$x_1 * y * z$$", "msub"), ("$n$", "mi"), ("$2x$", "mn"),
        (r"$\{a\}$", "mo"), (r"$a\$b$", "mi"), (r"\[\frac{a}{b}\]", "mfrac"), (r"$f(x)$", "mi"), (r"$\text{price} = 5$", "mtext"),
        (r"$$\begin{pmatrix}a & b \\ c & d\end{pmatrix}$$", "mtable"), (r"$\alpha$", "mi"), (r"$x \le 5$", "mo"),
    ],
)  # fmt: skip
def test_formula_becomes_mathml_with_its_source(text, tag):
    html = to_html(text)
    [(source, display)] = re.findall(r'<math alttext="([^"]*)" display="(\w+)">', html)
    assert unescape(source) == text
    assert display == ("block" if text.startswith(("$$", "\\[")) else "inline")
    assert f"<{tag}" in html
    assert unescape(plain(html)).strip() not in (text, "")


def test_formula_has_no_html_of_its_own():
    html = to_html(
        r'\(\text{<script>alert(1)</script>}\) \(\text{" onload="x}\) $\color{red}{x_1}$'
    )
    assert Tags(html).tags <= {"p", *mathml.ELEMENTS}
    assert Tags(html).attributes <= {"display", "alttext"}
    assert html.count("&lt;script&gt;") == 2  # in the text and in the source


def test_many_formulas_are_shown_as_written():
    assert to_html(r"\(x_1\) " * 20_000).count("<math") == 40_000 // 3


def test_money_does_not_hide_other_markup():
    html = to_html(
        "**$5** or **$10**; $x in `$y`; *$5* and \\\\(a), [a$](https://a.org) [b$](https://b.org)"
    )
    assert html.count("<strong>") == 2
    assert "<code>$y</code>" in html
    assert html.count("<a ") == 2
    assert "\\(a)" in html


@pytest.mark.parametrize(("opener", "closer"), [("$$", "$$"), (r"\[", r"\]")])
def test_formula_of_several_lines_becomes_mathml(opener, closer):
    lines = [opener, "a_1 * b_1 * c", "=", "- d", "+ e", closer]
    for before, between in (("", ""), ("> ", "> "), ("- ", "  ")):
        html = to_html(before + f"\n{between}".join(lines) + ".")
        assert html.count("<math") == html.count('display="block"') == 1
        assert html.count("<li>") == (before == "- ")
        assert "</math>." in html


@pytest.mark.parametrize(("opener", "closer"), [("$$", "$$"), (r"\[", r"\]")])
def test_odd_formula_of_several_lines_stays_as_written(opener, closer):
    lines = [opener, "a_1 * b_1 * c", "=", "- d", r"\bogus + e", closer]
    shown = "<p>" + "<br>\n".join(lines) + "</p>\n"
    assert to_html("\n".join(["So", *lines, "where *x*"])) == (
        f"<p>So</p>\n{shown}<p>where <em>x</em></p>\n"
    )
    assert shown in to_html("\n".join(f"> {line}" for line in lines))
    in_item = to_html("- so\n" + "\n".join(f"  {line}" for line in lines) + "\n- on")
    assert shown in in_item
    assert "<li>on</li>" in in_item
    assert "<li>d<br>" in to_html("\n".join(lines[:-1])), "without an end it is no formula"


@pytest.mark.parametrize(("opener", "closer"), [("$$", "$$"), (r"\[", r"\]")])
@pytest.mark.parametrize("prefix", ["", "  ", "> "])
def test_formula_with_blank_lines_stays_as_written(opener, closer, prefix):
    lines = [opener, "", "a_1 * b_1", "", r"\bogus* c_1", "", closer]
    html = to_html(
        f"{'- ' if prefix == '  ' else prefix}so\n" + "\n".join(prefix + line for line in lines)
    )
    assert "<br>\n".join(lines) in html


def links(text: str) -> list[tuple[str, str]]:
    return re.findall(r'<a href="([^"]*)"[^>]*>([^<]*)</a>', to_html(text))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("see https://a.org/b_c_d, or", "https://a.org/b_c_d"),
        ("(https://a.org/x).", "https://a.org/x"),
        ("(see https://a.org/x_(y))", "https://a.org/x_(y)"),
        ("[https://a.org/x]", "https://a.org/x"),
        ("见https://a.org/x。谢谢", "https://a.org/x"),
        ("「https://a.org/x」", "https://a.org/x"),
        ("https://a.org/x？", "https://a.org/x"),
        ("**https://a.org/**は", "https://a.org/"),
        ("https://a.org/__init__.py!", "https://a.org/__init__.py"),
        ("https://a.org/?a=1&b=*c*;", "https://a.org/?a=1&amp;b=*c"),
        ('"https://a.org/x"', "https://a.org/x"),
        ("http://localhost:8000/x…", "http://localhost:8000/x"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("https://a.org:", "https://a.org"),
        ("_https://a.org/x_ or", "https://a.org/x"),
        ("snake_case_ https://a.org/x_y_", "https://a.org/x_y"),
        ("https://a.org/&lt;", "https://a.org/"),
    ],
)
def test_bare_address_is_link_without_punctuation(text, url):
    assert links(text) == [(url, url)]


def test_bare_address_in_other_scripts_is_link():
    assert links("https://bücher.example/straße und www.a.org/x.") == [
        ("https://xn--bcher-kva.example/stra%C3%9Fe", "https://bücher.example/straße"),
        ("http://www.a.org/x", "www.a.org/x"),
    ]
    assert links("访问https://example.com请看") == [("https://example.com", "https://example.com")]
    assert links("[https://a.org](https://b.org)") == [("https://b.org", "https://a.org")]


def test_bare_address_contains_entity_as_its_character():
    assert links("https://a.org/?q=1&amp;r=2, https://a.org/x&amp; y") == [
        ("https://a.org/?q=1&amp;r=2", "https://a.org/?q=1&amp;r=2"),  # escaped once
        ("https://a.org/x", "https://a.org/x"),
    ]
    assert unescape(plain(to_html("https://a.org/x&amp; y"))) == "https://a.org/x& y\n"


@pytest.mark.parametrize(
    "text",
    [
        "`https://a.org`", "    https://a.org", "```\nhttps://a.org\n```", "https://", "https://.", "www.", "www.a",
        "xhttps://a.org", "https://a:99999/", "ftp://a.org", "https://user@a.org/", "https://user:word@a.org/", "https://user:1@a.org", "a.www.b.c", "<std::vector>",
    ],
)  # fmt: skip
def test_other_text_is_no_address(text):
    assert "<a" not in to_html(text)
    assert text.strip("` \n").replace("<", "&lt;").replace(">", "&gt;") in to_html(text)


def test_footnotes_are_marks_and_notes():
    html = to_html("a[^1] [b[^n]](https://b.org)[^2]\n[^1]: note\n[^n]: two\n\n    parts\n\nend")
    assert html.count('<sup class="note-ref">') == 2
    assert "</a>[^2]" in html, "a mark without a note stays as it is written"
    assert html.count('<div class="note">') == 2
    assert '<sup class="note-label">n</sup>\n<p>two</p>\n<p>parts</p>\n</div>\n<p>end</p>' in html
    for text in ("- [^1]: a [^1]", "> [^1]: a [^1]", "    [^1]: a", "`[^1]`\n\n[^2]: x", "[^ ]: a"):
        assert "note-ref" not in to_html(text)
    hostile = to_html("x[^<b>]\n\n[^<b>]: <script>y</script>")
    assert "<script" not in hostile
    assert '<sup class="note-ref">&lt;b&gt;</sup>' in hostile


def test_unused_definitions_are_shown():
    html = plain(to_html("[Note]: word"))
    assert html == "[Note]: word\n"
    html = to_html("[1]: https://a.org 'T'\n[2]: https://b.org\n[1]: https://c.org\n\nsee [1]")
    assert plain(html) == "[2]: https://b.org\n[1]: https://c.org\nsee 1\n"
    assert 'href="https://a.org"' in html


def test_image_in_link_is_one_link():
    assert links("[![built](https://a.org/b.svg)](https://a.org/c)") == [
        ("https://a.org/c", "built")
    ]
    assert plain(to_html(r"![a \* $b$](https://a.org) ![](./x.png)")) == ("a * $b$ ![](./x.png)\n")


def test_task_list_has_disabled_labelled_boxes():
    assert to_html("- [ ] open\n- [x] closed\n- other") == (
        "<ul>\n"
        '<li class="task-list-item"><input type="checkbox" disabled="" aria-label="To do"> open</li>\n'
        '<li class="task-list-item"><input type="checkbox" disabled="" aria-label="Done" checked="">'
        " closed</li>\n<li>other</li>\n</ul>\n"
    )


# Texts of 200 kB that are mostly markup. Each one, or its like, once took seconds.
SIZE = 200_000
SHAPES = {
    "backticks of growing length": "".join("`" * n + " " for n in range(1, 630)),
    "asterisks of growing length": "".join("*" * n + "a " for n in range(1, 630)),
    "brackets in brackets": "[" * (SIZE // 2) + "]" * (SIZE // 2),
    "images in images": "![" * (SIZE // 7) + "](a)" * (SIZE // 7),
    "long definition": "[a]: https://a.org/" + "b" * (SIZE // 2) + "\n\n" + "[a] " * (SIZE // 8),
    "wide table": "|a" * (SIZE // 6) + "|\n" + "|-" * (SIZE // 6) + "|\n" + "|b" * (SIZE // 6),
    "missing cells": "|a" * 1000 + "|\n" + "|-" * 1000 + "|\n" + "|b|\n" * (SIZE // 4),
    "tall table": "|a|b|\n|-|-|\n" + "|1|2|\n" * (SIZE // 6),
    "lazy lines in quotes": "> " * 80 + "a\n" + "b\n" * (SIZE // 2),
    "lines in deep quotes": ("> " * 80 + "a\n") * (SIZE // 162),
    "lines in deep lists": ("- " * 60 + "a\n") * (SIZE // 122),
    "open emphasis": "*a _b " * (SIZE // 12) + "c_ d* " * (SIZE // 12),
    "closing brackets": "https://a.org/" + ")" * SIZE,
    "bars in formulas": "|a|\n|-|\n|" + "\\(|" * (SIZE // 3),
    "bars in code": "|a|\n|-|\n|" + "`|" * (SIZE // 2),
    "blank lines in formulas": "$$\n\n" * (SIZE // 4),
    "open title": "[a]: b '" + "c\n" * (SIZE // 2),
    "notes": "".join(f"[^{n}]: note [^{n}]\n" for n in range(SIZE // 20)),
    "marks before notes": "".join(f"a[^{n}]\n\n" for n in range(SIZE // 24))
    + "".join(f"[^{n}]: b\n" for n in range(SIZE // 24)),
    "notes in notes": "[^a]: " * (SIZE // 6),
    "marks of one note": "[^a]: b\n\n" + "[^a]" * (SIZE // 4),
    "long note": "[^a]: b\n" + "    c\n\n" * (SIZE // 7),
    "open fence": "```html\n" + "<script>\n" * (SIZE // 9),
    "macros": "$$\\def\\a{\\a\\a}\\a$$\n\n" * (SIZE // 22),
    "open fractions": ("$" + "\\frac{" * 280 + "$ ") * (SIZE // 1_700),
    "open matrices": ("\\[" + "\\begin{matrix}a&" * 110 + "\\] ") * (SIZE // 1_800),
    "both directions": "\u202e\u2067\u05d0\u2069 a " * (SIZE // 7),
    "combining marks": "a" + "\u0301" * SIZE,
}
PIECES_OF_SHAPES = (
    "*", "*a_ ", "[", "[a](", "![", "![a](", "`a``b```c", ">", "> ", "> a\n", "<", "&", "|-", "- ", "- a\n", "~~a", "\\[",
    "\\(", "[a]: b\n", "[^a]", "a\n=", "|a|b|\n|-|-|\n", "  - a\n", "```\n", "<http:", "<a@b.c>", "[a](<b", "[x](y) ",
    "$", "$a", "$$\n", "\\[a\n", "http://", "http://a.b ", "www.a.b ", "a@b.c ", "://", "<br>", "**「a」**", "- [ ] a\n",
    "a\n", "\n", "&lt;", "1. > ", "\\", "_", "~", "!", ":", "w", "\ud800", "\x00",
)  # fmt: skip
SHAPES |= {piece: piece * (SIZE // len(piece)) for piece in PIECES_OF_SHAPES}


def cpu_seconds(text: str) -> float:
    began = time.thread_time()
    to_html(text)
    return time.thread_time() - began


@pytest.fixture(scope="module")
def ordinary_seconds() -> float:
    """The time for a list of links: 200 kB of ordinary markup."""
    text = "- **Some words**, and [a link](https://example.org/) to `code` and more of it.\n"
    return cpu_seconds(text * (SIZE // len(text)))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=[repr(name)[:30] for name in SHAPES])
def test_rendering_time_has_a_bound(shape, ordinary_seconds):
    assert cpu_seconds(shape) < 6 * ordinary_seconds + 0.5


def test_text_beyond_the_budget_is_shown_plainly():
    html = to_html("**a**\n\n" + "- <b>\n" * 60_000 + "\nlast")
    assert html.startswith("<p><strong>a</strong></p>\n<ul>\n<li>&lt;b&gt;</li>\n")
    assert html.endswith("<p>- &lt;b&gt;</p>\n<p>last</p>\n")
    html = to_html("**a**\n\n" + "*a* " * 60_000 + "\n\n- *b*")
    assert html.startswith("<p><strong>a</strong></p>")
    assert html.endswith("<li>*b*</li>\n</ul>\n"), (
        "blocks remain when only their markup is too much"
    )


def test_long_ordinary_text_keeps_its_markup():
    text = "- **Some words**, and [a link](https://example.org/) to `code` and more of it.\n"
    assert to_html(text * (SIZE // len(text))).count("<strong>") == SIZE // len(text)
