"""Writing directions of a reply's blocks: `dir="auto"`, so that Arabic or Hebrew text runs from right to left.

A block takes its direction from the first letter in it, without the blocks in it that have a `dir` of
their own. So the first block of a list item or a quote has none: it gives its direction to the item,
whose marker or border is then on the same side as the text. Code always runs from left to right.
"""

from __future__ import annotations

from markdown_it.rules_core import StateCore

CONTAINERS = {"list_item_open", "blockquote_open"}
TEXTS = {"paragraph_open", "heading_open", "formula_open"}


def set_directions(state: StateCore) -> None:
    """Set `dir` on the blocks of a document: a core rule of markdown-it, after the block rules."""
    begun = [
        True
    ]  # for each open container, the outermost first: whether its first block has begun
    for token in state.tokens:
        if token.type in CONTAINERS or token.type in TEXTS:
            if begun[-1]:
                token.attrSet("dir", "auto")
            begun[-1] = True
        if token.type in CONTAINERS:
            begun.append(False)
        elif token.type in {"list_item_close", "blockquote_close"}:
            begun.pop()
        elif token.type == "inline":
            for child in token.children or ():
                if child.type == "code_inline":
                    child.attrSet("dir", "ltr")
