"""The tool `calculate`: exact arithmetic (chat/tools/arithmetic.py)."""

from __future__ import annotations

from typing import Annotated

from django.utils.translation import gettext_lazy
from msgspec import Meta

from chat.tools import arithmetic
from chat.tools.registry import ToolContext, ToolError, ToolResult, tool

SHOWN_CHARACTERS = 60


@tool(name="calculate", title=gettext_lazy("Calculator"), progress=gettext_lazy("Calculating…"))
def calculate(
    context: ToolContext,
    expression: Annotated[
        str,
        Meta(
            max_length=500,
            description='For example "(2 + 3) * 4 / 7", "19% of 250", "2^64" or "round(sqrt(2), 3)"',
        ),
    ],
) -> ToolResult:
    """Compute an arithmetic expression exactly: numbers with a decimal point, + - * / // % ^, parentheses, a
    percent sign after a number, and functions such as sqrt, round, min, max, log, sin (of radians), factorial."""
    try:
        found = arithmetic.evaluate(expression)
    except arithmetic.Failure as error:
        raise ToolError(error.sentence, detail=error.detail) from None
    is_short = len(found) <= SHOWN_CHARACTERS
    shown = found if is_short else f"{found[: SHOWN_CHARACTERS - 1]}…"
    return ToolResult(text=found, summary=shown)
