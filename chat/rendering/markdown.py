"""Renders a model's Markdown as HTML that is safe to put into a page.

CommonMark with tables, strikethrough, task lists and bare addresses; formulas stay as written. HTML in
the text is shown as text; the output is sanitised by an allow list all the same (defence in depth: a bug
in one is caught by the other). Images are links, as the request for one can leak a conversation to a third
party; the script shows one after a click, in a frame of its own. No word is lost: where markup goes too far, its text is shown as it is written.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from chat.rendering import addresses, formulas, mathml
from chat.rendering.budget import Budget, TooCostly, count_block_step
from chat.rendering.directions import set_directions
from chat.rendering.emphasis import InlineParser
from chat.rendering.highlighting import ALLOWED, highlighted
from chat.rendering.notes import note, note_reference
from chat.rendering.splitter import Block, Join
from chat.rendering.tables import whole_table

logger = logging.getLogger(__name__)

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


class Context:
    """The state that the blocks of one text share, in their order."""

    def __init__(self) -> None:
        self.references = addresses.References()
        self.env: dict[str, Any] = {
            "budget": Budget(),
            "references": self.references,
            "headings": set(),  # the tags in use
            "is_cell": False,
            "is_row": False,
        }
        self.is_list_loose = False
        self.open = Join.NONE  # what can follow in the list or the table of the last block


class Rendered(NamedTuple):
    """The HTML of a block. Items or rows can follow before `end`, the end tags of its list or its table."""

    html: str
    end: str = ""
    join: Join = Join.NONE


ITEMS = re.compile(
    r"<(?:ul|ol)(?: start=\"\d+\")?>\n(?P<items>.*)(?P<end></(?:ul|ol)>\n)", re.DOTALL
)
TABLE_END = "</tbody></table></div>\n"


def render_block(block: Block, context: Context) -> Rendered:
    """Render a block of a text, after the blocks before it. Accepts any text, and never raises.

    A part with more markup than the rest of the budget allows becomes plain paragraphs, or its last blocks do.
    """
    text = SURROGATES.sub("\ufffd", block.text)
    env = context.env
    can_join = block.join is context.open
    env["is_row"] = block.join is Join.ROW and can_join
    try:
        if env["budget"].block_steps < 0:
            raise TooCostly
        tokens = _markdown.parse(block.head + text if env["is_row"] else text, env)
        is_list = is_one_list(tokens)
        if is_list:
            loosen(tokens, block, context)
        html = _markdown.renderer.render(tokens, _markdown.options, env)
        html = clean_row(html) if env["is_row"] else _cleaner.clean(html)
    except (TooCostly, RecursionError):
        context.open = Join.NONE
        return Rendered(_cleaner.clean(plain(text)))
    except Exception as error:  # noqa: BLE001 # a fault of a parser or lexer must not cost the reply
        # Neither the error's words nor its values, which can be the user's text.
        place = traceback.extract_tb(error.__traceback__)[-1]
        logger.error(
            "a block is shown as it is written: %s in %s, line %s",
            type(error).__name__,
            place.filename,
            place.lineno,
        )
        context.open = Join.NONE
        return Rendered(_cleaner.clean(plain(text)))
    if env["is_row"]:
        return Rendered(html, join=Join.ROW)
    context.open = Join.NONE
    if block.head and html.endswith(TABLE_END):
        context.open = Join.ROW
        return Rendered(html.removesuffix(TABLE_END), TABLE_END)
    found = ITEMS.fullmatch(html) if is_list else None
    if found is None:
        return Rendered(html)
    context.open = Join.ITEM
    if block.join is Join.ITEM and can_join:
        return Rendered(found["items"], join=Join.ITEM)
    return Rendered(html[: found.start("end")], found["end"])


def clean_row(html: str) -> str:
    """Sanitise a row of a table: the parser of HTML drops cells that are in no table."""
    start, end = "<table><tbody>", "</tbody></table>"
    return _cleaner.clean(f"{start}{html}{end}")[len(start) : -len(end)]


def plain(text: str) -> str:
    """Return the HTML of a text whose markup is not rendered."""
    paragraphs = BLANK_LINES.split(text.strip("\n"))
    return "".join(
        "<p>" + escapeHtml(paragraph).replace("\n", "<br>\n") + "</p>\n" for paragraph in paragraphs
    )


def is_table(head: str) -> bool:
    """Return whether two lines are the head of a table. Raises nothing."""
    tokens: list[Token] = []
    state = StateBlock(head, _markdown, {}, tokens)
    return table(state, 0, 2, silent=True)


def is_one_list(tokens: Sequence[Token]) -> bool:
    """Return whether the blocks of a block are one list."""
    if not tokens or tokens[0].type not in {"bullet_list_open", "ordered_list_open"}:
        return False
    return sum(token.level == 0 for token in tokens) == 2


def loosen(tokens: Sequence[Token], block: Block, context: Context) -> None:
    """Make paragraphs of an item's texts, from the first item on that has blank lines.

    Elsewhere an item without them is one of paragraphs, too, if an item after it has blank lines.
    """
    paragraphs = [t for t in tokens if t.level == 2 and t.type.startswith("paragraph_")]
    is_loose = block.is_loose or any(not token.hidden for token in paragraphs)
    context.is_list_loose = is_loose or (block.join is Join.ITEM and context.is_list_loose)
    if context.is_list_loose:
        for token in paragraphs:
            token.hidden = False


class Renderer(RendererHTML):
    """Differs from the default output for the Content Security Policy and for narrow screens."""

    def table_open(self, *_: Any) -> str:
        # A box that scrolls, and that the keyboard reaches as well.
        return (
            '<div class="table" role="group" aria-label="Table" tabindex="0"><table dir="auto">\n'
        )

    def table_close(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        # A head without rows has a body nevertheless, as rows may follow.
        body = "<tbody></tbody>" if tokens[index - 1].type == "thead_close" else ""
        return f"{body}</table></div>\n"

    def tbody_open(self, *_: Any) -> str:
        return "<tbody>"

    def tbody_close(self, *_: Any) -> str:
        return "</tbody>"

    def td_open(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        # The policy forbids style attributes, in which the parser puts a column's alignment.
        token = tokens[index]
        align = str(token.attrs.get("style", "")).removeprefix("text-align:")
        return f'<{token.tag} class="{align}">' if align else f"<{token.tag}>"

    def th_open(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        # An empty cell is the heading of nothing.
        if not tokens[index + 1].content.strip():
            tokens[index].tag = tokens[index + 2].tag = "td"
        return self.td_open(tokens, index, options, env)

    def fence(self, tokens: Sequence[Token], index: int, _: Any, env: Any) -> str:
        # All of it is shown: a model's text after three backticks is not always a language.
        info = tokens[index].info.strip()
        language = next(iter(info.split()), "")
        is_known = LANGUAGE.match(language) is not None
        caption = f"<figcaption>{escapeHtml(info)}</figcaption>" if info else ""
        kind = f' class="language-{escapeHtml(language)}"' if is_known else ""
        content, budget = tokens[index].content, env["budget"]
        budget.highlighted -= len(content) if language else 0
        code = highlighted(content, language) if budget.highlighted >= 0 else None
        return (
            f'<figure class="code" dir="ltr">{caption}<pre tabindex="0">'
            f"<code{kind}>{escapeHtml(content) if code is None else code}</code></pre></figure>\n"
        )

    def code_block(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return self.fence(tokens, index, options, env)

    def list_item_open(self, tokens: Sequence[Token], index: int, *rest: Any) -> str:
        item = self.renderToken(tokens, index, *rest)
        checked = tokens[index].meta.get("checked")
        if checked is None:
            return item
        state = 'aria-label="Done" checked' if checked else 'aria-label="To do"'
        return f'{item}<input type="checkbox" disabled {state}> '

    def link_open(self, tokens: Sequence[Token], index: int, *rest: Any) -> str:
        return self.renderToken(tokens, index, *rest) + escapeHtml(tokens[index].content)

    def math(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        return tokens[index].content

    def note_reference(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        return f'<sup class="note-ref">{escapeHtml(tokens[index].content)}</sup>'

    def note_open(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        label = escapeHtml(tokens[index].content)
        return f'<div class="note"><sup class="note-label">{label}</sup>\n'

    def image(self, tokens: Sequence[Token], index: int, *_: Any) -> str:
        token = tokens[index]
        names = {"src": "href", "title": "title"}
        attributes = "".join(
            f' {name}="{escapeHtml(str(token.attrs[attribute]))}"'
            for attribute, name in names.items()
            if attribute in token.attrs
        )
        return f'<a class="image"{attributes}>{escapeHtml(token.content)}</a>'

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
            if token.type == "math":
                token.content = token.markup
            if token.type == "note_reference":
                token.content = f"[^{token.content}]"
            if token.type in {"text_special", "math", "note_reference"}:
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
    is_spent = state.env["budget"].steps < 0
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
        if is_spent:
            children = formulas.literal(token.content)
        elif "is_literal" in token.meta:
            children = formulas.block_tokens(token.content, state)
        else:
            addresses.unwrap_refused(_inlines, children, state.env)
        token.children = children


def level_headings(state: StateCore) -> None:
    """Move a reply's headings to the levels below the page's own, without gaps between levels.

    A heading is as many levels below the first one as there are higher levels among those before it.
    """
    used: set[str] = state.env["headings"]
    for token in state.tokens:
        if token.type in {"heading_open", "heading_close"}:
            used.add(token.tag)
            above = sum(tag < token.tag for tag in used)
            token.tag = f"h{min(LAST_HEADING, FIRST_HEADING + above)}"


def keep_row(state: StateCore) -> None:
    """Leave the cells of a row that was parsed with the head of its table. Raises TooCostly for other text."""
    if not state.env["is_row"]:
        return
    state.env["budget"].block_steps -= len(state.tokens) // 4  # the head is read for each row
    rows = [number for number, token in enumerate(state.tokens) if token.type == "tr_open"]
    if len(rows) != 2 or state.tokens[-1].type != "table_close":
        raise TooCostly
    state.tokens = state.tokens[rows[1] : -2]


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
    "[": note_reference,
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
_markdown.core.ruler.after("block", "keep_row", keep_row)
_markdown.core.ruler.at("inline", parse_inlines)
_markdown.core.ruler.push("level_headings", level_headings)
_markdown.core.ruler.push("set_directions", set_directions)
EVERYWHERE = ["paragraph", "reference", "blockquote", "list"]
_markdown.block.ruler.at("reference", addresses.link_definition)
_markdown.block.ruler.before(
    "reference", "note", note, {"alt": ["paragraph", "reference", "blockquote", "list"]}
)
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
        "thead", "tr", "ul", "span", "sup", *mathml.ELEMENTS,
    },
    attributes={
        "a": {"href", "title"},
        "code": {"class"},
        "div": {"aria-label"},
        "ol": {"start"},
        **{tag: set(mathml.ATTRIBUTES) for tag in mathml.ELEMENTS - {"math"}},
        "math": {"display", "alttext"},
    },
    tag_attribute_values={
        "div": {"role": {"group"}, "tabindex": {"0"}},
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
        "a": {"image"},
        "div": {"table", "note"},
        "figure": {"code"},
        "li": {"task-list-item"},
        "span": ALLOWED,
        "sup": {"note-ref", "note-label"},
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
