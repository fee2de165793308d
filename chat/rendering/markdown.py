"""Renders a model's Markdown as HTML that is safe to put into a page.

CommonMark with tables, strikethrough, task lists and bare addresses; formulas stay as written. HTML in
the text is shown as text; the output is sanitised by an allow list all the same (defence in depth: a bug
in one is caught by the other). There are no images: the URL of an image can leak a conversation to a
third party. No word is lost: where markup goes too far, its text is shown as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from chat.rendering import addresses, formulas
from chat.rendering.budget import Budget, TooCostly, count_block_step
from chat.rendering.directions import set_directions
from chat.rendering.emphasis import InlineParser
from chat.rendering.tables import whole_table

# Halves of a UTF-16 pair, which Python's strings can contain, but neither UTF-8 nor the cleaner.
SURROGATES = re.compile("[\ud800-\udfff]")

# The language of a code block, for its class.
LANGUAGE = re.compile(r"^[A-Za-z0-9+#._-]{1,30}$")

# The page itself has a heading of the first level, and each message one of the second.
FIRST_HEADING, LAST_HEADING = 3, 6

# Quotes and lists in each other: 80 lists in 80 quotes. Each one is at most two levels and two calls of
# the parser, which Python's recursion limit allows.
MAX_LEVELS = 250

# All characters that a rule below can begin with: text between them is taken at once.
MARKUP = re.compile(r"[\n$&*<\[\\\]_`~]|!(?=\[)|:(?=//)|www\.")

LINE_BREAK = re.compile(r"</?br\s{0,9}/?\s{0,9}>", re.IGNORECASE)

BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


def to_html(text: str) -> str:
    """Render a reply as HTML. Accepts any text, never raises; time is linear in its length.

    A text of more markup than the budget allows becomes plain paragraphs, or its last blocks do.
    """
    text = SURROGATES.sub("\ufffd", text)
    env = {"budget": Budget(), "references": addresses.References(), "is_cell": False}
    try:
        html = _markdown.render(text, env)
    except (TooCostly, RecursionError):
        paragraphs = BLANK_LINES.split(text.strip("\n"))
        html = "".join(
            "<p>" + escapeHtml(paragraph).replace("\n", "<br>\n") + "</p>\n"
            for paragraph in paragraphs
        )
    return _cleaner.clean(html)


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
        # All of it is shown: a model's text after three backticks is not always a language.
        info = tokens[index].info.strip()
        language = next(iter(info.split()), "")
        is_known = LANGUAGE.match(language) is not None
        caption = f"<figcaption>{escapeHtml(info)}</figcaption>" if info else ""
        kind = f' class="language-{escapeHtml(language)}"' if is_known else ""
        return (
            f'<figure class="code" dir="ltr">{caption}<pre tabindex="0">'
            f"<code{kind}>{escapeHtml(tokens[index].content)}</code></pre></figure>\n"
        )

    def code_block(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        return self.fence(tokens, index)

    def list_item_open(self, tokens: Sequence[Token], index: int, *rest: Any) -> str:
        item = self.renderToken(tokens, index, *rest)
        checked = tokens[index].meta.get("checked")
        if checked is None:
            return item
        state = 'aria-label="Done" checked' if checked else 'aria-label="To do"'
        return f'{item}<input type="checkbox" disabled {state}> '

    def link_open(self, tokens: Sequence[Token], index: int, *rest: Any) -> str:
        return self.renderToken(tokens, index, *rest) + escapeHtml(tokens[index].content)

    def image(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        token = tokens[index]
        names = {"src": "href", "title": "title"}
        attributes = "".join(
            f' {name}="{escapeHtml(str(token.attrs[attribute]))}"'
            for attribute, name in names.items()
            if attribute in token.attrs
        )
        return f"<a{attributes}>{escapeHtml(token.content)}</a>"

    def definition(self, tokens: Sequence[Token], index: int, _: Any, env: Any) -> str:
        """Show a link definition that no link uses; its words would be lost."""
        token = tokens[index]
        if env["references"].is_used(token):
            return ""
        url = escapeHtml(token.meta["url"])
        title = f" {escapeHtml(token.meta['title'])}" if token.meta["title"] else ""
        label = escapeHtml(token.meta["label"])
        return f'<p dir="auto">[{label}]: <a href="{url}">{url}</a>{title}</p>\n'

    def renderInlineAsText(  # noqa: N802
        self, tokens: Sequence[Token] | None, options: Any, env: Any
    ) -> str:
        # Escaped characters and formulas within the label of an image: the base class leaves them out.
        for token in tokens or []:
            if token.type == "text_special":
                token.type = "text"
        return super().renderInlineAsText(tokens, options, env)


def flatten(state: StateBlock, start_line: int, end_line: int, _silent: bool) -> bool:
    """Make a plain paragraph of text that lies too deep in quotes and lists."""
    if state.level < MAX_LEVELS:
        return False
    line = start_line + 1
    while line < end_line and not state.isEmpty(line) and state.sCount[line] >= state.blkIndent:
        line += 1
    state.line = line
    state.push("paragraph_open", "p", 1).map = [start_line, line]
    token = state.push("inline", "", 0)
    token.content = state.getLines(start_line, line, state.blkIndent, False).strip()
    token.map = [start_line, line]
    state.push("paragraph_close", "p", -1)
    return True


def parse_inlines(state: StateCore) -> None:
    """Parse the text within the blocks, each as it is written once the budget is spent."""
    is_spent = False
    state.env["budget"].steps -= len(state.tokens) // 2  # the time that writing them takes
    for token in state.tokens:
        if token.type != "inline":
            state.env["is_cell"] = token.type in {"td_open", "th_open"}
            continue
        children: list[Token] = []
        if not is_spent and "is_literal" not in token.meta:
            try:
                _inlines.inline.parse(token.content, _inlines, state.env, children)
            except TooCostly:
                is_spent = True
        if is_spent or "is_literal" in token.meta:
            children = formulas.literal(token.content)
        else:
            addresses.unwrap_refused(_inlines, children, state.env)
        token.children = children


def level_headings(state: StateCore) -> None:
    """Move a reply's headings to the levels below the page's own, without gaps between levels."""
    headings = [token for token in state.tokens if token.type in {"heading_open", "heading_close"}]
    used = sorted({token.tag for token in headings})
    for token in headings:
        token.tag = f"h{min(LAST_HEADING, FIRST_HEADING + used.index(token.tag))}"


def line_break(state: StateInline, silent: bool) -> bool:
    """Find a line break in the cell of a table, which Markdown has no other way to write."""
    found = LINE_BREAK.match(state.src, state.pos) if state.env["is_cell"] else None
    if found is None:
        return False
    if not silent:
        state.push("hardbreak", "br", 0)
    state.pos = found.end()
    return True


EXTENSIONS: dict[str, Callable[[StateInline, bool], bool]] = {
    "$": formulas.formula,
    "\\": formulas.formula,
    "<": line_break,
    ":": addresses.bare_address,
    "w": addresses.bare_address,
}


# Steps that the search for a link takes; anything else is one step.
COSTS = {"<": 5, "[": 5, "!": 5}


def extend(state: StateInline, silent: bool) -> bool:
    """Count the steps, and find what Markdown does not have. Raises TooCostly."""
    char = state.src[state.pos]
    state.env["budget"].spend(COSTS.get(char, 1))
    rule = EXTENSIONS.get(char)
    return rule is not None and rule(state, silent)


class Blocks(MarkdownIt):
    """Finds the blocks of a text. A definition without an allowed address is text."""

    def validateLink(self, url: str) -> bool:  # noqa: N802
        return addresses.is_allowed(url)


class Inlines(MarkdownIt):
    """Parses the text within a block. Links with a refused address are unwrapped later."""

    def validateLink(self, url: str) -> bool:  # noqa: N802
        return True

    def normalizeLink(self, url: str) -> str:  # noqa: N802
        """Return an address in ASCII; one that is refused, as it is written."""
        return super().normalizeLink(url) if addresses.ABSOLUTE.match(url) else url


_markdown = Blocks(
    "commonmark",
    {
        "html": False,
        # A model's line breaks are intended; they also keep the text in place when a reply is finished.
        "breaks": True,
        "maxNesting": MAX_LEVELS + 10,  # `flatten` comes first: the parser would leave text out
        "tasklists": True,
        "inline_definitions": True,
    },
    renderer_cls=Renderer,
).enable("table")
_markdown.core.ruler.at("inline", parse_inlines)
_markdown.core.ruler.push("level_headings", level_headings)
_markdown.core.ruler.push("set_directions", set_directions)
EVERYWHERE = ["paragraph", "reference", "blockquote", "list"]
_markdown.block.ruler.at("reference", addresses.link_definition)
_markdown.block.ruler.at("table", whole_table, {"alt": ["paragraph", "reference"]})
_markdown.block.ruler.before("fence", "formula_block", formulas.formula_block, {"alt": EVERYWHERE})
_markdown.block.ruler.before("table", "flatten", flatten)
_markdown.block.ruler.before("flatten", "count_block_step", count_block_step, {"alt": EVERYWHERE})

_inlines = Inlines("commonmark", {"html": False}, renderer_cls=Renderer)
_inlines.inline = InlineParser()
_inlines.inline.terminator_re = MARKUP
_inlines.inline.ruler.after("text", "extend", extend)
_inlines.inline.ruler.disable(["linkify", "html_inline"])

_cleaner = nh3.Cleaner(
    tags={
        "a", "blockquote", "br", "code", "del", "div", "em", "figcaption", "figure", "h3", "h4",
        "h5", "h6", "hr", "input", "li", "ol", "p", "pre", "s", "strong", "table", "tbody", "td", "th",
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
        "input": {
            "type": {"checkbox"},
            "disabled": {""},
            "checked": {""},
            "aria-label": {"Done", "To do"},
        },
        "pre": {"tabindex": {"0"}},
        **{tag: {"dir": {"auto"}} for tag in ("blockquote", "li", "p", "table")},
        **{tag: {"dir": {"auto"}} for tag in ("h3", "h4", "h5", "h6")},
        **{tag: {"dir": {"ltr"}} for tag in ("code", "figure")},
    },
    allowed_classes={
        "div": {"table"},
        "figure": {"code"},
        "li": {"task-list-item"},
        "td": {"left", "center", "right"},
        "th": {"left", "center", "right"},
    },
    attribute_filter=lambda tag, name, value: (
        value
        if (tag, name) != ("code", "class") or LANGUAGE.match(value.removeprefix("language-"))
        else None
    ),
    url_schemes=addresses.SCHEMES,
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
)  # fmt: skip
