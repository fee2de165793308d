"""Highlights code: spans with a class for each kind of token, which the style sheet colours.

A lexer may need time that is quadratic in a text that was made for that, and cannot be interrupted. So only
code of some length is highlighted, with short lines, in languages whose lexers a test has tried with such texts.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import groupby

from markdown_it.common.utils import escapeHtml
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import (
    Comment,
    Generic,
    Keyword,
    Name,
    Number,
    Operator,
    String,
    _TokenType,
    is_token_subtype,
)

MAX_CODE = 8_000  # characters of a block that is highlighted
MAX_LINE = 500
# Some lexers look for the end of a declaration in words with white space alone between them, or in blank lines.
MAX_WORDS = 40
MAX_BLANK_LINES = 18
BREAKS = re.compile(r"[^\w\s.$@<>\[\]]")

# Names of languages as models write them, by the name of the lexer.
NAMES = {
    "bash": "sh shell zsh",
    "c": "h",
    "cpp": "c++ cc hpp",
    "csharp": "c# cs",
    "css": "scss less",
    "dart": "",
    "diff": "patch",
    "docker": "dockerfile",
    "go": "golang",
    "graphql": "",
    "haskell": "hs",
    "html": "xhtml svg",
    "ini": "cfg conf properties",
    "java": "",
    "javascript": "js jsx mjs",
    "json": "json5 jsonc",
    "julia": "jl",
    "kotlin": "kt",
    "lua": "",
    "make": "makefile",
    "nginx": "",
    "php": "",
    "powershell": "ps1 pwsh",
    "python": "py python3",
    "r": "",
    "ruby": "rb",
    "rust": "rs",
    "scala": "",
    "sql": "postgresql mysql sqlite",
    "swift": "",
    "toml": "",
    "typescript": "ts tsx",
    "xml": "xsl",
    "yaml": "yml",
}
LEXERS = {name: lexer for lexer, names in NAMES.items() for name in (lexer, *names.split())}

# Classes by the kind of a token, the most special first.
CLASSES: tuple[tuple[_TokenType, str], ...] = (
    (Comment.Preproc, "k"),
    (Comment, "c"),
    (Keyword.Constant, "n"),
    (Keyword, "k"),
    (Operator.Word, "k"),
    (String.Interpol, "v"),
    (String, "s"),
    (Number, "n"),
    (Name.Function, "f"),
    (Name.Class, "f"),
    (Name.Decorator, "f"),
    (Name.Tag, "k"),
    (Name.Attribute, "v"),
    (Name.Builtin, "v"),
    (Name.Variable, "v"),
    (Generic.Deleted, "d"),
    (Generic.Inserted, "i"),
    (Generic.Heading, "k"),
    (Generic.Subheading, "k"),
)
ALLOWED = {name for _, name in CLASSES}


def highlighted(code: str, language: str) -> str | None:
    """Return the HTML of code with its tokens in spans; None if it is not to be highlighted."""
    name = LEXERS.get(language.lower())
    if name is None or len(code) > MAX_CODE:
        return None
    lines = code.split("\n")
    runs = groupby(not line.strip() for line in lines)
    blank = max(len([*run]) if is_blank else 0 for is_blank, run in runs)
    words = max(len(text.split()) for text in BREAKS.split(code))
    if max(map(len, lines)) > MAX_LINE or blank > MAX_BLANK_LINES or words > MAX_WORDS:
        return None
    pieces: list[str] = []
    before, pending = "", ""
    for kind, text in lexer_of(name).get_tokens(code):
        found = class_of(kind)
        if found != before:
            pieces.append(span(pending, before))
            before, pending = found, ""
        pending += text
    pieces.append(span(pending, before))
    return "".join(pieces)


def span(text: str, name: str) -> str:
    """Return text in an element of a class, or as it is."""
    return f'<span class="{name}">{escapeHtml(text)}</span>' if name and text else escapeHtml(text)


@cache
def lexer_of(name: str) -> Lexer:
    """Return a lexer that leaves white space and line breaks as they are."""
    return get_lexer_by_name(name, stripnl=False, ensurenl=False)


@cache
def class_of(kind: _TokenType) -> str:
    """Return the class for a kind of token; empty for text of no special colour."""
    return next((name for parent, name in CLASSES if is_token_subtype(kind, parent)), "")
