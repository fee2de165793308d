"""The tool `calculate`: exact arithmetic on rational numbers, with bounds on what an expression may cost."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Any

from django.utils.translation import gettext_lazy
from msgspec import Meta

from chat.tools.registry import ToolContext, ToolError, ToolResult, tool

MOST_NODES = 200
MOST_DIGITS = 2_000  # of a numerator or a denominator
PLACES = 12  # of a result that is no whole number

OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}

NOT_UNDERSTOOD = gettext_lazy("This is not an expression that the calculator understands.")
TOO_LARGE = gettext_lazy("The result is too large for the calculator.")
BY_ZERO = gettext_lazy("The expression divides by zero.")


@tool(name="calculate", title=gettext_lazy("Calculator"), progress=gettext_lazy("Calculating…"))
def calculate(
    context: ToolContext,
    expression: Annotated[
        str, Meta(max_length=500, description='For example "(2 + 3) * 4 / 7" or "2 ** 10"')
    ],
) -> ToolResult:
    """Compute an arithmetic expression exactly: numbers, parentheses and + - * / // % **."""
    try:
        tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolError(NOT_UNDERSTOOD, detail="It is not an expression.") from None
    if sum(1 for _node in ast.walk(tree)) > MOST_NODES:
        raise ToolError(NOT_UNDERSTOOD, detail=f"It has more than {MOST_NODES} parts.")
    try:
        shown = written(value_of(tree.body))
    except ZeroDivisionError:
        raise ToolError(BY_ZERO) from None
    return ToolResult(text=shown, summary=f"= {shown}" if len(shown) <= 60 else f"= {shown[:59]}…")


def value_of(node: ast.expr) -> Fraction:
    """Return the value of an expression. Raises ToolError and ZeroDivisionError."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        if node.value == float("inf"):
            raise ToolError(TOO_LARGE)
        return bounded(Fraction(repr(node.value)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = value_of(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = value_of(node.left), value_of(node.right)
        if isinstance(node.op, ast.Pow):
            return power(left, right)
        if type(node.op) in OPERATORS:
            return bounded(Fraction(OPERATORS[type(node.op)](left, right)))
    raise ToolError(NOT_UNDERSTOOD, detail="Only numbers, parentheses and + - * / // % ** are.")


def power(base: Fraction, exponent: Fraction) -> Fraction:
    """Return a power with a whole exponent, or a root as near as floats are."""
    if exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent.numerator) > MOST_DIGITS * 4:
            raise ToolError(TOO_LARGE)
        return bounded(base**exponent.numerator)
    try:
        found = float(base) ** float(exponent)
    except OverflowError:
        raise ToolError(TOO_LARGE) from None
    if isinstance(found, complex):
        raise ToolError(NOT_UNDERSTOOD, detail="The root of a negative number is not real.")
    return Fraction(repr(found))


def bounded(value: Fraction) -> Fraction:
    """Return a value. Raises ToolError for one with too many digits."""
    bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    if bits > MOST_DIGITS * 4:
        raise ToolError(TOO_LARGE)
    return value


def written(value: Fraction) -> str:
    """Return a number in digits, rounded to PLACES if it is not whole."""
    if value.denominator == 1:
        return str(value.numerator)
    rounded = round(value, PLACES)
    sign, digits = (
        "-" * (rounded < 0),
        str(abs(rounded.numerator * (10**PLACES) // rounded.denominator)),
    )
    whole, places = digits[:-PLACES] or "0", digits[-PLACES:].rjust(PLACES, "0").rstrip("0")
    text = f"{sign}{whole}.{places}" if places else f"{sign}{whole}"
    return text if rounded == value else f"≈ {text}"
