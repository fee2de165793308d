from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.rendering import markdown

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
        '<figure class="code"><figcaption>python</figcaption><pre tabindex="0">'
        "<code class=\"language-python\">if a &lt; b &amp; c:\n    '&lt;b&gt;'\n"
        "</code></pre></figure>\n"
    )


@pytest.mark.parametrize("language", ["", '"onclick=', "a" * 31, "<b>", "ä"])
def test_invalid_language_is_left_out(language):
    assert to_html(f"```{language}\nx\n```") == (
        '<figure class="code"><pre tabindex="0"><code>x\n</code></pre></figure>\n'
    )


def test_table_scrolls_and_has_no_style_attributes():
    html = to_html("|a|b|c|\n|:-|:-:|-:|\n|1|2|3|")
    assert html.startswith(
        '<div class="table" role="region" aria-label="Table" tabindex="0"><table>'
    )
    assert '<th class="left">a</th>\n<th class="center">b</th>\n<th class="right">c</th>' in html
    assert '<td class="right">3</td>' in html
    assert "style" not in html


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
    assert "href" not in to_html(f"[a]({target})")
    assert "href" not in to_html(f"[a][1]\n\n[1]: {target}")


def test_image_becomes_link():
    html = to_html("![the *bay*](https://example.org/track.png)")
    assert "<img" not in html
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
        "\ud800", "é",
    )
)  # fmt: skip
ALLOWED = set(
    "a blockquote br code del div em figcaption figure h3 h4 h5 h6 hr li ol p pre s strong table"  # noqa: SIM905
    " tbody td th thead tr ul".split()
)


@given(st.lists(PIECES, max_size=60).map("".join) | st.text(max_size=200))
def test_any_text_has_allowed_elements_only(text):
    html = to_html(text)
    found = Tags(html)
    assert found.tags <= ALLOWED
    assert found.attributes <= {
        *("href", "title", "target", "rel", "class", "tabindex", "role", "aria-label", "start")
    }
    html.encode()  # it is stored and sent as UTF-8


@pytest.mark.parametrize(
    "piece",
    [
        "*", "*a_ ", "[", "[a](", "![", "`a``b```c", ">", "> ", "<", "&", "|-", "- ", "~~a", "\\[",
        "[a]: b\n", "a\n=", "|a|b|\n|-|-|\n", "  - a\n", "```\n", "<http:", "[a](<b",
    ],
)  # fmt: skip
@pytest.mark.timeout(20)  # the slowest of these takes 0.05 s; quadratic time would be minutes
def test_rendering_time_is_linear(piece):
    to_html(piece * (40_000 // len(piece)))
