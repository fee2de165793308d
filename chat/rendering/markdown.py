"""A model's Markdown as HTML that is safe to put into a page.

CommonMark with tables and strikethrough. HTML in the text is shown as text; what comes out is
cleaned by an allow list all the same, so that a fault in the first does not open the second. There
are no images: the address of a picture can carry what was said in a conversation to a stranger.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

# Halves of a UTF-16 pair: Python's strings can hold them, UTF-8 and the cleaner cannot.
SURROGATES = re.compile("[\ud800-\udfff]")

# The language that a code block names, for its caption and class.
LANGUAGE = re.compile(r"^[A-Za-z0-9+#._-]{1,30}$")

# The page has a heading of the first level, and each message one of the second.
FIRST_HEADING, LAST_HEADING = 3, 6


def to_html(text: str) -> str:
    """Render a reply. Takes any text, never raises, in time linear in its length."""
    return _cleaner.clean(_markdown.render(SURROGATES.sub("\ufffd", text)))


class Renderer(RendererHTML):
    """Differs from the usual output where a strict policy or a narrow screen asks for it."""

    def table_open(self, *_: Any) -> str:
        # A box of its own to scroll in; one must get into it with the keyboard, too.
        return '<div class="table" role="region" aria-label="Table" tabindex="0"><table>\n'

    def table_close(self, *_: Any) -> str:
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        return _cell(tokens[index])

    def td_open(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        return _cell(tokens[index])

    def fence(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        words = tokens[index].info.split()
        return _code_block(tokens[index].content, words[0] if words else "")

    def code_block(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        return _code_block(tokens[index].content, "")

    def image(
        self,
        tokens: Sequence[Token],
        index: int,
        options: OptionsDict,
        env: MutableMapping[str, Any],
    ) -> str:
        token = tokens[index]
        source = str(token.attrs.get("src", ""))
        label = self.renderInlineAsText(token.children, options, env) or source
        return f'<a href="{escapeHtml(source)}">{escapeHtml(label)}</a>'


def _cell(token: Token) -> str:
    # The policy forbids style attributes, in which the parser puts a column's alignment.
    style = str(token.attrs.get("style", ""))
    align = style.removeprefix("text-align:")
    return f'<{token.tag} class="{align}">' if align else f"<{token.tag}>"


def _code_block(code: str, language: str) -> str:
    known = LANGUAGE.match(language) is not None
    caption = f"<figcaption>{escapeHtml(language)}</figcaption>" if known else ""
    kind = f' class="language-{escapeHtml(language)}"' if known else ""
    return (
        f'<figure class="code">{caption}<pre tabindex="0">'
        f"<code{kind}>{escapeHtml(code)}</code></pre></figure>\n"
    )


def _level_headings(state: StateCore) -> None:
    """Give a reply's headings the levels below the page's own, with none left out in between."""
    headings = [token for token in state.tokens if token.type in {"heading_open", "heading_close"}]
    used = sorted({token.tag for token in headings})
    for token in headings:
        token.tag = f"h{min(LAST_HEADING, FIRST_HEADING + used.index(token.tag))}"


def _safe_attribute(tag: str, name: str, value: str) -> str | None:
    if tag == "code" and name == "class":
        return value if LANGUAGE.match(value.removeprefix("language-")) else None
    return value


_markdown = MarkdownIt(
    "commonmark",
    # A model's line breaks are meant; they also keep the text in place when a reply is finished.
    {"html": False, "breaks": True},
    renderer_cls=Renderer,
).enable(["table", "strikethrough"])
_markdown.core.ruler.push("level_headings", _level_headings)

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
    },
    allowed_classes={
        "div": {"table"},
        "figure": {"code"},
        "td": {"left", "center", "right"},
        "th": {"left", "center", "right"},
    },
    attribute_filter=_safe_attribute,
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
)  # fmt: skip
