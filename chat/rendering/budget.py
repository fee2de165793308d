"""Bounds the work of rendering one text: hostile or broken text must not occupy a worker for seconds.

Work is counted in steps and never in seconds, so that a text gives the same HTML on each machine. The
counter lies in the parser's `env`, and rules that come first in each chain count every attempt to find a
block or a piece of markup.
"""

from __future__ import annotations

from markdown_it.rules_block import StateBlock

# Twice the steps of 200 kB of ordinary text with dense markup, which takes about half a second.
STEPS = 80_000
BLOCK_STEPS = 60_000  # of them, to find blocks: the others are left to the markup within them
BLOCK_TOKENS = 80_000
MAX_FORMULAS = 40_000  # characters of formulas that become MathML
MAX_HIGHLIGHTED = 40_000  # characters of code that is highlighted


class TooCostly(Exception):
    """The text needs more work than its budget allows."""


class Budget:
    """The steps that are left to one text."""

    __slots__ = ("block_steps", "formulas", "highlighted", "steps")

    def __init__(self) -> None:
        self.steps = STEPS
        self.block_steps = BLOCK_STEPS
        self.formulas = MAX_FORMULAS
        self.highlighted = MAX_HIGHLIGHTED

    def spend(self, steps: int) -> None:
        """Take steps for markup within a block. Raises TooCostly when none are left."""
        self.steps -= steps
        if self.steps < 0:
            raise TooCostly


def count_block_step(state: StateBlock, _start: int, _end: int, silent: bool) -> bool:
    """Count a block, or a look for the end of one; a rule that never matches. Raises TooCostly."""
    budget: Budget = state.env["budget"]
    cost = 1 if silent else 3
    budget.steps -= cost
    budget.block_steps -= cost
    if budget.block_steps < 0 or len(state.tokens) > BLOCK_TOKENS:
        raise TooCostly
    return False
