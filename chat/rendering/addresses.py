"""Addresses in a reply: which ones become links, bare ones within a text, and link definitions."""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock, reference
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

SCHEMES = {"http", "https", "mailto"}
ABSOLUTE = re.compile(r"https?://|mailto:", re.IGNORECASE)

# Characters of the texts that may all be filled in from definitions: a long address that is named ten
# thousand times would make a page of gigabytes.
MAX_EXPANSION = 200_000

LINK_STEPS = 10  # of the budget, for a bare address

MAX_SHOWN_SOURCE = 200  # characters of a refused image's address, which can be the image itself

# Ends a bare address although no space follows: quotes, brackets and punctuation of other scripts.
STOPS = (
    r"\s\x00-\x1f\x7f<>\"`|\\"
    "\u3000-\u3003\u3008-\u3011\u3014-\u301f\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
    "\ufe10-\ufe1f\ufe30-\ufe6b\u2018-\u201f\u2013\u2014\u2026\u00ab\u00bb\u060c\u061b\u061f\u0964"
)
HOST = rf"[^{STOPS}\x21-\x2c/:;=?@\[\]^{{}}~]{{1,255}}"
BARE = re.compile(
    rf"(?P<scheme>https?://|(?=www\.))(?P<host>\[[0-9a-f:.]{{2,45}}\]|{HOST})"
    rf"(?P<rest>(?::[0-9]{{1,5}})?(?:[/?#](?:(?!\*\*|~~|&lt;|&gt;|&quot;)[^{STOPS}]){{0,2000}})?)",
    re.IGNORECASE,
)
# A user's name and password come before the host: an address without them would be another site's.
CREDENTIALS = re.compile(r"(?::[^\s/@]{0,200})?@")
SCHEME_BEFORE = re.compile(r"https?$", re.IGNORECASE)
# The last block of a name that goes on, without a space, in another script: "example.com请看".
FOREIGN_TAIL = re.compile(r"(?<=[a-z0-9])[^\x00-\x7f][^.]*$", re.IGNORECASE)
BRACKETS = {")": "(", "]": "[", "}": "{"}
PUNCTUATION = "?!.,:;*_~'"

_checker = nh3.Cleaner(
    tags={"a"},
    attributes={"a": {"href"}},
    url_schemes=SCHEMES,
    url_relative="deny",
    link_rel=None,
)


def is_allowed(url: str) -> bool:
    """Return whether the page may link to an address: an absolute one of the web, or of a mailbox.

    The sanitiser decides, so that it never leaves a link without an address.
    """
    if ABSOLUTE.match(url) is None:
        return False
    quoted = url.replace("&", "&amp;").replace('"', "&quot;")
    return "href" in _checker.clean(f'<a href="{quoted}"></a>')[:8]


def bare_address(state: StateInline, silent: bool) -> bool:
    """Make a link of a bare address; called at its `://` or `www.`."""
    if silent or state.linkLevel > 0:
        return False
    src, start = state.src, state.pos
    if src[start] == ":":
        scheme = SCHEME_BEFORE.search(src[max(0, start - 5) : start])
        if scheme is None or not state.pending.endswith(scheme[0]):
            return False
        start -= len(scheme[0])
    before = src[start - 1 : start]
    if (before.isascii() and before.isalnum()) or (before and before in "./-@"):
        return False
    found = BARE.match(src, start, state.posMax)
    if found is None or CREDENTIALS.match(src, found.end()):
        return False
    state.env["budget"].spend(LINK_STEPS)
    source = without_punctuation(found).removesuffix("&amp")
    text = source.replace("&amp;", "&")
    host = text[len(found["scheme"]) :]
    if not any(char.isalnum() for char in host) or (not found["scheme"] and host.count(".") < 2):
        return False
    url = state.md.normalizeLink(text if found["scheme"] else f"http://{text}")
    if not is_allowed(url):
        return False
    if start < state.pos:
        state.pending = state.pending[: start - state.pos]
    state.push("link_open", "a", 1).attrs = {"href": url}
    state.push("text", "", 0).content = text
    state.push("link_close", "a", -1)
    state.pos = start + len(source)
    return True


