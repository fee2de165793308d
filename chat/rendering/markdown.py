"""Renders a model's Markdown as HTML that is safe to put into a page.

CommonMark with tables and strikethrough. HTML in the text is shown as text; the output is sanitised
by an allow list all the same (defence in depth: a bug in one is caught by the other). There are no
images: the URL of an image can leak a conversation to a third party.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from chat.rendering.directions import set_directions

# Halves of a UTF-16 pair, which Python's strings can contain, but neither UTF-8 nor the cleaner.
SURROGATES = re.compile("[\ud800-\udfff]")

# The language of a code block, for its caption and class.
LANGUAGE = re.compile(r"^[A-Za-z0-9+#._-]{1,30}$")

# The page itself has a heading of the first level, and each message one of the second.
FIRST_HEADING, LAST_HEADING = 3, 6


def to_html(text: str) -> str:
    """Render a reply as HTML. Accepts any text, never raises; time is linear in its length."""
    return _cleaner.clean(_markdown.render(SURROGATES.sub("\ufffd", text)))


class Renderer(RendererHTML):
    """Differs from the default output for the Content Security Policy and for narrow screens."""

    def table_open(self, *_: Any) -> str:
        # A box that scrolls, and that the keyboard reaches as well.
        return (
            '<div class="table" role="region" aria-label="Table" tabindex="0"><table dir="auto">\n'
        )

    def table_close(self, *_: Any) -> str:
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        # The policy forbids style attributes, in which the parser puts a column's alignment.
        token = tokens[index]
        align = str(token.attrs.get("style", "")).removeprefix("text-align:")
        return f'<{token.tag} class="{align}">' if align else f"<{token.tag}>"

    td_open = th_open

    def fence(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        language = next(iter(tokens[index].info.split()), "")
        is_known = LANGUAGE.match(language) is not None
        caption = f"<figcaption>{escapeHtml(language)}</figcaption>" if is_known else ""
        kind = f' class="language-{escapeHtml(language)}"' if is_known else ""
        return (
            f'<figure class="code" dir="ltr">{caption}<pre tabindex="0">'
            f"<code{kind}>{escapeHtml(tokens[index].content)}</code></pre></figure>\n"
        )

    def code_block(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        return self.fence(tokens, index)

    def image(self, tokens: Sequence[Token], index: int, *rest: Any) -> str:
        token = tokens[index]
        source = str(token.attrs.get("src", ""))
        label = self.renderInlineAsText(token.children, *rest) or source
        return f'<a href="{escapeHtml(source)}">{escapeHtml(label)}</a>'


def level_headings(state: StateCore) -> None:
    """Move a reply's headings to the levels below the page's own, without gaps between levels."""
    headings = [token for token in state.tokens if token.type in {"heading_open", "heading_close"}]
    used = sorted({token.tag for token in headings})
    for token in headings:
        token.tag = f"h{min(LAST_HEADING, FIRST_HEADING + used.index(token.tag))}"


_markdown = MarkdownIt(
    "commonmark",
    # A model's line breaks are intended; they also keep the text in place when a reply is finished.
    {"html": False, "breaks": True},
    renderer_cls=Renderer,
).enable(["table", "strikethrough"])
_markdown.core.ruler.push("level_headings", level_headings)
_markdown.core.ruler.push("set_directions", set_directions)

_cleaner = nh3.Cleaner(
    tags={
        "a", "blockquote", "br", "code", "del", "div", "em", "figcaption", "figure", "h3", "h4",
        "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "strong", "table", "tbody", "td", "th",
        "thead", "tr", "ul",
    },
    attributes={
        "a": {"href", "title"},
        "code": {"class"},
        "div": {"aria-label"},
        "ol": {"start"},
    },
    tag_attribute_values={
        "div": {"role": {"region"}, "tabindex": {"0"}},
        "pre": {"tabindex": {"0"}},
        **{tag: {"dir": {"auto"}} for tag in ("blockquote", "li", "p", "table")},
        **{tag: {"dir": {"auto"}} for tag in ("h3", "h4", "h5", "h6")},
        **{tag: {"dir": {"ltr"}} for tag in ("code", "figure")},
    },
    allowed_classes={
        "div": {"table"},
        "figure": {"code"},
        "td": {"left", "center", "right"},
        "th": {"left", "center", "right"},
    },
    attribute_filter=lambda tag, name, value: (
        value
        if (tag, name) != ("code", "class") or LANGUAGE.match(value.removeprefix("language-"))
        else None
    ),
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
)  # fmt: skip
