r"""Finds formulas, `\(…\)`, `\[…\]`, `$…$` and `$$…$$`, and shows them as MathML or as they are written.

Otherwise a formula would lose its backslashes, and its underscores and asterisks would become emphasis.
Amounts of money are no formulas: "$5 or $10".
"""

from __future__ import annotations

import re

from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from chat.rendering import mathml
from chat.rendering.budget import Budget

CLOSERS = {"$": "$", "$$": "$$", "\\(": "\\)", "\\[": "\\]"}

MAX_CHARACTERS = 2_000  # of a formula within a line of text
MAX_LINES = 200  # of a formula in a block of its own

# Markup that no formula has. A dollar sign on each side of it is an amount or a variable.
FOREIGN = re.compile(r"`|\*\*|~~|\]\(|<(?i:/?br)\b")

# The end of a formula's last line.
AFTER_FORMULA = re.compile(r"\s*[.,;:]?\s*$")


def formula(state: StateInline, silent: bool) -> bool:
    """Take a formula within a text as it is written, line by line."""
    src, start = state.src, state.pos
    opener = src[start : start + 2]
    if opener not in CLOSERS:
        opener = opener[:1]
    closer = CLOSERS.get(opener)
    if closer is None:
        return False
    begin = start + len(opener)
    end = src.find(closer, begin, min(state.posMax, start + MAX_CHARACTERS))
    while end > 0 and opener == "$" and src[end - 1] == "\\":
        end = src.find(closer, end + 1, min(state.posMax, start + MAX_CHARACTERS))
    content = src[begin:end]
    if end < 0 or not content.strip():
        return False
    end += len(closer)
    if opener == "$" and (
        content[0].isspace()
        or content[-1].isspace()
        or "\n" in content
        or src[end : end + 1].isdigit()
        or FOREIGN.search(content)
    ):
        return False
    if opener == "\\[" and (src.startswith("(", end) or content.isdigit()):
        return False  # the escaped brackets of a link or a reference
    if not silent:
        is_math = opener != "$" or (
            mathml.looks_like_math(content)
            and not src[start - 1 : start].isalnum()
            and not src[end : end + 1].isalnum()
        )
        html = math_of(content, opener, src[start:end], state) if is_math else None
        if html is not None:
            token = state.push("math", "math", 0)
            token.content, token.markup = html, src[start:end]
            state.pos = end
            return True
        for number, line in enumerate(src[start:end].split("\n")):
            if number > 0:
                state.push("softbreak", "br", 0)
            # Of the type of an escaped character, which no later rule changes.
            token = state.push("text_special", "", 0)
            token.content = token.markup = line
    state.pos = end
    return True


def formula_block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """Take a formula of several lines as it is written, whatever its lines begin with."""
    first = state.bMarks[start_line] + state.tShift[start_line]
    opener = state.src[first : first + 2]
    if opener not in ("$$", "\\[") or state.is_code_block(start_line):
        return False
    closer = CLOSERS[opener]
    if closer in state.src[first + 2 : state.eMarks[start_line]]:
        return False  # a formula of one line is found within its paragraph
    # Blank lines are allowed after an opener that has a line of its own.
    is_alone = state.skipSpaces(first + 2) >= state.eMarks[start_line]
    line = start_line
    while True:
        line += 1
        if line >= min(end_line, start_line + MAX_LINES):
            return False
        state.env["budget"].spend(1)
        if state.isEmpty(line) and is_alone:
            continue
        if state.isEmpty(line) or state.sCount[line] < state.blkIndent:
            return False
        text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]
        _, found, after = text.partition(closer)
        if found:
            break
    if not AFTER_FORMULA.match(after):
        return False
    if not silent:
        state.line = line + 1
        # Not a paragraph's types: a list without blank lines drops the tags of its paragraphs.
        state.push("formula_open", "p", 1).map = [start_line, state.line]
        token = state.push("inline", "", 0)
        token.content = state.getLines(start_line, state.line, state.blkIndent, False).strip()
        token.map = [start_line, state.line]
        token.meta["is_literal"] = True
        state.push("formula_close", "p", -1)
    return True


def math_of(source: str, opener: str, shown: str, state: StateInline | StateCore) -> str | None:
    """Return the MathML of a formula; None if it has none, or if the text has too many formulas."""
    budget: Budget = state.env["budget"]
    budget.formulas -= len(source)
    if budget.formulas < 0:
        return None
    return mathml.to_mathml(source.strip(), is_block=opener in ("$$", "\\["), shown=shown)


BLOCK = re.compile(
    r"(?P<opener>\$\$|\\\[)(?P<source>.*)(?:\$\$|\\\])(?P<after>\s*[.,;:]?\s*)", re.DOTALL
)


def block_tokens(text: str, state: StateCore) -> list[Token]:
    """Return the tokens of a formula of several lines."""
    found = BLOCK.fullmatch(text)
    html = math_of(found["source"], found["opener"], text, state) if found else None
    if found is None or html is None:
        return literal(text)
    math = Token("math", "math", 0, content=html, markup=text)
    return [math, Token("text", "", 0, content=found["after"].strip())]


def literal(text: str) -> list[Token]:
    """Return the tokens of a text that is shown as it is written, line by line."""
    tokens: list[Token] = []
    for number, line in enumerate(text.split("\n")):
        if number > 0:
            tokens.append(Token("softbreak", "br", 0))
        tokens.append(Token("text", "", 0, content=line))
    return tokens
