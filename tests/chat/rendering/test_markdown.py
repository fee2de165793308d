from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.rendering.markdown import to_html


def test_it_renders_what_models_write():
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
def test_headings_stand_below_those_of_the_page_and_of_the_message(
    levels: list[int], shown: list[str]
):
    html = to_html("\n".join(f"{'#' * level} {level}" for level in levels))
    assert re.findall(r"<(h\d)>", html) == shown
    assert re.findall(r"</(h\d)>", html) == shown


def test_a_code_block_says_its_language_and_shows_everything_as_it_is():
    assert to_html("```python title\nif a < b & c:\n    '<b>'\n```") == (
        '<figure class="code"><figcaption>python</figcaption><pre tabindex="0">'
        "<code class=\"language-python\">if a &lt; b &amp; c:\n    '&lt;b&gt;'\n"
        "</code></pre></figure>\n"
    )


@pytest.mark.parametrize("language", ["", '"onclick=', "a" * 31, "<b>", "ä"])
def test_a_language_that_is_none_is_left_out(language: str):
    assert to_html(f"```{language}\nx\n```") == (
        '<figure class="code"><pre tabindex="0"><code>x\n</code></pre></figure>\n'
    )


def test_a_table_has_a_box_to_scroll_in_and_no_style_attributes():
    html = to_html("|a|b|c|\n|:-|:-:|-:|\n|1|2|3|")
    assert html.startswith(
        '<div class="table" role="region" aria-label="Table" tabindex="0"><table>'
    )
    assert '<th class="left">a</th>\n<th class="center">b</th>\n<th class="right">c</th>' in html
    assert '<td class="right">3</td>' in html
    assert "style" not in html


def test_links_open_elsewhere_and_tell_nobody_where_from():
    assert to_html("[a](https://example.org/?b=1&c=2)") == (
        '<p><a href="https://example.org/?b=1&amp;c=2" target="_blank"'
        ' rel="noopener noreferrer nofollow">a</a></p>\n'
    )


@pytest.mark.parametrize(
    "target",
    ["javascript:alert(1)", "data:text/html,x", "vbscript:x", "/accounts/logout/", "//x.org"],
)
def test_links_lead_to_the_web_or_to_mail_and_nowhere_else(target: str):
    assert "href" not in to_html(f"[a]({target})")
    assert "href" not in to_html(f"[a][1]\n\n[1]: {target}")


def test_a_picture_is_a_link_so_that_nothing_is_fetched_unasked():
    html = to_html("![the *bay*](https://example.org/track.png)")
    assert "<img" not in html
    assert 'href="https://example.org/track.png"' in html
    assert ">the bay</a>" in html


class Tags(HTMLParser):
    """Collects what a browser would see of elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def seen(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    tags.close()
    return tags


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
def test_html_in_a_reply_is_only_text(attack: str):
    found = seen(to_html(attack))
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
def test_any_text_is_rendered_with_allowed_elements_only(text: str):
    html = to_html(text)
    found = seen(html)
    assert found.tags <= ALLOWED
    assert found.attributes <= {
        *("href", "title", "target", "rel", "class", "tabindex", "role", "aria-label", "start")
    }
    html.encode()  # what is stored and sent is UTF-8


@pytest.mark.parametrize(
    "piece",
    [
        "*", "*a_ ", "[", "[a](", "![", "`a``b```c", ">", "> ", "<", "&", "|-", "- ", "~~a", "\\[",
        "[a]: b\n", "a\n=", "|a|b|\n|-|-|\n", "  - a\n", "```\n", "<http:", "[a](<b",
    ],
)  # fmt: skip
def test_no_text_takes_longer_than_its_length_explains(piece: str):
    # The slowest of these takes 0.05 s; what is quadratic takes minutes.
    started = time.monotonic()
    to_html(piece * (40_000 // len(piece)))
    assert time.monotonic() - started < 20
