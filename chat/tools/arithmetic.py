"""Exact arithmetic on rational numbers, for the tool `calculate`: a small evaluator over Python's syntax trees.

Sums, products and powers are exact. Roots, logarithms and the like are computed to DIGITS digits and marked as
approximations. Everything that an expression can cost is bounded: its length, parts and depth, and the digits of
each number on the way.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

MAX_PARTS = 1_000
MAX_DEPTH = 250
MAX_BITS = 8_000  # of a numerator or a denominator, about 2,400 digits
DIGITS = 50  # of roots and logarithms
PLACES = 12  # of a result that is no short decimal number

NUMBER = re.compile(r"(?a)[\d_]*\.?[\d_]*(?:[eE]([+-]?[\d_]+))?[jJ]?")
# A percent sign at the end of a number, in contrast to the operator between two.
PERCENT = re.compile(r"%(?=\s*(?:$|[)\]+\-*/,]|of\b))")
WORDS = {  # signs of multiplication, division and minus, and raised digits
    "\u00d7": "*",
    "\u00b7": "*",
    "\u00f7": "/",
    "\u2212": "-",
    "^": "**",
    "\u00b2": "**2",
    "\u00b3": "**3",
}


class Failure(Exception):
    """An expression without a value; `sentence` and `values` are for people, `detail` helps a model."""

    def __init__(self, sentence: str | Promise, detail: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.detail = detail


NOT_UNDERSTOOD = _("The calculator does not understand this expression.")
TOO_LARGE = _("The result is too large for the calculator.")
BY_ZERO = _("The expression divides by zero.")
NOT_REAL = _("The result is not a real number.")
UNKNOWN = "It knows numbers, parentheses, + - * / // % ^, a percent sign after a number, {names}."


@dataclass(frozen=True, slots=True)
class Number:
    """A rational number, and whether it is exact."""

    value: Fraction
    is_exact: bool = True

    def __post_init__(self) -> None:
        bits = max(self.value.numerator.bit_length(), self.value.denominator.bit_length())
        if bits > MAX_BITS:
            raise Failure(TOO_LARGE)

    @property
    def whole(self) -> int:
        """The number as an integer. Raises Failure for another one."""
        if self.value.denominator != 1:
            raise Failure(NOT_UNDERSTOOD, "Some function takes whole numbers alone.")
        return self.value.numerator


def evaluate(expression: str) -> str:
    """Return the value of an expression in digits. Raises Failure."""
    text = expression.strip().removesuffix("=").strip()
    for word, sign in WORDS.items():
        text = text.replace(word, sign)
    text = re.sub(r"\bof\b", "*", PERCENT.sub("/100", text))
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Failure(NOT_UNDERSTOOD, UNKNOWN.format(names=", ".join(NAMES))) from None
    if sum(1 for _node in ast.walk(tree)) > MAX_PARTS:
        raise Failure(NOT_UNDERSTOOD, f"It has more than {MAX_PARTS} parts.")
    try:
        return written(_value(tree.body, text, 0))
    except ZeroDivisionError:
        raise Failure(BY_ZERO) from None
    except OverflowError:
        raise Failure(TOO_LARGE) from None


def _value(node: ast.expr, text: str, depth: int) -> Number:
    if depth > MAX_DEPTH:
        raise Failure(NOT_UNDERSTOOD, f"It is nested more than {MAX_DEPTH} deep.")
    if isinstance(node, ast.Constant):
        return _literal(node, text)
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return Number(CONSTANTS[node.id], is_exact=False)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        found = _value(node.operand, text, depth + 1)
        return found if isinstance(node.op, ast.UAdd) else Number(-found.value, found.is_exact)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _value(node.left, text, depth + 1), _value(node.right, text, depth + 1)
        return OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = FUNCTIONS.get(node.func.id.lower())
        if function is not None and len(node.args) in function.arguments:
            return function.call(*(_value(one, text, depth + 1) for one in node.args))
    raise Failure(NOT_UNDERSTOOD, UNKNOWN.format(names=", ".join(NAMES)))


def _literal(node: ast.Constant, text: str) -> Number:
    """Return a number as it is written: 0.1 is a tenth."""
    if type(node.value) is int:
        return Number(Fraction(node.value))
    found = NUMBER.fullmatch(ast.get_source_segment(text, node) or "")
    if type(node.value) is not float or found is None:
        raise Failure(NOT_UNDERSTOOD, UNKNOWN.format(names=", ".join(NAMES)))
    # Before the number is made: 1e999999999 has a billion digits.
    if len(found[1] or "") > 5 or abs(int(found[1] or 0)) * 4 > MAX_BITS:
        raise Failure(TOO_LARGE)
    return Number(Fraction(found[0].replace("_", "")))


def _exact(operation: Callable[[Fraction, Fraction], Fraction | int]) -> Callable[..., Number]:
    def apply(left: Number, right: Number) -> Number:
        value = Fraction(operation(left.value, right.value))
        return Number(value, left.is_exact and right.is_exact)

    return apply


def _power(base: Number, exponent: Number) -> Number:
    """Return a power: exact with a whole exponent, or where the root is rational."""
    if exponent.value.denominator == 1:
        bits = max(base.value.numerator.bit_length(), base.value.denominator.bit_length())
        if bits * abs(exponent.value.numerator) > 2 * MAX_BITS and abs(base.value) != 1:
            raise Failure(TOO_LARGE)
        is_exact = base.is_exact and exponent.is_exact
        return Number(base.value ** (exponent.value.numerator), is_exact)
    if base.value < 0:
        raise Failure(NOT_REAL)
    if exponent.value == Fraction(1, 2):
        return _root(base)
    return _decimal(lambda x, y: x**y)(base, exponent)


def _root(number: Number) -> Number:
    if number.value < 0:
        raise Failure(NOT_REAL)
    above, below = math.isqrt(number.value.numerator), math.isqrt(number.value.denominator)
    if Fraction(above**2, below**2) == number.value:
        return Number(Fraction(above, below), number.is_exact)
    return _decimal(lambda x: x.sqrt())(number)


def _decimal(operation: Callable[..., Decimal]) -> Callable[..., Number]:
    """Return a function that is computed to DIGITS digits."""

    def apply(*numbers: Number) -> Number:
        with localcontext() as context:
            context.prec, context.Emax, context.Emin = DIGITS, 2_000, -2_000
            try:
                values = [Decimal(one.value.numerator) / one.value.denominator for one in numbers]
                return Number(Fraction(operation(*values)), is_exact=False)
            except ArithmeticError as error:  # all of decimal's
                sentence = TOO_LARGE if "Overflow" in type(error).__name__ else NOT_REAL
                raise Failure(sentence) from None

    return apply


def _float(operation: Callable[[float], float]) -> Callable[..., Number]:
    """Return a function that is as exact as floats are."""

    def apply(number: Number) -> Number:
        try:
            found = operation(float(number.value))
        except ValueError:
            raise Failure(NOT_REAL) from None
        # The last digits are rounding errors: sin(pi) is 0.
        return Number(Fraction(format(found, ".15g")) if abs(found) > 1e-15 else Fraction(0), False)

    return apply


def _logarithm(number: Number, base: Number | None = None) -> Number:
    if number.value <= 0 or (base is not None and base.value <= 0):
        raise Failure(NOT_REAL)
    if base is None:
        return _decimal(lambda x: x.ln())(number)
    return _decimal(lambda x, y: x.log10() / y.log10())(number, base)


def _rounded(number: Number, places: Number = Number(Fraction(0))) -> Number:
    """Round as people do: halves away from zero."""
    shift = Fraction(10) ** max(-1_000, min(1_000, places.whole))
    scaled = abs(number.value) * shift
    whole = math.floor(scaled + Fraction(1, 2)) / shift
    return Number(whole if number.value >= 0 else -whole, number.is_exact)


def _integers(operation: Callable[..., int], most: int) -> Callable[..., Number]:
    """Return a function of whole numbers from 0 to `most`."""

    def apply(*numbers: Number) -> Number:
        values = [one.whole for one in numbers]
        if any(one < 0 for one in values):
            raise Failure(NOT_UNDERSTOOD, "Some function takes no negative numbers.")
        if any(one > most for one in values):
            raise Failure(TOO_LARGE)
        return Number(Fraction(operation(*values)), all(one.is_exact for one in numbers))

    return apply


def _each(operation: Callable[[list[Fraction]], Fraction | int]) -> Callable[..., Number]:
    def apply(*numbers: Number) -> Number:
        value = Fraction(operation([one.value for one in numbers]))
        return Number(value, all(one.is_exact for one in numbers))

    return apply


@dataclass(frozen=True, slots=True)
class Function:
    """A function, and the numbers of arguments that it takes."""

    call: Callable[..., Number]
    arguments: range = range(1, 2)


OPERATORS: dict[type[ast.operator], Callable[..., Number]] = {
    ast.Add: _exact(lambda x, y: x + y),
    ast.Sub: _exact(lambda x, y: x - y),
    ast.Mult: _exact(lambda x, y: x * y),
    ast.Div: _exact(lambda x, y: x / y),
    ast.FloorDiv: _exact(lambda x, y: x // y),
    ast.Mod: _exact(lambda x, y: x % y),
    ast.Pow: _power,
}
MANY = range(1, 101)
FUNCTIONS = {
    "abs": Function(_each(lambda all: abs(all[0]))),
    "floor": Function(_each(lambda all: math.floor(all[0]))),
    "ceil": Function(_each(lambda all: math.ceil(all[0]))),
    "round": Function(_rounded, range(1, 3)),
    "min": Function(_each(min), MANY),
    "max": Function(_each(max), MANY),
    "sum": Function(_each(lambda all: sum(all, Fraction(0))), MANY),
    "mean": Function(_each(lambda all: sum(all, Fraction(0)) / len(all)), MANY),
    "sqrt": Function(_root),
    "exp": Function(_decimal(lambda x: x.exp())),
    "ln": Function(_logarithm),
    "log": Function(_logarithm, range(1, 3)),
    "log10": Function(lambda number: _logarithm(number, Number(Fraction(10)))),
    "log2": Function(lambda number: _logarithm(number, Number(Fraction(2)))),
    "sin": Function(_float(math.sin)),
    "cos": Function(_float(math.cos)),
    "tan": Function(_float(math.tan)),
    "asin": Function(_float(math.asin)),
    "acos": Function(_float(math.acos)),
    "atan": Function(_float(math.atan)),
    "radians": Function(_float(math.radians)),
    "degrees": Function(_float(math.degrees)),
    "factorial": Function(_integers(math.factorial, 900)),
    "comb": Function(_integers(math.comb, 5_000), range(2, 3)),
    "perm": Function(_integers(math.perm, 900), range(2, 3)),
    "gcd": Function(_integers(math.gcd, 2**MAX_BITS), MANY),
    "lcm": Function(_integers(math.lcm, 2**64), range(1, 21)),
}
CONSTANTS = {
    "pi": Fraction("3.14159265358979323846264338327950288419716939937510"),
    "e": Fraction("2.71828182845904523536028747135266249775724709369995"),
}
NAMES = (*FUNCTIONS, *CONSTANTS)


def written(number: Number) -> str:
    """Return a number in digits; one that is rounded or approximate begins with ≈."""
    value = number.value
    is_short = PLACES_OF_TEN % value.denominator == 0
    with localcontext() as context:
        # All digits before the point, and either all or PLACES significant ones.
        context.prec = max(PLACES, len(str(abs(value.numerator) // value.denominator)) + PLACES)
        shown = Decimal(value.numerator) / value.denominator
        if not is_short or not number.is_exact:
            shown = shown.normalize(context)
            context.prec = max(PLACES, len(str(abs(value.numerator) // value.denominator)))
            shown = +shown
        is_whole = Fraction(shown) == value and number.is_exact
        text = format(shown, "f") if shown.adjusted() > -20 else format(shown, "e")
    if "." in text and "e" not in text:
        text = text.rstrip("0").rstrip(".")
    return text if is_whole else f"≈ {text}"


PLACES_OF_TEN = 10**PLACES
