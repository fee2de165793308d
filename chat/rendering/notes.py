"""Footnotes: `[^1]` in a text, and `[^1]: the note` in a block of its own.

Each is shown where it is written, with its label as the model wrote it, so that a block never depends on the
number of notes before it. The script makes the two lead to each other.
"""

from __future__ import annotations

import re

from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

MAX_LABEL = 40
STEPS = 15  # of the budget, for a note: it is a block of its own with a block in it
REFERENCE = re.compile(rf"\[\^([^\]\[\s]{{1,{MAX_LABEL}}})\]")
DEFINITION = re.compile(rf"\[\^([^\]\[\s]{{1,{MAX_LABEL}}})\]:")


def key_of(label: str) -> str:
    """Return the key of a note among the definitions of a text; no link has it."""
    return f"[^{label}"


def note_reference(state: StateInline, silent: bool) -> bool:
    """Find the mark of a note that is defined; others stay as they are written."""
    # Not while the end of a link's text is looked for: a piece in brackets would end the search.
    found = None if silent else REFERENCE.match(state.src, state.pos, state.posMax)
    if found is None or not state.env["references"].has(key_of(found[1])):
        return False
    state.push("note_reference", "sup", 0).content = found[1]
    state.pos = found.end()
    return True


def note(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """Find a note, at the top level alone. Its blocks are indented by four columns, like the blocks of an item."""
    # One in a block that it does not belong to ends that block.
    is_inside = state.level > 0 and not (silent and state.sCount[start_line] < state.blkIndent)
    if is_inside or state.is_code_block(start_line):
        return False
    begin = state.bMarks[start_line] + state.tShift[start_line]
    found = DEFINITION.match(state.src, begin, state.eMarks[start_line])
    if found is None:
        return False
    if silent:
        return True
    state.env["budget"].block_steps -= STEPS
    state.env["references"][key_of(found[1])] = {"href": "", "title": ""}
    token = state.push("note_open", "div", 1)
    token.content, token.map = found[1], [start_line, end_line]
    old = state.bMarks[start_line], state.tShift[start_line], state.sCount[start_line]
    after = state.skipSpaces(found.end())
    state.bMarks[start_line], state.tShift[start_line] = found.end(), after - found.end()
    state.sCount[start_line] = state.blkIndent + 4
    state.blkIndent += 4
    parent, state.parentType = state.parentType, "reference"
    state.md.block.tokenize(state, start_line, end_line)
    state.parentType = parent
    state.blkIndent -= 4
    state.bMarks[start_line], state.tShift[start_line], state.sCount[start_line] = old
    token.map[1] = state.line
    state.push("note_close", "div", -1)
    return True