def without_punctuation(found: re.Match[str]) -> str:
    """Return a bare address without the punctuation and the unpaired brackets at its end."""
    text, host = found[0], found["host"]
    if tail := FOREIGN_TAIL.search(host):
        return f"{found['scheme']}{host[: tail.start()]}"
    surplus = {closer: text.count(closer) - text.count(BRACKETS[closer]) for closer in BRACKETS}
    end = len(text)
    while end > 0:
        last = text[end - 1]
        if surplus.get(last, 0) > 0:
            surplus[last] -= 1
        elif last not in PUNCTUATION:
            break
        end -= 1
    return text[:end]


class References(dict[str, dict[str, Any]]):
    """The definitions of links and notes in a text, and the labels in use.

    `block` is the number of the block that is being rendered. `missing` are the labels in it that have no
    definition yet, and `shown` those of its definitions that the page shows, as no link uses them yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used: set[str] = set()
        self.block = 0
        self.missing: set[str] = set()
        self.shown: set[str] = set()
        self._left = MAX_EXPANSION

    def begin_block(self, number: int) -> None:
        """Render another block."""
        self.block, self.missing, self.shown = number, set(), set()

    def __setitem__(self, label: str, definition: dict[str, Any]) -> None:
        super().__setitem__(label, {**definition, "block": self.block})

    def get(self, label: str, default: Any = None) -> Any:
        """Return a definition for a link; `default` when all that may be filled in has been."""
        found = super().get(label)
        if found is None:
            self.missing.add(label)
            return default
        self._left -= len(found["href"]) + len(found["title"])
        if self._left < 0:
            return default
        self.used.add(label)
        return found

    def has(self, label: str) -> bool:
        """Return whether a label is defined; otherwise it is missing in the present block."""
        if label not in self:
            self.missing.add(label)
        return label in self

    def is_used(self, definition: Token) -> bool:
        """Return whether a link shows a definition of the present block, so that the page need not."""
        label, found = definition.meta["id"], self[definition.meta["id"]]
        if label in self.used and (found["block"], found["map"]) == (self.block, definition.map):
            return True
        self.shown.add(label)
        return False


def link_definition(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Find a link definition; a footnote is none, even of one word: it would vanish."""
    if state.src.startswith("[^", state.bMarks[start] + state.tShift[start]):
        return False
    return reference(state, start, end, silent)


def unwrap_refused(md: MarkdownIt, tokens: Sequence[Token], env: MutableMapping[str, Any]) -> None:
    """Turn links with a refused address into their source, and images into links, or text in a link.

    Much of that source is code, as `names[i](x)`. A link without text shows its address.
    """
    closing: list[str] = []  # for each open link, the text in place of its end; empty for a link
    for number, token in enumerate(tokens):
        if token.type == "link_open":
            url = str(token.attrs["href"])
            is_empty = tokens[number + 1].type == "link_close"
            if is_allowed(url):
                token.content = url if is_empty else ""
                closing.append("")
                continue
            # `<std::vector>` is no address and keeps its brackets.
            is_auto = token.markup == "autolink"
            closing.append(">" if is_auto else f"]({source_of(token)})")
            become_text(token, "<" if is_auto else "[")
        elif token.type == "link_close":
            if end := closing.pop():
                become_text(token, end)
        elif token.type == "image":
            source = str(token.attrs["src"])
            assert isinstance(md.renderer, RendererHTML)
            label = md.renderer.renderInlineAsText(token.children, md.options, env)
            if not is_allowed(source):
                become_text(token, f"![{label}]({source_of(token)})")
            elif "" in closing:
                become_text(token, label or source[:MAX_SHOWN_SOURCE])
            else:
                token.content = label or source
    # (Text tokens in a row are joined by the parser's next rule.)


def source_of(token: Token) -> str:
    """Return the address and the title of a link, as they are written, or of an image."""
    title = f' "{token.attrs["title"]}"' if "title" in token.attrs else ""
    if token.type == "image":
        return str(token.attrs["src"])[:MAX_SHOWN_SOURCE] + title
    url = str(token.attrs["href"])
    return (f"<{url}>" if " " in url else url) + title


def become_text(token: Token, content: str) -> None:
    """Make a token one of plain text."""
    token.type, token.tag, token.nesting, token.content = "text", "", 0, content
